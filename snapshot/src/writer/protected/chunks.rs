//! Guest RAM in chunks, where they are in this process's memory, and copies of them.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::super::present::Present;
use super::stream;
use crate::limits::{CHUNK_BYTES, PIECE_BYTES};
use crate::memory::PlannedChunk;
use crate::tag::{self, ChunkTagger};

/// A chunk.
pub(super) struct Chunk {
    pub(super) host: Range<usize>,
    pub(super) file_start: u64,
    /// Bytes of zeros that follow it in the memory file.
    padding: u64,
    /// Somebody copies it, or has.
    taken: AtomicBool,
}

/// A region of guest RAM.
pub(super) struct Area {
    pub(super) host: Range<usize>,
    /// The number of its first chunk.
    pub(super) first: usize,
}

/// The chunks of `memory`, which are `planned`, by number; and its regions. It has to stay mapped as long as there are any.
pub(super) fn of(memory: &GuestMemoryMmap, planned: &[PlannedChunk]) -> io::Result<(Vec<Chunk>, Vec<Area>)> {
    let chunks = planned.iter().map(|planned| Chunk::new(memory, planned)).collect::<io::Result<Vec<_>>>()?;
    let mut areas: Vec<(usize, Area)> = Vec::new();
    for (number, (chunk, planned)) in chunks.iter().zip(planned).enumerate() {
        match areas.last_mut() {
            Some((region, area)) if *region == planned.region => area.host.end = chunk.host.end,
            _ => areas.push((planned.region, Area { host: chunk.host.clone(), first: number })),
        }
    }
    Ok((chunks, areas.into_iter().map(|(_, area)| area).collect()))
}

impl Chunk {
    pub(super) fn is_taken(&self) -> bool {
        self.taken.load(Acquire)
    }

    /// The copy that is used is the caller's, which it makes now, or has made; false if it is another one's. Who comes after
    /// its copy uses it only if nobody has taken the chunk by then.
    pub(super) fn take(&self) -> bool {
        !self.taken.swap(true, AcqRel)
    }

    fn new(memory: &GuestMemoryMmap, planned: &PlannedChunk) -> io::Result<Chunk> {
        let slice = memory.get_slice(GuestAddress(planned.guest_address), planned.guest_bytes as usize);
        let start = slice.map_err(io::Error::other)?.ptr_guard().as_ptr() as usize;
        Ok(Chunk {
            host: start..start + planned.guest_bytes as usize,
            file_start: planned.file.start,
            padding: planned.padding(),
            taken: AtomicBool::new(false),
        })
    }

    /// Copies it as it was at the cut, when some of it was `present`, while that is protected; else anything.
    pub(super) fn copy(&self, present: &Present, to: &mut [u8]) {
        self.copy_in((CHUNK_BYTES as usize, stream::copy), present, to, |_| ());
    }

    /// The same; returns what it holds.
    pub(super) fn copy_tagging(&self, present: &Present, to: &mut [u8], tagger: &mut ChunkTagger) -> tag::Chunk {
        self.copy_in((tagger.part_bytes(), copy_cached), present, to, |part| tagger.add(part));
        self.held(tagger)
    }

    /// What of it was `present` at the cut, in pieces, and where each begins; the rest is zero.
    pub(super) fn pieces<'a>(&'a self, present: &'a Present) -> impl Iterator<Item = (usize, VolatileSlice<'a>)> {
        present.of(&self.host).flat_map(|there| in_pieces(&there)).map(|piece| {
            // SAFETY: it lies in guest RAM, which is mapped as long as there are chunks of it.
            (piece.start - self.host.start, unsafe { VolatileSlice::new(piece.start as *mut u8, piece.len()) })
        })
    }

    /// All of it, of which that is a copy, likewise.
    pub(super) fn pieces_of<'a>(&self, copy: VolatileSlice<'a>) -> impl Iterator<Item = (usize, VolatileSlice<'a>)> {
        in_pieces(&(0..self.host.len())).map(move |piece| {
            (piece.start, copy.subslice(piece.start, piece.len()).expect("a copy is as long as the chunk"))
        })
    }

    /// Copies what is a `copy` of it; returns what it holds.
    pub(super) fn copy_again(&self, copy: &[u8], to: &mut [u8], tagger: &mut ChunkTagger) -> tag::Chunk {
        let content = copy[..self.host.len()].chunks(tagger.part_bytes());
        for (part, to) in content.zip(to.chunks_mut(tagger.part_bytes())) {
            tagger.add(part);
            to[..part.len()].copy_from_slice(part);
        }
        self.held(tagger)
    }

    /// In parts of so many bytes, each copied so; `each` gets every part's copy.
    fn copy_in(
        &self,
        (part_bytes, copy): (usize, unsafe fn(*const u8, &mut [u8])),
        present: &Present,
        to: &mut [u8],
        mut each: impl FnMut(&[u8]),
    ) {
        let mut done = 0;
        for there in present.of(&self.host) {
            let (start, end) = (there.start - self.host.start, there.end - self.host.start);
            to[done..start].fill(0);
            each(&to[done..start]);
            for (nth, part) in to[start..end].chunks_mut(part_bytes).enumerate() {
                let from = (there.start + nth * part_bytes) as *const u8;
                // SAFETY: it lies in guest RAM, which is mapped as long as there are chunks of it, and there are no references
                // to it. Whoever changes it meanwhile has taken the chunk.
                unsafe { copy(from, part) };
                each(part);
            }
            done = end;
        }
        to[done..self.host.len()].fill(0);
        each(&to[done..self.host.len()]);
    }

    /// What it holds, whose RAM was tagged.
    pub(super) fn held(&self, tagger: &mut ChunkTagger) -> tag::Chunk {
        tagger.zeros(self.padding);
        tagger.finish()
    }
}

fn in_pieces(memory: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = memory.end;
    memory.clone().step_by(PIECE_BYTES).map(move |start| start..end.min(start + PIECE_BYTES))
}

/// # Safety
/// As [`stream::copy`].
unsafe fn copy_cached(from: *const u8, to: &mut [u8]) {
    // SAFETY: as said.
    unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
}

impl Area {
    pub(super) fn advise(&self, advice: libc::c_int) {
        // SAFETY: the area is mapped as long as RAM is; what a child sees of it changes nothing here.
        unsafe { libc::madvise(self.host.start as *mut libc::c_void, self.host.len(), advice) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use vm_memory::Bytes;

    use super::super::super::present::Scanner;
    use super::super::straight::Straight;
    use super::*;
    use crate::limits::PAGE_BYTES;
    use crate::memory;
    use crate::tag::Tagging;

    const BYTES: usize = 3 * PAGE_BYTES as usize;

    /// Two regions of three pages: after the first one's, its chunk is padded. Nobody has touched the second page of it, and
    /// what was written to the other region is zeros.
    fn memory_with_holes() -> (GuestMemoryMmap, Vec<PlannedChunk>, Present) {
        let starts = [0, 1 << 30];
        let ram =
            GuestMemoryMmap::<()>::from_ranges(&starts.map(|start| (GuestAddress(start), BYTES))).expect("memory");
        for (bytes, address) in [(&[0; 9], starts[1]), (&[2; 9], 600), (&[3; 9], 2 * PAGE_BYTES)] {
            ram.write_slice(bytes, GuestAddress(address)).expect("it is RAM");
        }
        let planned: Vec<_> = memory::plan(&memory::lay_out(&ram).expect("it is RAM")).collect();
        let (_, areas) = of(&ram, &planned).expect("it is RAM");
        let mut scanner = Scanner::new().expect("the kernel tells");
        scanner.look(areas.iter().map(|area| &area.host)).expect("the kernel tells");
        (ram, planned, scanner.finish())
    }

    /// The first chunk, with what it is padded with.
    fn whole(ram: &GuestMemoryMmap) -> Vec<u8> {
        let mut whole = vec![0; CHUNK_BYTES as usize];
        ram.read_slice(&mut whole[..BYTES], GuestAddress(0)).expect("it is RAM");
        whole
    }

    #[test]
    fn a_copy_has_the_tag_of_the_whole_chunk_and_so_has_a_copy_of_it() {
        let (ram, planned, present) = memory_with_holes();
        let (chunks, _) = of(&ram, &planned).expect("it is RAM");
        let whole = whole(&ram);
        for tagging in [Tagging::Mac([7; 16]), Tagging::Hash] {
            let mut tagger = ChunkTagger::new(tagging);
            let held = tag::Chunk::Data(tagging.tag(&whole));
            let [mut copy, mut tagged, mut again] = [(); 3].map(|()| vec![9; BYTES]);
            assert_eq!(chunks[1].copy_tagging(&present, &mut tagged, &mut tagger), tag::Chunk::Zero);
            assert_eq!(chunks[0].copy_tagging(&present, &mut tagged, &mut tagger), held);
            assert_eq!(chunks[0].copy_again(&tagged, &mut again, &mut tagger), held);
            chunks[0].copy(&present, &mut copy);
            assert!([&copy, &tagged, &again].iter().all(|copy| **copy == whole[..BYTES]));
        }
    }

    #[test]
    fn what_is_written_straight_has_the_tag_of_the_whole_chunk_and_holes_where_nothing_is() {
        let (ram, planned, present) = memory_with_holes();
        let (chunks, _) = of(&ram, &planned).expect("it is RAM");
        let whole = whole(&ram);
        let file = tempfile::tempfile_in("/dev/shm").expect("there is memory");
        let straight = Straight::to(&file).expect("it is in memory");
        let pages = || file.metadata().expect("it is open").blocks() * 512 / PAGE_BYTES;
        let is_written = || {
            let mut written = vec![0; BYTES];
            file.read_exact_at(&mut written, chunks[0].file_start).expect("so much is there");
            written == whole[..BYTES]
        };
        let tagging = Tagging::Mac([7; 16]);
        let mut tagger = ChunkTagger::new(tagging);
        let mut written = |chunk: &Chunk| straight.write(chunk, chunk.pieces(&present), &mut tagger).expect("writes");
        assert_eq!(
            [&chunks[1], &chunks[0]].map(&mut written),
            [tag::Chunk::Zero, tag::Chunk::Data(tagging.tag(&whole))]
        );
        assert!(is_written() && pages() == 2);
        straight.undo(&chunks[0]).expect("it can be done");
        assert_eq!(pages(), 0);

        let mut copy = vec![9; CHUNK_BYTES as usize];
        chunks[0].copy(&present, &mut copy);
        let pieces = chunks[0].pieces_of(VolatileSlice::from(&mut copy[..]));
        let held = straight.write(&chunks[0], pieces, &mut tagger).expect("writes");
        assert_eq!(held, tag::Chunk::Data(tagging.tag(&whole)));
        assert!(is_written());
    }
}
