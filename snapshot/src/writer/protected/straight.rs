//! Chunks that the copier writes itself: to a file system that is memory, where it has one CPU together with the child.
//!
//! Of a chunk that it hands over the child makes one more copy, on that same CPU. So the kernel copies it from guest RAM to
//! the file, it is tagged while it is in the cache, and the child is only told.
//!
//! Invariant: where somebody else has taken a chunk by the time that it is written, the file holds nothing of it.

use std::fs::File;
use std::io;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vm_memory::VolatileSlice;

use super::chunks::Chunk;
use crate::files;
use crate::limits::CHUNK_BYTES;
use crate::tag::{self, ChunkTagger, is_zero};

/// This part of the room that there is may be taken before somebody looks again, which takes a while.
const PART_OF_ROOM: u64 = 4;

/// The copier's way to the memory file.
#[derive(Debug)]
pub(in super::super) struct Straight {
    file: File,
    /// So many more chunks may be written.
    allowed: u64,
}

impl Straight {
    /// To `file`, if that is in memory.
    pub(in super::super) fn to(file: &File) -> io::Result<Option<Straight>> {
        let is_memory = fstatfs(file)?.filesystem_type() == TMPFS_MAGIC;
        is_memory.then(|| Ok(Straight { file: file.try_clone()?, allowed: 0 })).transpose()
    }

    /// Whether one more chunk may be written, where there is `room` for so many bytes: it is this process that takes that
    /// memory, and in doubt an out-of-memory killer would take the VM.
    pub(super) fn may(&mut self, room: impl FnOnce() -> u64) -> bool {
        if self.allowed == 0 {
            self.allowed = room() / PART_OF_ROOM / CHUNK_BYTES;
        }
        let may = self.allowed > 0;
        self.allowed = self.allowed.saturating_sub(1);
        may
    }

    /// Writes `pieces` of a chunk, each with where it begins in that, which is zero between them. Returns what it holds.
    pub(super) fn write<'m>(
        &self,
        chunk: &Chunk,
        pieces: impl Iterator<Item = (usize, VolatileSlice<'m>)>,
        tagger: &mut ChunkTagger,
    ) -> io::Result<tag::Chunk> {
        let (mut done, mut part) = (0, vec![0; tagger.part_bytes()]);
        for (start, piece) in pieces {
            tagger.zeros((start - done) as u64);
            if all_parts(&piece, &mut part, is_zero) {
                tagger.zeros(piece.len() as u64);
            } else {
                files::write_memory_at(&self.file, &piece, chunk.file_start + start as u64)?;
                all_parts(&piece, &mut part, |part| {
                    tagger.add(part);
                    true
                });
            }
            done = start + piece.len();
        }
        tagger.zeros((chunk.host.len() - done) as u64);
        Ok(chunk.held(tagger))
    }

    /// The file holds nothing of that chunk.
    pub(super) fn undo(&self, chunk: &Chunk) -> io::Result<()> {
        files::punch_hole(&self.file, chunk.file_start, CHUNK_BYTES as usize)
    }
}

/// Whether `each` is true of every part of `memory`, from a copy of it in `part`.
fn all_parts(memory: &VolatileSlice<'_>, part: &mut [u8], mut each: impl FnMut(&[u8]) -> bool) -> bool {
    (0..memory.len()).step_by(part.len()).all(|start| {
        // It is not behind the end.
        let copied = memory.offset(start).map_or(0, |rest| rest.copy_to(part));
        each(&part[..copied])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_memory_gets_scarce_one_looks_again_sooner() {
        let file = tempfile::tempfile_in("/dev/shm").expect("there is memory");
        let mut straight = Straight::to(&file).expect("it is open").expect("it is in memory");
        let mut room = 64 * CHUNK_BYTES;
        let mut looked_after = Vec::new();
        for written in 0.. {
            let may = straight.may(|| {
                looked_after.push(written);
                room
            });
            if !may {
                break;
            }
            room -= CHUNK_BYTES;
        }
        assert_eq!(looked_after, [0, 16, 28, 37, 43, 48, 52, 55, 57, 58, 59, 60, 61]);
    }

    #[test]
    fn a_disk_is_no_memory() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).expect("it can be written to");
        assert!(Straight::to(&file).expect("it is open").is_none());
    }
}
