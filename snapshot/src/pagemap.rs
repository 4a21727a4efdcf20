//! What is known of guest RAM without reading it: which pages nobody has ever touched, and where a restored guest still
//! has the image's own pages.
//!
//! `/proc/self/pagemap` has eight bytes for each page of this process (kernel document `admin-guide/mm/pagemap`): a page
//! is present, or in swap, or neither; and it is a file's or not. Where RAM is anonymous, a page that is neither was
//! never touched and is zero. Where an image's file is mapped privately, a page that is neither, or still the file's, was
//! never written.
//!
//! In doubt RAM counts as touched and written: it is read, which costs time and nothing else.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::limits::{CHUNK_BYTES, PAGE_BYTES};
use crate::memory::{PlannedChunk, Run};

const ENTRY_BYTES: usize = 8;
const PAGES: usize = (CHUNK_BYTES / PAGE_BYTES) as usize;
/// Bits 63 and 62 of an entry: a page is present; it is in swap, or on its way to another place.
const THERE: u8 = 0b1100_0000;
/// Bit 61: the page is of a file, or shared.
const FILE: u8 = 0b0010_0000;

/// Looks at one chunk after another. Once made it allocates nothing.
pub(crate) struct PageMap {
    /// The guest addresses at which files are mapped, ascending, none next to another.
    mapped: Vec<Range<u64>>,
    pagemap: Option<File>,
    entries: Box<[u8; PAGES * ENTRY_BYTES]>,
    /// The part of `entries` that is of the chunk that was looked at; empty if nothing is known of it.
    pages: usize,
    backing: Backing,
}

/// Looks for what somebody has written to where a file is mapped privately: pages of this process's own.
#[derive(Debug)]
pub struct OwnPages {
    pagemap: File,
    entries: Box<[u8; PAGES * ENTRY_BYTES]>,
}

impl OwnPages {
    /// Of this process.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn open() -> io::Result<Self> {
        Ok(OwnPages { pagemap: File::open("/proc/self/pagemap")?, entries: Box::new([0; PAGES * ENTRY_BYTES]) })
    }

    /// Those among `bytes` of memory from the address `start`: their offsets, ascending. No more than 2 MiB are looked at.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn among(&mut self, start: usize, bytes: usize) -> io::Result<impl Iterator<Item = usize>> {
        let pages = bytes.div_ceil(PAGE_BYTES as usize).min(PAGES);
        let entries = &mut self.entries[..pages * ENTRY_BYTES];
        self.pagemap.read_exact_at(entries, start as u64 / PAGE_BYTES * ENTRY_BYTES as u64)?;
        let own = (0..pages).filter(|page| is_own(flags(&self.entries[..], *page)));
        Ok(own.map(|page| page * PAGE_BYTES as usize))
    }
}

/// Native is little-endian here: an entry's last byte has its top bits.
fn flags(entries: &[u8], page: usize) -> u8 {
    entries[page * ENTRY_BYTES + ENTRY_BYTES - 1]
}

fn is_own(flags: u8) -> bool {
    flags & THERE != 0 && flags & FILE == 0
}

/// What a chunk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Anonymous,
    File,
    Both,
}

impl PageMap {
    /// For RAM over which a file is mapped in these runs, ascending, and nowhere else.
    pub(crate) fn new(mapped: &[Run]) -> Self {
        let entries = Box::new([0; PAGES * ENTRY_BYTES]);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for run in mapped {
            match ranges.last_mut() {
                Some(last) if last.end == run.guest_address => last.end = run.guest_end(),
                _ => ranges.push(run.guest_address..run.guest_end()),
            }
        }
        PageMap { mapped: ranges, pagemap: None, entries, pages: 0, backing: Backing::Both }
    }

    /// Begins to look at the memory of the process that calls this.
    pub(crate) fn begin(&mut self) {
        self.pagemap = File::open("/proc/self/pagemap").ok();
    }

    /// Looks at a chunk.
    pub(crate) fn look(&mut self, memory: &GuestMemoryMmap, chunk: &PlannedChunk) {
        self.backing = self.backing(chunk);
        self.pages = if self.backing == Backing::Both { 0 } else { self.read(memory, chunk).unwrap_or(0) };
    }

    /// Of the next chunk nothing is known.
    pub(crate) fn forget(&mut self) {
        (self.backing, self.pages) = (Backing::Both, 0);
    }

    /// True if nobody has touched these bytes of the chunk; both are multiples of a page.
    pub(crate) fn is_untouched(&self, offset: u64, bytes: usize) -> bool {
        let first = (offset / PAGE_BYTES) as usize;
        let pages = first..first + bytes.div_ceil(PAGE_BYTES as usize);
        self.backing == Backing::Anonymous
            && pages.end <= self.pages
            && !pages.into_iter().any(|page| self.flags(page) & THERE != 0)
    }

    /// True if the chunk is all a file's, and nobody has written to it since it was mapped.
    pub(crate) fn is_as_mapped(&self) -> bool {
        self.backing == Backing::File && self.pages > 0 && !(0..self.pages).any(|page| is_own(self.flags(page)))
    }

    fn flags(&self, page: usize) -> u8 {
        flags(&self.entries[..], page)
    }

    fn backing(&self, chunk: &PlannedChunk) -> Backing {
        let end = chunk.guest_address + chunk.guest_bytes;
        let next = self.mapped.partition_point(|range| range.end <= chunk.guest_address);
        match self.mapped.get(next) {
            Some(range) if range.start <= chunk.guest_address && end <= range.end => Backing::File,
            Some(range) if range.start < end => Backing::Both,
            _ => Backing::Anonymous,
        }
    }

    /// Returns how many pages the chunk has.
    fn read(&mut self, memory: &GuestMemoryMmap, chunk: &PlannedChunk) -> Option<usize> {
        let slice = memory.get_slice(GuestAddress(chunk.guest_address), chunk.guest_bytes as usize).ok()?;
        let page = slice.ptr_guard().as_ptr() as u64 / PAGE_BYTES;
        let pages = (chunk.guest_bytes / PAGE_BYTES) as usize;
        let entries = &mut self.entries[..pages * ENTRY_BYTES];
        self.pagemap.as_ref()?.read_exact_at(entries, page * ENTRY_BYTES as u64).ok()?;
        Some(pages)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::chunk_map::Region;
    use crate::memory;

    #[test]
    fn only_what_was_never_touched_is_untouched() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 * CHUNK_BYTES as usize)]).expect("memory");
        let page = PAGE_BYTES as usize;
        memory.write_obj(1_u8, GuestAddress(CHUNK_BYTES + 7 * PAGE_BYTES + 5)).expect("write");
        memory.write_obj(0_u8, GuestAddress(3 * CHUNK_BYTES)).expect("write");
        let regions = Region::lay_out([(0, 4 * CHUNK_BYTES)]).expect("regions");
        let chunks: Vec<_> = memory::plan(&regions).collect();
        let mapped = Run { guest_address: 2 * CHUNK_BYTES + PAGE_BYTES, bytes: PAGE_BYTES, file_offset: 0, layer: 0 };
        let mut pages = PageMap::new(&[mapped]);
        pages.look(&memory, &chunks[0]);
        assert!(!pages.is_untouched(0, page), "not begun: in doubt");
        pages.begin();
        pages.look(&memory, &chunks[0]);
        assert!(pages.is_untouched(0, CHUNK_BYTES as usize));
        assert!(!pages.is_as_mapped(), "no file is mapped here");
        pages.look(&memory, &chunks[1]);
        assert!(
            pages.is_untouched(8 * PAGE_BYTES, page) || !pages.is_untouched(0, page),
            "a huge page is touched as a whole"
        );
        assert!(!pages.is_untouched(7 * PAGE_BYTES, page) && !pages.is_untouched(0, 8 * page));
        pages.look(&memory, &chunks[2]);
        assert!(!pages.is_untouched(0, page), "a file is mapped in this chunk");
        assert!(!pages.is_as_mapped(), "but not in all of it");
        pages.look(&memory, &chunks[3]);
        assert!(!pages.is_untouched(0, page), "zero, but touched");
    }
}
