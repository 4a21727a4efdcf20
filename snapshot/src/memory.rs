//! Guest RAM to and from a sparse file.
//!
//! ```text
//! guest   0            3 GiB        4 GiB     5 GiB
//!         |  region 0    |   (hole)   | region 1 |
//! memory  |  region 0    | region 1 |       each region from a 2 MiB boundary on, holes where chunks are zero
//! ```
//!
//! RAM is copied out of the guest 256 KiB at a time, and digest and write work on the copy, which is still in the
//! core's cache: what is digested is what is written even if somebody wrote to that RAM meanwhile, no reference to
//! memory that another thread may change ever exists, and it costs nothing that can be measured, since the time goes
//! into bringing RAM to the core, which happens once.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::chunk_map::{ChunkMap, Region, chunk_ranges};
use crate::digest::{Chunk, ChunkDigester};
use crate::error::{Error, Result};
use crate::files;
use crate::limits::{CHUNK_BYTES, PIECE_BYTES, RUNS_MAX};
use crate::progress::{Phase, Progress};
use crate::sparse::Named;
use crate::untouched::Untouched;

/// What an error says was being done.
pub(crate) const WRITING: &str = "write guest memory to it";

/// Where the regions of `memory` lie in a memory file.
pub(crate) fn lay_out(memory: &GuestMemoryMmap) -> Result<Vec<Region>> {
    Region::lay_out(memory.iter().map(|region| (region.start_addr().raw_value(), region.len())))
}

/// Length of the memory file of `regions`.
pub(crate) fn file_bytes(regions: &[Region]) -> u64 {
    regions.last().map_or(0, Region::file_end)
}

/// Writes guest RAM to the new, empty file `to`, chunk by chunk in order. Zero chunks stay holes.
pub(crate) fn write(memory: &GuestMemoryMmap, mapped: &[Run], to: Named<'_>, progress: &Progress) -> Result<ChunkMap> {
    let regions = lay_out(memory)?;
    let mut map = ChunkMap::for_memory(regions.clone());
    let file_bytes = file_bytes(&regions);
    files::set_len(to.file, to.path, file_bytes)?;
    progress.begin(Phase::Memory, regions.iter().map(|region| region.bytes).sum());
    let mut writer = ChunkWriter::new(mapped);
    writer.begin();
    for planned in plan(&regions) {
        let chunk = writer
            .write(memory, &planned, to.file)
            .map_err(|source| Error::io_wanting(to.path, WRITING, file_bytes, source))?;
        map.push(chunk);
        progress.advance(planned.guest_bytes)?;
    }
    Ok(map)
}

/// One chunk of a memory file and the RAM that goes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedChunk {
    /// Index of the region that it belongs to.
    pub(crate) region: usize,
    /// Its place in the file.
    pub(crate) file: Range<u64>,
    /// Where its RAM begins.
    pub(crate) guest_address: u64,
    /// Bytes of RAM; what is left of the chunk is zero.
    pub(crate) guest_bytes: u64,
}

/// The chunks of the memory file of `regions`, in order.
pub(crate) fn plan(regions: &[Region]) -> impl Iterator<Item = PlannedChunk> {
    let file_bytes = file_bytes(regions);
    let mut regions = regions.iter().enumerate().peekable();
    chunk_ranges(file_bytes).map_while(move |file| {
        while regions.peek()?.1.file_end() <= file.start {
            regions.next();
        }
        let (index, region) = *regions.peek()?;
        let guest_address = region.guest_address + (file.start - region.file_offset);
        let guest_bytes = (region.file_end() - file.start).min(CHUNK_BYTES);
        Some(PlannedChunk { region: index, file, guest_address, guest_bytes })
    })
}

/// Writes chunks of RAM. Once made it allocates nothing, takes no lock and touches only its arguments, so that it can
/// also run in a process that was forked from a threaded one.
pub(crate) struct ChunkWriter {
    piece: Box<[u8]>,
    digester: ChunkDigester,
    untouched: Untouched,
}

impl ChunkWriter {
    /// `mapped` are the runs of RAM, ascending, over which a file is mapped.
    pub(crate) fn new(mapped: &[Run]) -> Self {
        ChunkWriter {
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
            digester: ChunkDigester::new(),
            untouched: Untouched::new(mapped),
        }
    }

    /// To be called in the process that writes.
    pub(crate) fn begin(&mut self) {
        self.untouched.begin();
    }

    /// Digests a chunk and writes those of its pieces that are not zero.
    pub(crate) fn write(&mut self, memory: &GuestMemoryMmap, planned: &PlannedChunk, to: &File) -> io::Result<Chunk> {
        self.untouched.look(memory, planned);
        let mut done = 0;
        while done < planned.guest_bytes {
            let count = (planned.guest_bytes - done).min(PIECE_BYTES as u64) as usize;
            if self.untouched.is(done, count) {
                self.digester.zeros(count as u64);
                done += count as u64;
                continue;
            }
            let piece = &mut self.piece[..count];
            let slice = memory
                .get_slice(GuestAddress(planned.guest_address + done), count)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            slice.copy_to(piece);
            if self.digester.piece(piece) {
                files::write_at(to, piece, planned.file.start + done)?;
            }
            done += count as u64;
        }
        self.digester.zeros(planned.file.end - planned.file.start - planned.guest_bytes);
        Ok(self.digester.finish())
    }
}

/// Guest RAM of an open image: a file of checked length and its map. The content is not yet compared with its digests.
#[derive(Debug)]
pub struct MemoryImage {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) map: ChunkMap,
}

/// Consecutive bytes of guest RAM that lie in the memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Its length in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Offset of its first byte in the memory file, a multiple of 2 MiB.
    pub file_offset: u64,
}

impl Run {
    /// First guest physical address after it.
    pub fn guest_end(&self) -> u64 {
        self.guest_address + self.bytes
    }
}

impl MemoryImage {
    /// The regions of guest RAM, ascending.
    pub fn regions(&self) -> &[Region] {
        self.map.regions()
    }

    /// The memory file, open for reading. It is at least as long as the last region needs and never changes; map it
    /// private.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path of the memory file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Guest RAM, bytes.
    pub fn bytes(&self) -> u64 {
        self.regions().iter().map(|region| region.bytes).sum()
    }

    /// Bytes of RAM in chunks that hold data.
    pub fn data_bytes(&self) -> u64 {
        self.map.data_bytes()
    }

    /// The runs that hold data, ascending, none across the border of two regions; everything else is zero. Runs next to
    /// each other are one, and if there are still more than [`RUNS_MAX`], those with the least zeros between them are
    /// made one.
    pub fn data_runs(&self) -> Vec<Run> {
        merge(runs(&self.map), RUNS_MAX)
    }
}

/// Maximal runs of data chunks, each with the index of its region.
fn runs(map: &ChunkMap) -> Vec<(usize, Run)> {
    let mut runs: Vec<(usize, Run)> = Vec::new();
    for (planned, (_, chunk)) in plan(map.regions()).zip(map.chunks()) {
        if chunk == Chunk::Zero {
            continue;
        }
        let PlannedChunk { region, file, guest_address, guest_bytes } = planned;
        match runs.last_mut() {
            Some((same, last)) if *same == region && last.guest_end() == guest_address => last.bytes += guest_bytes,
            _ => runs.push((region, Run { guest_address, bytes: guest_bytes, file_offset: file.start })),
        }
    }
    runs
}

/// Closes the smallest gaps within regions until at most `most` runs are left, or no such gaps are.
fn merge(runs: Vec<(usize, Run)>, most: usize) -> Vec<Run> {
    let excess = runs.len().saturating_sub(most);
    let mut gaps: Vec<(u64, usize)> = runs
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0].0 == pair[1].0)
        .map(|(index, pair)| (pair[1].1.guest_address - pair[0].1.guest_end(), index + 1))
        .collect();
    gaps.sort_unstable();
    let mut joins_previous = vec![false; runs.len()];
    gaps.iter().take(excess).for_each(|(_, index)| joins_previous[*index] = true);
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len() - excess);
    for ((_, run), joins) in runs.into_iter().zip(joins_previous) {
        match merged.last_mut() {
            Some(last) if joins => last.bytes = run.guest_end() - last.guest_address,
            _ => merged.push(run),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn map(ranges: &[(u64, u64)], is_data: impl Fn(usize) -> bool) -> ChunkMap {
        let mut map = ChunkMap::for_memory(Region::lay_out(ranges.iter().copied()).expect("regions"));
        for index in 0..chunk_ranges(map.file_bytes()).count() {
            map.push(if is_data(index) { Chunk::Data(Digest([1; 32])) } else { Chunk::Zero });
        }
        map
    }

    #[test]
    fn a_plan_covers_ram_once() {
        let regions = Region::lay_out([(0, 3 << 20), (8 << 20, 4 << 20), (1 << 40, 4096)]).expect("regions");
        let found: Vec<_> = plan(&regions)
            .map(|chunk| (chunk.region, chunk.file.start, chunk.guest_address, chunk.guest_bytes))
            .collect();
        let mib = 1 << 20;
        assert_eq!(
            found,
            [
                (0, 0, 0, 2 * mib),
                (0, 2 * mib, 2 * mib, mib),
                (1, 4 * mib, 8 * mib, 2 * mib),
                (1, 6 * mib, 10 * mib, 2 * mib),
                (2, 8 * mib, 1 << 40, 4096),
            ]
        );
    }

    #[test]
    fn runs_end_with_their_region() {
        // Next to each other both in the guest and in the file, yet two mappings.
        let found = merge(runs(&map(&[(0, 4 << 20), (4 << 20, 4 << 20)], |_| true)), RUNS_MAX);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Run { guest_address: 0, bytes: 4 << 20, file_offset: 0 });
        assert_eq!(found[1], Run { guest_address: 4 << 20, bytes: 4 << 20, file_offset: 4 << 20 });
    }

    #[test]
    fn the_smallest_gaps_are_closed_first() {
        let data = [0, 2, 3, 7, 9, 20];
        let runs = runs(&map(&[(0, 64 << 20)], |index| data.contains(&index)));
        let in_chunks = |most| -> Vec<(u64, u64)> {
            let merged = merge(runs.clone(), most);
            merged.iter().map(|run| (run.guest_address / CHUNK_BYTES, run.bytes / CHUNK_BYTES)).collect()
        };
        assert_eq!(in_chunks(9), [(0, 1), (2, 2), (7, 1), (9, 1), (20, 1)]);
        assert_eq!(in_chunks(4), [(0, 4), (7, 1), (9, 1), (20, 1)]);
        assert_eq!(in_chunks(3), [(0, 4), (7, 3), (20, 1)]);
        assert_eq!(in_chunks(2), [(0, 10), (20, 1)]);
        assert_eq!(in_chunks(1), [(0, 21)]);
    }

    #[test]
    fn a_terabyte_of_every_other_chunk_stays_within_the_bound() {
        let map = map(&[(0, 3 << 30), (4 << 30, 1021 << 30)], |index| index % 2 == 0);
        let merged = merge(runs(&map), RUNS_MAX);
        assert!(merged.len() <= RUNS_MAX, "{}", merged.len());
        let mut end = 0;
        for run in &merged {
            assert!(run.guest_address >= end, "ascending, without overlap");
            end = run.guest_end();
        }
        assert!(merged.iter().map(|run| run.bytes).sum::<u64>() >= map.data_bytes());
    }
}
