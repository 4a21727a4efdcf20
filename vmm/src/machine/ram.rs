//! Guest RAM: private mappings, anonymous or with pages of a checkpoint's `memory` file laid over them.
//!
//! Invariant: RAM is `MAP_PRIVATE`. A shared mapping would write through to an image that must never change, and a
//! forked writer would see what the guest writes after the cut.
//!
//! Invariant: guest-physical and host-virtual addresses of a region agree modulo 2 MiB, or KVM could not use a huge
//! page for it.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr,
    sync::Arc,
};

use ckvmm_devices::GuestRam;
use ckvmm_snapshot::{Copies, Habits, Lent, MemoryImage, RamPlan, Run};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::{
    arch::layout,
    error::{Error, Result},
};

/// Bytes.
pub(super) const HUGE_PAGE: usize = 2 << 20;
/// A fork copies the page tables of mappings that were written to: of these bytes, each. Of very large RAM it is more, so
/// that there are no more than so many mappings, of which a process may have 65530.
const PART: u64 = 8 << 20;
const MAPPINGS: u64 = 4096;
/// Bytes read at a time.
const PIECE: usize = 256 << 10;

/// Guest RAM and the mappings behind it, which go when this goes, and nobody was lent them.
#[derive(Debug)]
pub struct Ram {
    memory: GuestRam,
    mapping: Arc<Mapping>,
    /// Where an image's file is mapped.
    mapped: Vec<Run>,
    /// Its layers. A file that has no name any more, an image that was removed, is given back by whoever lets go of it
    /// last, which takes a while: not by who replaces a mapping.
    layers: Vec<File>,
    habits: Arc<Habits>,
}

/// The mappings of all regions.
#[derive(Debug)]
struct Mapping(Vec<Arc<GuestRegionMmap<()>>>);

impl Ram {
    /// `bytes` of zeroed RAM, which take host memory only as the guest touches them.
    ///
    /// # Errors
    /// If the host has no address space for it.
    pub fn zeroed(bytes: u64) -> Result<Self> {
        let regions = layout::ram_ranges(bytes)
            .into_iter()
            .map(|(start, len)| region(start, len as usize).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let memory = GuestRam::from_arc_regions(regions.clone())
            .map_err(|error| Error::Ram { bytes, source: io::Error::other(error) })?;
        let mapping = Arc::new(Mapping(regions));
        Ok(Ram { memory, mapping, mapped: Vec::new(), layers: Vec::new(), habits: Arc::default() })
    }

    /// Makes it as `image` has it, without reading that: its runs of data are mapped privately, all else stays zero. (The
    /// shortest of very many runs are read: the kernel limits the number of mappings.)
    ///
    /// # Errors
    /// If the image is of a machine with another address map, or a mapping fails.
    pub fn map(&mut self, image: &MemoryImage) -> Result<()> {
        let bytes = self.memory.iter().map(GuestMemoryRegion::len).sum::<u64>();
        let RamPlan { mapped, read } = image.plan();
        let part = (bytes / MAPPINGS).next_power_of_two().max(PART);
        for run in &mapped {
            self.map_run(image, run, part).map_err(|source| Error::Ram { bytes: run.bytes, source })?;
        }
        for run in &read {
            self.read_run(image, run).map_err(|source| Error::Ram { bytes: run.bytes, source })?;
        }
        let layers = (0..image.layers()).map(|layer| image.layer(layer).try_clone());
        self.layers = layers.collect::<io::Result<_>>().map_err(|source| Error::Ram { bytes, source })?;
        self.mapped = mapped;
        Ok(())
    }

    /// The memory as devices and loaders see it.
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// The runs of RAM, ascending, over which the file of an image is mapped; all else is anonymous.
    pub fn mapped(&self) -> &[Run] {
        &self.mapped
    }

    /// No file is mapped over these guest addresses any more.
    pub(super) fn is_own(&mut self, own: Range<u64>) {
        let first = self.mapped.partition_point(|run| run.guest_end() <= own.start);
        let end = self.mapped.partition_point(|run| run.guest_address < own.end);
        let within = self.mapped.get(first..end).unwrap_or_default();
        let before = within
            .first()
            .filter(|run| run.guest_address < own.start)
            .map(|run| run.part(run.guest_address..own.start));
        let after = within.last().filter(|run| own.end < run.guest_end()).map(|run| run.part(own.end..run.guest_end()));
        self.mapped.splice(first..end.max(first), before.into_iter().chain(after));
    }

    /// Reads what the image's files have of the guest addresses from `start` on, as far as `to` goes; where none is mapped
    /// `to` stays as it is. Not by the mappings: a page that cannot be read would end this process there.
    pub(super) fn read_mapped(&self, start: u64, to: &mut [u8]) -> io::Result<()> {
        let end = start + to.len() as u64;
        let first = self.mapped.partition_point(|run| run.guest_end() <= start);
        for run in self.mapped[first..].iter().take_while(|run| run.guest_address < end) {
            let part = run.part(run.guest_address.max(start)..run.guest_end().min(end));
            let place = (part.guest_address - start) as usize..(part.guest_end() - start) as usize;
            self.layers[part.layer].read_exact_at(&mut to[place], part.file_offset)?;
        }
        Ok(())
    }

    /// The files that were mapped, once none is any more.
    pub fn release_layers(&mut self) -> Vec<File> {
        if self.mapped.is_empty() { std::mem::take(&mut self.layers) } else { Vec::new() }
    }

    /// For a writer that protects RAM, if it can: not where a file is mapped.
    pub fn lend(&self, copies: Copies) -> Option<Lent> {
        let mapping: Arc<Mapping> = Arc::clone(&self.mapping);
        let (memory, habits) = (self.memory.clone(), Arc::clone(&self.habits));
        self.mapped.is_empty().then_some(Lent { memory, mapping, habits, copies })
    }

    /// Maps a run, with one mapping for each `part` bytes of guest addresses.
    fn map_run(&self, image: &MemoryImage, run: &Run, part: u64) -> io::Result<()> {
        let outside = || io::Error::other("the image has data outside the RAM of its machine");
        let region = self.memory.find_region(GuestAddress(run.guest_address)).ok_or_else(outside)?;
        if run.bytes > region.len() - (run.guest_address - region.start_addr().0) {
            return Err(outside());
        }
        let address = |guest: u64| region.as_ptr().wrapping_add((guest - region.start_addr().0) as usize).cast();
        // SAFETY: the run lies in the region's mapping, as just checked, and nothing holds a reference into it: the machine
        // is being built. The file was opened read-only; the mapping is private.
        let mapped = unsafe {
            libc::mmap(
                address(run.guest_address),
                run.bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                image.layer(run.layer).as_raw_fd(),
                run.file_offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mut start = run.guest_address;
        while start < run.guest_end() {
            let end = (start / part + 1).saturating_mul(part).min(run.guest_end());
            if start / part % 2 == 1 {
                // Unlike its neighbours, so a mapping of its own: that takes a quarter of the time of mapping each.
                // SAFETY: [start, end) was just mapped, and the advice changes no content.
                unsafe { libc::madvise(address(start), (end - start) as usize, libc::MADV_DONTDUMP) };
            }
            start = end;
        }
        Ok(())
    }

    fn read_run(&self, image: &MemoryImage, run: &Run) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut done = 0;
        while done < run.bytes {
            let piece = &mut piece[..(run.bytes - done).min(PIECE as u64) as usize];
            image.layer(run.layer).read_exact_at(piece, run.file_offset + done)?;
            self.memory.write_slice(piece, GuestAddress(run.guest_address + done)).map_err(io::Error::other)?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        for region in self.0.drain(..) {
            // A device that still holds RAM keeps its mapping: a leak is better than a dangling pointer.
            if Arc::strong_count(&region) == 1 {
                // SAFETY: `region` is the last user of this mapping, which `region()` made and nobody else unmaps.
                unsafe { libc::munmap(region.as_ptr().cast(), region.size()) };
            } else {
                tracing::warn!(start = region.start_addr().0, "guest RAM is still in use, not unmapped");
            }
        }
    }
}

/// An anonymous private mapping for the guest-physical range from `start`, aligned to huge pages.
fn region(start: u64, bytes: usize) -> Result<GuestRegionMmap<()>> {
    let ram_error = |source| Error::Ram { bytes: bytes as u64, source };
    let address = map_aligned(bytes).map_err(ram_error)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: `map_aligned` mapped `bytes` at `address` with this protection and these flags.
    let region = unsafe { MmapRegion::build_raw(address, bytes, libc::PROT_READ | libc::PROT_WRITE, flags) };
    let region = region.map_err(|error| ram_error(io::Error::other(error)))?;
    GuestRegionMmap::new(region, GuestAddress(start))
        .ok_or_else(|| ram_error(io::Error::other("the region ends beyond the guest-physical address space")))
}

/// Anonymous memory that may have huge pages.
pub(super) fn map_aligned(bytes: usize) -> io::Result<*mut u8> {
    // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
    let reserved = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes + HUGE_PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let reserved = reserved.cast::<u8>();
    let before = reserved.align_offset(HUGE_PAGE);
    // SAFETY: both ends lie in the mapping just made, outside [before, before + bytes), which is kept.
    let aligned = unsafe {
        let aligned = reserved.add(before);
        if before > 0 {
            libc::munmap(reserved.cast(), before);
        }
        libc::munmap(aligned.add(bytes).cast(), HUGE_PAGE - before);
        aligned
    };
    // Advice: a kernel without transparent huge pages refuses it, and the guest runs all the same.
    // SAFETY: the range is mapped, and the advice changes no content.
    unsafe { libc::madvise(aligned.cast(), bytes, libc::MADV_HUGEPAGE) };
    Ok(aligned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn regions_are_private_aligned_and_go_away() {
        let ram = Ram::zeroed(5 << 30).unwrap();
        let mut address = ptr::null_mut();
        for region in ram.memory().iter() {
            address = region.as_ptr();
            assert_eq!(address as usize % HUGE_PAGE, 0);
            assert_ne!(region.flags() & libc::MAP_PRIVATE, 0);
            assert_eq!(region.flags() & libc::MAP_SHARED, 0);
        }
        ram.memory().write_obj(7u64, GuestAddress((5 << 30) - 8 + (1 << 30))).unwrap();
        drop(ram);
        let mut resident = 0u8;
        // SAFETY: mincore writes one byte for the one page asked about, or fails.
        let mapped = unsafe { libc::mincore(address.cast(), 4096, &raw mut resident) };
        assert_eq!((mapped, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOMEM)));
    }
}
