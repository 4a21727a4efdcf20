//! RAM of a restored guest, moved from the image's file into memory of its own.
//!
//! A file that is mapped privately has no huge pages, and the kernel cannot protect it: its checkpoints take a fork, of 512
//! times as many page table entries. So chunks of RAM are moved to anonymous memory, a few at a time:
//!
//! ```text
//! prepare     read the chunk's place in the file, aside                  the guest runs
//! take over   copy what is not the file's; the copy takes the place      it stands still for a moment
//! ```
//!
//! Invariant: a page that nobody has written to is the file's, which never changes, or zero, as memory aside is. So only
//! pages that are neither are copied while the guest stands still.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    fs::File,
    io, ptr,
    time::{Duration, Instant},
};

use ckvmm_snapshot::{OwnPages, Run};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::{
    Machine,
    ram::{HUGE_PAGE, Ram, map_aligned},
};
use crate::error::{Error, Result};

const CHUNK: u64 = HUGE_PAGE as u64;
const PAGE: usize = 4096;
/// So many chunks are prepared at once.
const PREPARED: usize = 16;
/// Bytes that a step takes at most.
pub const AT_ONCE: u64 = PREPARED as u64 * CHUNK;
/// So many chunks are looked at in a step.
const LOOKS: usize = 256;
/// So many of the 512 pages of a chunk that has changed.
const MANY: usize = 128;
/// No chunk is taken over after the guest has stood still for so long.
const STILL: Duration = Duration::from_micros(300);

/// What is to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Chunks of which the guest has changed a good part: the rest of their pages it hardly shares with anybody any more.
    Changed,
    /// All.
    All,
}

/// A move of RAM that is under way.
#[derive(Debug)]
pub struct Moving {
    /// Laid out as the regions of RAM.
    aside: Vec<Aside>,
    /// The guest addresses of chunks that were read, ascending.
    prepared: VecDeque<u64>,
    /// Up to this guest address chunks were looked at.
    seen: u64,
    pages: OwnPages,
}

/// Anonymous memory as large as a region of RAM. What is taken over from it is empty again.
#[derive(Debug)]
struct Aside {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping is this value's alone.
unsafe impl Send for Aside {}

/// A chunk of RAM and its place aside.
#[derive(Debug, Clone, Copy)]
struct Place {
    ram: *mut u8,
    aside: *mut u8,
    bytes: usize,
}

impl Machine {
    /// Moves some of the restored RAM that is `wanted` into memory of this process's own. A guest that runs stands still for
    /// a moment. False if there was no more.
    ///
    /// # Errors
    /// If it cannot be moved, or as of [`Machine::pause`] and [`Machine::resume`].
    pub fn move_ram(&mut self, moving: &mut Moving, wanted: Wanted) -> Result<bool> {
        let ran = self.running;
        let more = moving.prepare(&self.ram, wanted).map_err(Error::os("reading restored RAM from its image"))?;
        if !moving.is_prepared() {
            return Ok(more);
        }
        self.pause()?;
        let moved = moving.take_over(&mut self.ram);
        if ran {
            self.resume()?;
        }
        moved.map(|()| more).map_err(Error::os("moving restored RAM"))
    }

    /// The files of the image that restored RAM was moved from; to close them takes a while.
    pub fn release_layers(&mut self) -> Vec<File> {
        self.ram.release_layers()
    }
}

impl Moving {
    /// Makes ready to move what is mapped of `ram`.
    ///
    /// # Errors
    /// The host has no address space for it, or does not say what the guest writes to.
    pub fn new(ram: &Ram) -> io::Result<Self> {
        let aside = ram.memory().iter().map(|region| Aside::new(region.len() as usize)).collect::<io::Result<_>>()?;
        Ok(Moving { aside, prepared: VecDeque::new(), seen: 0, pages: OwnPages::open()? })
    }

    /// Reads the next chunks that are `wanted`, while the guest may run. False if there were no more: then it begins
    /// anew.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn prepare(&mut self, ram: &Ram, wanted: Wanted) -> io::Result<bool> {
        let mut looks = LOOKS;
        for chunk in chunks(ram.mapped(), self.seen) {
            if looks == 0 || self.prepared.len() == PREPARED {
                return Ok(true);
            }
            looks -= 1;
            self.seen = chunk + CHUNK;
            let place = self.place(ram, chunk)?;
            if wanted == Wanted::Changed && self.pages.among(place.ram as usize, place.bytes)?.count() < MANY {
                continue;
            }
            // SAFETY: the place aside is this value's alone, and as long as that.
            let to = unsafe { std::slice::from_raw_parts_mut(place.aside, place.bytes) };
            ram.read_mapped(chunk, to)?;
            self.prepared.push_back(chunk);
        }
        // What is prepared is still mapped: it is not to be found again.
        if self.prepared.is_empty() {
            self.seen = 0;
        }
        Ok(!self.prepared.is_empty())
    }

    /// Whether there is something to take over.
    pub fn is_prepared(&self) -> bool {
        !self.prepared.is_empty()
    }

    /// Takes over what is prepared, or the first of it, if that takes long. Nobody uses RAM meanwhile.
    ///
    /// # Errors
    /// The kernel lacks something. RAM is as it was, if the kernel had not unmapped some of it already.
    fn take_over(&mut self, ram: &mut Ram) -> io::Result<()> {
        let begun = Instant::now();
        while let Some(chunk) = self.prepared.pop_front() {
            let place = self.place(ram, chunk)?;
            place.take_over(&mut self.pages)?;
            ram.is_own(chunk..chunk + CHUNK);
            if begun.elapsed() >= STILL {
                break;
            }
        }
        Ok(())
    }

    fn place(&self, ram: &Ram, chunk: u64) -> io::Result<Place> {
        let mut regions = ram.memory().iter().zip(&self.aside);
        let within = |region: &GuestRegionMmap<()>| region.to_region_addr(GuestAddress(chunk));
        let (region, aside, offset) = regions
            .find_map(|(region, aside)| Some((region, aside, within(region)?.0 as usize)))
            .ok_or_else(|| io::Error::other("a file is mapped outside of RAM"))?;
        let bytes = (aside.bytes - offset).min(HUGE_PAGE);
        // SAFETY: the offset is within the region, and the mapping aside is as long.
        let (ram, aside) = unsafe { (region.as_ptr().add(offset), aside.base.add(offset)) };
        Ok(Place { ram, aside, bytes })
    }
}

/// The chunks from the guest address `from` on in which a file is mapped, ascending.
fn chunks(mapped: &[Run], from: u64) -> impl Iterator<Item = u64> {
    let first = mapped.partition_point(|run| run.guest_end() <= from);
    let of = |run: &Run| (run.guest_address / CHUNK * CHUNK..run.guest_end()).step_by(HUGE_PAGE);
    let mut next = from;
    // The runs in one chunk follow each other.
    mapped[first..].iter().flat_map(of).filter(move |chunk| {
        let is_new = *chunk >= next;
        next = next.max(chunk + CHUNK);
        is_new
    })
}

impl Place {
    /// Puts the copy in the place of what it was copied from.
    fn take_over(self, pages: &mut OwnPages) -> io::Result<()> {
        for offset in pages.among(self.ram as usize, self.bytes)? {
            // SAFETY: both places are mapped and as long as that, and nobody uses either.
            unsafe { ptr::copy_nonoverlapping(self.ram.add(offset), self.aside.add(offset), PAGE) };
        }
        // What is left aside stays mapped, and empty: nobody else's mapping can come to lie there.
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        // SAFETY: RAM's mapping is replaced by one of the same content, length and protection, which nobody notices.
        let moved = unsafe { libc::mremap(self.aside.cast(), self.bytes, self.bytes, flags, self.ram) };
        if moved == libc::MAP_FAILED { self.copy_back(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The kernel may have unmapped RAM before it failed.
    fn copy_back(self, why: io::Error) -> io::Result<()> {
        tracing::info!(error = %why, "RAM is copied, not moved");
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: as above; the copy is aside, as before.
        unsafe {
            if libc::mmap(self.ram.cast(), self.bytes, access, flags, -1, 0) == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            libc::madvise(self.ram.cast(), self.bytes, libc::MADV_HUGEPAGE);
            ptr::copy_nonoverlapping(self.aside, self.ram, self.bytes);
        }
        Ok(())
    }
}

impl Aside {
    fn new(bytes: usize) -> io::Result<Self> {
        Ok(Aside { base: map_aligned(bytes)?, bytes })
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and all of it is still there: see `Place::take_over`.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests;
