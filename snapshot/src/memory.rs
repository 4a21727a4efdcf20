//! Guest RAM to and from a sparse file.
//!
//! ```text
//! guest   0            3 GiB        4 GiB     5 GiB
//!         |  region 0    |   (hole)   | region 1 |
//! memory  |  region 0    | region 1 |       each region from a 2 MiB boundary on, holes where chunks are zero
//! ```

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::chunk_map::{Region, chunk_ranges};
use crate::error::Result;
use crate::large::LargeFile;
use crate::limits::{CHUNK_BYTES, RUNS_MAX};
use crate::tag::Chunk;

/// Where the regions of `memory` lie in a memory file.
pub(crate) fn lay_out(memory: &GuestMemoryMmap) -> Result<Vec<Region>> {
    Region::lay_out(memory.iter().map(|region| (region.start_addr().raw_value(), region.len())))
}

/// Length of the memory file of `regions`.
pub(crate) fn file_bytes(regions: &[Region]) -> u64 {
    regions.last().map_or(0, Region::file_end)
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

impl PlannedChunk {
    /// Bytes that are zero in the file, after its RAM.
    pub(crate) fn padding(&self) -> u64 {
        self.file.end - self.file.start - self.guest_bytes
    }
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

/// Guest RAM of an open image. The content is not yet compared with its digests.
#[derive(Debug)]
pub struct MemoryImage(pub(crate) LargeFile);

/// Consecutive bytes of guest RAM that lie in one layer of the memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Its length in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Offset of its first byte in the layer's file, a multiple of 4 KiB.
    pub file_offset: u64,
    /// Which of the image's [`MemoryImage::layer`]s.
    pub layer: usize,
}

impl Run {
    /// First guest physical address after it.
    pub fn guest_end(&self) -> u64 {
        self.guest_address + self.bytes
    }

    /// What of it is at these guest addresses, which are its own.
    pub fn part(&self, guest: Range<u64>) -> Run {
        let file_offset = self.file_offset + (guest.start - self.guest_address);
        Run { guest_address: guest.start, bytes: guest.end - guest.start, file_offset, layer: self.layer }
    }

    /// First offset of the file after it.
    fn file_end(&self) -> u64 {
        self.file_offset + self.bytes
    }

    /// True if `next` is in the guest what comes next after this.
    fn is_before(&self, next: &Run) -> bool {
        self.guest_end() == next.guest_address && self.file_end() == next.file_offset
    }
}

/// How guest RAM comes from the files of an image: what is in neither list is zero.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RamPlan {
    /// To be mapped, ascending, none across the border of two regions.
    pub mapped: Vec<Run>,
    /// To be read, over what was mapped.
    pub read: Vec<Run>,
}

impl MemoryImage {
    /// The regions of guest RAM, ascending.
    pub fn regions(&self) -> &[Region] {
        self.0.map.regions()
    }

    /// The file of a layer, open for reading. It is at least as long as the last region needs and never changes; map it
    /// private.
    pub fn layer(&self, layer: usize) -> &File {
        &self.0.files[layer].file
    }

    /// The path of the image's own memory file, for messages.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.0.files.len()
    }

    /// Guest RAM, bytes.
    pub fn bytes(&self) -> u64 {
        self.regions().iter().map(|region| region.bytes).sum()
    }

    /// Bytes of RAM in chunks that hold data.
    pub fn data_bytes(&self) -> u64 {
        self.0.map.data_bytes()
    }

    /// How to make RAM of it: at most [`RUNS_MAX`] runs are mapped. Runs next to each other are one. If that does not
    /// suffice, of a file without layers those with the least zeros between them are made one; else the shortest are
    /// read.
    pub fn plan(&self) -> RamPlan {
        let runs = runs(&self.0);
        if self.0.layers.is_single() {
            return RamPlan { mapped: merge(runs, RUNS_MAX), read: Vec::new() };
        }
        read_the_shortest(runs, RUNS_MAX)
    }
}

/// Maximal runs of data, each with the index of its region.
fn runs(file: &LargeFile) -> Vec<(usize, Run)> {
    let mut runs: Vec<(usize, Run)> = Vec::new();
    for (planned, (_, chunk)) in plan(file.map.regions()).zip(file.map.chunks()) {
        if chunk == Chunk::Zero {
            continue;
        }
        let PlannedChunk { region, file: place, guest_address, guest_bytes } = planned;
        for (layer, part) in file.layers.runs(place.start..place.start + guest_bytes) {
            let guest_address = guest_address + (part.start - place.start);
            let run = Run { guest_address, bytes: part.end - part.start, file_offset: part.start, layer };
            match runs.last_mut() {
                Some((same, last)) if *same == region && last.layer == layer && last.is_before(&run) => {
                    last.bytes += run.bytes;
                }
                _ => runs.push((region, run)),
            }
        }
    }
    runs
}

/// Closes the smallest gaps within regions until at most `most` runs are left, or no such gaps are: the file has zeros
/// there.
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

/// Takes the shortest runs out until at most `most` are left: what is mapped before one goes on below it, so that it
/// splits no mapping, and it is read over that.
fn read_the_shortest(runs: Vec<(usize, Run)>, most: usize) -> RamPlan {
    let excess = runs.len().saturating_sub(most);
    let mut by_length: Vec<(u64, usize)> =
        runs.iter().enumerate().map(|(index, (_, run))| (run.bytes, index)).collect();
    by_length.sort_unstable();
    let mut is_read = vec![false; runs.len()];
    by_length.iter().take(excess).for_each(|(_, index)| is_read[*index] = true);
    let mut plan = RamPlan::default();
    let mut region_of_last = None;
    for ((region, run), is_read) in runs.into_iter().zip(is_read) {
        let last = plan.mapped.last_mut().filter(|last| region_of_last == Some(region) && last.is_before(&run));
        match last {
            Some(last) if is_read || last.layer == run.layer => last.bytes += run.bytes,
            _ if is_read => {}
            _ => {
                plan.mapped.push(run);
                region_of_last = Some(region);
            }
        }
        if is_read {
            plan.read.push(run);
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk_map::ChunkMap;
    use crate::layers::Layers;
    use crate::tag::{Tag, Tagging};

    fn file(ranges: &[(u64, u64)], is_data: impl Fn(usize) -> bool) -> LargeFile {
        let mut map =
            ChunkMap::for_memory(Region::lay_out(ranges.iter().copied()).expect("regions"), Tagging::Mac([0; 16]));
        for index in 0..chunk_ranges(map.file_bytes()).count() {
            map.push(if is_data(index) { Chunk::Data(Tag([1; 32])) } else { Chunk::Zero });
        }
        LargeFile { map, layers: Layers::single(), files: Vec::new() }
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
        let found = merge(runs(&file(&[(0, 4 << 20), (4 << 20, 4 << 20)], |_| true)), RUNS_MAX);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Run { guest_address: 0, bytes: 4 << 20, file_offset: 0, layer: 0 });
        assert_eq!(found[1], Run { guest_address: 4 << 20, bytes: 4 << 20, file_offset: 4 << 20, layer: 0 });
    }

    #[test]
    fn the_smallest_gaps_are_closed_first() {
        let data = [0, 2, 3, 7, 9, 20];
        let runs = runs(&file(&[(0, 64 << 20)], |index| data.contains(&index)));
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
    fn the_shortest_runs_are_read_and_split_no_mapping() {
        let run = |region, first: u64, chunks: u64, layer| {
            let (guest_address, file_offset) = (first * CHUNK_BYTES, first * CHUNK_BYTES);
            (region, Run { guest_address, bytes: chunks * CHUNK_BYTES, file_offset, layer })
        };
        // Layers by chunk, a dot for zeros: 0 0 0 1 0 0 . 2 1 1 | 1
        let runs =
            [run(0, 0, 3, 0), run(0, 3, 1, 1), run(0, 4, 2, 0), run(0, 7, 1, 2), run(0, 8, 2, 1), run(1, 10, 1, 1)];
        let plan = |most| {
            let RamPlan { mapped, read } = read_the_shortest(runs.to_vec(), most);
            let brief = |runs: Vec<Run>| -> Vec<(u64, u64, usize)> {
                runs.iter().map(|run| (run.file_offset / CHUNK_BYTES, run.bytes / CHUNK_BYTES, run.layer)).collect()
            };
            (brief(mapped), brief(read))
        };
        let all = vec![(0, 3, 0), (3, 1, 1), (4, 2, 0), (7, 1, 2), (8, 2, 1), (10, 1, 1)];
        assert_eq!(plan(6), (all, vec![]));
        let one_less = vec![(0, 6, 0), (7, 1, 2), (8, 2, 1), (10, 1, 1)];
        assert_eq!(plan(5), (one_less, vec![(3, 1, 1)]), "what is below it is mapped on");
        assert_eq!(
            plan(4),
            (vec![(0, 6, 0), (8, 2, 1), (10, 1, 1)], vec![(3, 1, 1), (7, 1, 2)]),
            "after zeros: read alone"
        );
        assert_eq!(plan(3).0, [(0, 6, 0), (8, 2, 1)], "no mapping goes on into another region");
    }

    #[test]
    fn a_terabyte_of_every_other_chunk_stays_within_the_bound() {
        let file = file(&[(0, 3 << 30), (4 << 30, 1021 << 30)], |index| index % 2 == 0);
        let merged = merge(runs(&file), RUNS_MAX);
        assert!(merged.len() <= RUNS_MAX, "{}", merged.len());
        let mut end = 0;
        for run in &merged {
            assert!(run.guest_address >= end, "ascending, without overlap");
            end = run.guest_end();
        }
        assert!(merged.iter().map(|run| run.bytes).sum::<u64>() >= file.map.data_bytes());
    }
}
