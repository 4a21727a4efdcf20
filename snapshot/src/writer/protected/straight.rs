//! Chunks that the copier writes itself: to a file system that is memory, where it has one CPU together with the child.
//!
//! Of a chunk that it hands over the child makes one more copy, on that same CPU. So the kernel copies it from guest RAM to
//! the file, it is tagged while it is in the cache, and the child is only told.
//!
//! Invariants: where somebody else has taken a chunk by the time that it is written, the file holds nothing of it. Where
//! nobody has, it was protected all the time: RAM is read more than once for it, and was the same.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vm_memory::VolatileSlice;

use super::chunks::Chunk;
use crate::files;
use crate::limits::CHUNK_BYTES;
use crate::tag::{self, ChunkTagger, is_zero};

/// This part of the room that there is may be taken before somebody looks again, which takes a while; and no more than
/// so many chunks, for others take it, too.
const PART_OF_ROOM: u64 = 4;
const MOST: u64 = 32;

/// The copier's way to the memory file.
#[derive(Debug)]
pub(in super::super) struct Straight {
    file: File,
    /// So many more chunks may be written.
    allowed: u64,
}

impl Straight {
    /// To `file`, if that is in memory. Where that cannot be had the child writes.
    pub(in super::super) fn to(file: &File) -> Option<Straight> {
        let is_memory = fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
        // Opened once more, it has a position of its own.
        let open = || OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        Some(Straight { file: is_memory.then(open)??, allowed: 0 })
    }

    /// Whether memory for one more chunk may be taken, where there is `room` for so many bytes: it is this process that
    /// takes it, and in doubt an out-of-memory killer would take the VM.
    pub(super) fn may_take_one(&mut self, room: impl FnOnce() -> u64) -> bool {
        if self.allowed == 0 {
            self.allowed = (room() / PART_OF_ROOM / CHUNK_BYTES).min(MOST);
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
        let copied = memory.offset(start).expect("it begins before the end").copy_to(part);
        each(&part[..copied])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_memory_gets_scarce_one_looks_again_sooner() {
        let file = tempfile::tempfile_in("/dev/shm").expect("there is memory");
        let mut straight = Straight::to(&file).expect("it is in memory");
        let mut room = 64 * CHUNK_BYTES;
        let mut looked_after = Vec::new();
        for written in 0.. {
            let may = straight.may_take_one(|| {
                looked_after.push(written);
                room
            });
            if !may {
                break;
            }
            room -= CHUNK_BYTES;
        }
        assert_eq!(looked_after, [0, 16, 28, 37, 43, 48, 52, 55, 57, 58, 59, 60, 61]);
        assert!(straight.may_take_one(|| u64::MAX) && straight.allowed == MOST - 1);
    }
}
