//! Chunk maps: what a large file of an image holds, 2 MiB at a time, and where guest RAM lies in it.
//!
//! The file `memory` has its map in `memory.map`, `disks/root` in `disks/root.map`. Little-endian:
//!
//! ```text
//!  0  8  magic "CKVMMMAP"
//!  8  4  format version, 2; or 1, without a key
//! 12  4  bytes in a chunk, 2 MiB
//! 16  8  length of the file, bytes: it has N = ceil(length / 2 MiB) chunks, the last perhaps a short one
//! 24  4  R, number of regions: 0 for a disk
//! 28  4  reserved, 0
//! 32  8  D, number of data chunks
//! 40 16  key of the tags, in version 2
//!    24 R  regions: guest address, bytes, offset in the file
//!     N     one byte a chunk: 0 zero, 1 data
//!     32 D  tags of the data chunks, in order
//! ```
//!
//! Invariants: the regions ascend without overlap and each begins at the next chunk boundary of the file after the one
//! before, so that a chunk belongs to one region; the bytes between are zero. A chunk of zeros is marked zero, never
//! data, so under one key one content has one map.

use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Flaw, Result, Versions};
use crate::limits::{CHUNK_BYTES, IMAGE_FILE_BYTES_MAX, PAGE_BYTES, REGIONS_MAX};
use crate::tag::{Chunk, Tag, Tagging};
use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"CKVMMMAP";
/// With BLAKE3 digests for tags.
const VERSION_HASH: u16 = 1;
const VERSION_MAC: u16 = 2;
const VERSIONS: Versions = Versions { oldest: VERSION_HASH, newest: VERSION_MAC };
const HEADER_BYTES: u64 = 40;
const KEY_BYTES: u64 = 16;
const REGION_BYTES: u64 = 24;
const TAG_BYTES: u64 = 32;

/// A range of guest RAM and where it lies in the memory file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest physical address of its first byte.
    pub guest_address: u64,
    /// Its length in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Offset of its first byte in the memory file, a multiple of 2 MiB.
    pub file_offset: u64,
}

impl Region {
    /// First offset of the memory file that is not this region's.
    pub fn file_end(&self) -> u64 {
        self.file_offset + self.bytes
    }

    /// Lays regions, given as (guest address, bytes), out in a file.
    ///
    /// # Errors
    /// [`Error::Memory`] if there are none or too many, or they overlap, do not ascend, or are not whole pages.
    pub(crate) fn lay_out(ranges: impl IntoIterator<Item = (u64, u64)>) -> Result<Vec<Region>> {
        let refuse = |why: String| Err(Error::Memory { why });
        let mut regions: Vec<Region> = Vec::new();
        let (mut guest_end, mut file_end) = (0, 0_u64);
        for (guest_address, bytes) in ranges {
            if regions.len() == REGIONS_MAX {
                return refuse(format!("has more than {REGIONS_MAX} regions"));
            }
            if bytes == 0 || bytes % PAGE_BYTES != 0 || guest_address % PAGE_BYTES != 0 {
                return refuse(format!("{bytes} bytes at {guest_address:#x} are not whole pages"));
            }
            let file_offset = file_end.next_multiple_of(CHUNK_BYTES);
            let end = guest_address.checked_add(bytes).filter(|_| bytes <= IMAGE_FILE_BYTES_MAX - file_offset);
            let Some(end) = end else {
                return refuse(format!("{bytes} bytes at {guest_address:#x} are more than an image holds"));
            };
            if guest_address < guest_end {
                return refuse(format!("the region at {guest_address:#x} overlaps or precedes the one before"));
            }
            guest_end = end;
            file_end = file_offset + bytes;
            regions.push(Region { guest_address, bytes, file_offset });
        }
        if regions.is_empty() {
            return refuse("has no regions".to_owned());
        }
        Ok(regions)
    }
}

/// What each 2 MiB chunk of a large file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    file_bytes: u64,
    regions: Vec<Region>,
    tagging: Tagging,
    /// True for data, one a chunk.
    is_data: Vec<bool>,
    /// One for each data chunk, in order.
    tags: Vec<Tag>,
}

impl ChunkMap {
    /// A map of a file of `file_bytes` to which every chunk has yet to be pushed.
    pub(crate) fn for_file(file_bytes: u64, tagging: Tagging) -> ChunkMap {
        ChunkMap { file_bytes, regions: Vec::new(), tagging, is_data: Vec::new(), tags: Vec::new() }
    }

    /// A map of a memory file, to which every chunk has yet to be pushed.
    pub(crate) fn for_memory(regions: Vec<Region>, tagging: Tagging) -> ChunkMap {
        let file_bytes = regions.last().map_or(0, Region::file_end);
        ChunkMap { regions, ..ChunkMap::for_file(file_bytes, tagging) }
    }

    /// Says what the next chunk holds.
    pub(crate) fn push(&mut self, chunk: Chunk) {
        debug_assert!((self.is_data.len() as u64) < chunk_count(self.file_bytes), "no more chunks than the file has");
        self.is_data.push(matches!(chunk, Chunk::Data(_)));
        if let Chunk::Data(tag) = chunk {
            self.tags.push(tag);
        }
    }

    /// Length of the file, bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Regions of guest RAM; empty for a disk.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// How its tags are made.
    pub fn tagging(&self) -> Tagging {
        self.tagging
    }

    /// Every chunk with its range of the file, in order.
    pub fn chunks(&self) -> impl Iterator<Item = (Range<u64>, Chunk)> {
        let mut tags = self.tags.iter();
        chunk_ranges(self.file_bytes).zip(&self.is_data).map(move |(range, is_data)| {
            let tag = if *is_data { tags.next() } else { None };
            (range, tag.map_or(Chunk::Zero, |tag| Chunk::Data(*tag)))
        })
    }

    /// Bytes in data chunks.
    pub fn data_bytes(&self) -> u64 {
        self.chunks().filter(|(_, chunk)| *chunk != Chunk::Zero).map(|(range, _)| range.end - range.start).sum()
    }

    /// The bytes of the map file. Equal maps give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert_eq!(self.is_data.len() as u64, chunk_count(self.file_bytes), "every chunk was pushed");
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        let (version, key) = match &self.tagging {
            Tagging::Hash => (VERSION_HASH, &[][..]),
            Tagging::Mac(key) => (VERSION_MAC, &key[..]),
        };
        out.extend_from_slice(&u32::from(version).to_le_bytes());
        out.extend_from_slice(&(CHUNK_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&self.file_bytes.to_le_bytes());
        out.extend_from_slice(&(self.regions.len() as u32).to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&(self.tags.len() as u64).to_le_bytes());
        out.extend_from_slice(key);
        for region in &self.regions {
            out.extend_from_slice(&region.guest_address.to_le_bytes());
            out.extend_from_slice(&region.bytes.to_le_bytes());
            out.extend_from_slice(&region.file_offset.to_le_bytes());
        }
        out.extend(self.is_data.iter().map(|is_data| u8::from(*is_data)));
        for tag in &self.tags {
            out.extend_from_slice(&tag.0);
        }
        out
    }

    /// Reads what [`ChunkMap::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::FormatVersion`] and [`Error::Damaged`], which name a file `map`.
    pub fn decode(bytes: &[u8]) -> Result<ChunkMap> {
        Self::parse(bytes).map_err(|flaw| flaw.at(Path::new("map")))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<ChunkMap, Flaw> {
        let mut reader = Reader::new(bytes);
        let version = reader.header(MAGIC, VERSIONS, "chunk map")?;
        let chunk_bytes = reader.u32()?;
        let file_bytes = reader.u64()?;
        let region_count = reader.u32()?;
        let reserved = reader.u32()?;
        let data_count = reader.u64()?;
        let (tagging, key_bytes) = match version {
            VERSION_HASH => (Tagging::Hash, 0),
            _ => (Tagging::Mac(reader.array()?), KEY_BYTES),
        };
        if u64::from(chunk_bytes) != CHUNK_BYTES || reserved != 0 || file_bytes > IMAGE_FILE_BYTES_MAX {
            return Err(Flaw::broken("its header holds values that ckvmm does not write"));
        }
        let count = chunk_count(file_bytes);
        if region_count as usize > REGIONS_MAX || data_count > count {
            return Err(Flaw::broken("it states more regions or data chunks than there can be"));
        }
        // Bounded by the checks above, so it cannot overflow; the length of the input bounds every allocation below.
        let expected =
            HEADER_BYTES + key_bytes + REGION_BYTES * u64::from(region_count) + count + TAG_BYTES * data_count;
        if bytes.len() as u64 != expected {
            return Err(Flaw::broken(format!("it is {} bytes long and states {expected}", bytes.len())));
        }
        let regions = parse_regions(&mut reader, region_count, file_bytes)?;
        let kinds = reader.bytes(count as usize)?;
        if kinds.iter().any(|kind| *kind > 1) || kinds.iter().filter(|kind| **kind == 1).count() as u64 != data_count {
            return Err(Flaw::broken("its chunks are not what its header states"));
        }
        let is_data = kinds.iter().map(|kind| *kind == 1).collect();
        let tags = (0..data_count).map(|_| reader.array().map(Tag)).collect::<Result<_, Flaw>>()?;
        reader.end()?;
        Ok(ChunkMap { file_bytes, regions, tagging, is_data, tags })
    }
}

fn parse_regions(reader: &mut Reader<'_>, count: u32, file_bytes: u64) -> Result<Vec<Region>, Flaw> {
    let mut regions = Vec::new();
    for _ in 0..count {
        let (guest_address, bytes, file_offset) = (reader.u64()?, reader.u64()?, reader.u64()?);
        regions.push(Region { guest_address, bytes, file_offset });
    }
    if regions.is_empty() {
        return Ok(regions);
    }
    let laid_out = Region::lay_out(regions.iter().map(|region| (region.guest_address, region.bytes)))
        .map_err(|error| Flaw::broken(error.to_string()))?;
    if laid_out != regions || laid_out.last().is_none_or(|last| last.file_end() != file_bytes) {
        return Err(Flaw::broken("its regions do not lie in the file as ckvmm lays them out"));
    }
    Ok(regions)
}

/// How many chunks a file has.
pub(crate) fn chunk_count(file_bytes: u64) -> u64 {
    file_bytes.div_ceil(CHUNK_BYTES)
}

/// The chunks of a file, in order.
pub(crate) fn chunk_ranges(file_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    (0..chunk_count(file_bytes)).map(move |index| {
        let start = index * CHUNK_BYTES;
        start..(start + CHUNK_BYTES).min(file_bytes)
    })
}

#[cfg(test)]
mod tests;
