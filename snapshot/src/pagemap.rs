//! Which guest RAM nobody has ever touched: no page is there, so it is zero, and need not be read to know it.
//!
//! `/proc/self/pagemap` has eight bytes for each page of this process (kernel document `admin-guide/mm/pagemap`); with
//! neither of two bits set there is no page, in RAM or in swap. This holds for anonymous memory only: where a file is
//! mapped, no page means what the file has.
//!
//! In doubt RAM counts as touched: it is read, which costs time and nothing else.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::limits::{CHUNK_BYTES, PAGE_BYTES};
use crate::memory::{PlannedChunk, Run};

const ENTRY_BYTES: usize = 8;
const PAGES: usize = (CHUNK_BYTES / PAGE_BYTES) as usize;
/// Bits 63 and 62 of an entry: a page is present; it is in swap, or on its way to another place.
const THERE: u8 = 0b1100_0000;

/// Looks at one chunk after another. Once made it allocates nothing.
pub(crate) struct Untouched {
    /// Where files are mapped, ascending.
    mapped: Vec<Run>,
    pagemap: Option<File>,
    entries: Box<[u8; PAGES * ENTRY_BYTES]>,
    /// The entries are those of the chunk that was looked at.
    known: bool,
}

impl Untouched {
    /// For RAM over which a file is mapped in these runs, ascending, and nowhere else.
    pub(crate) fn new(mapped: &[Run]) -> Self {
        let entries = Box::new([0; PAGES * ENTRY_BYTES]);
        Untouched { mapped: mapped.to_vec(), pagemap: None, entries, known: false }
    }

    /// Begins to look at the memory of the process that calls this.
    pub(crate) fn begin(&mut self) {
        self.pagemap = File::open("/proc/self/pagemap").ok();
    }

    /// Looks at a chunk.
    pub(crate) fn look(&mut self, memory: &GuestMemoryMmap, chunk: &PlannedChunk) {
        self.known = !self.is_mapped(chunk) && self.read(memory, chunk).is_some();
    }

    /// True if nobody has touched these bytes of the chunk; both are multiples of a page.
    pub(crate) fn is(&self, offset: u64, bytes: usize) -> bool {
        let first = (offset / PAGE_BYTES) as usize;
        let pages = first..first + bytes.div_ceil(PAGE_BYTES as usize);
        // Native is little-endian here: an entry's last byte has its top bits.
        let is_there = |page: usize| self.entries[page * ENTRY_BYTES + ENTRY_BYTES - 1] & THERE != 0;
        self.known && !pages.into_iter().any(is_there)
    }

    fn is_mapped(&self, chunk: &PlannedChunk) -> bool {
        let next = self.mapped.partition_point(|run| run.guest_end() <= chunk.guest_address);
        self.mapped.get(next).is_some_and(|run| run.guest_address < chunk.guest_address + chunk.guest_bytes)
    }

    fn read(&mut self, memory: &GuestMemoryMmap, chunk: &PlannedChunk) -> Option<()> {
        let slice = memory.get_slice(GuestAddress(chunk.guest_address), chunk.guest_bytes as usize).ok()?;
        let page = slice.ptr_guard().as_ptr() as u64 / PAGE_BYTES;
        let entries = &mut self.entries[..(chunk.guest_bytes / PAGE_BYTES) as usize * ENTRY_BYTES];
        self.pagemap.as_ref()?.read_exact_at(entries, page * ENTRY_BYTES as u64).ok()
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
        let mapped = Run { guest_address: 2 * CHUNK_BYTES + PAGE_BYTES, bytes: PAGE_BYTES, file_offset: 0 };
        let mut untouched = Untouched::new(&[mapped]);

        untouched.look(&memory, &chunks[0]);
        assert!(!untouched.is(0, page), "not begun: in doubt");
        untouched.begin();
        untouched.look(&memory, &chunks[0]);
        assert!(untouched.is(0, CHUNK_BYTES as usize));
        untouched.look(&memory, &chunks[1]);
        assert!(untouched.is(8 * PAGE_BYTES, page) || !untouched.is(0, page), "a huge page is touched as a whole");
        assert!(!untouched.is(7 * PAGE_BYTES, page) && !untouched.is(0, 8 * page));
        untouched.look(&memory, &chunks[2]);
        assert!(!untouched.is(0, page), "a file is mapped in this chunk");
        untouched.look(&memory, &chunks[3]);
        assert!(!untouched.is(0, page), "zero, but touched");
    }
}
