//! A trip wire on the bytes of a chunk map, and maps that lie.

use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn map() -> ChunkMap {
    let regions = Region::lay_out([(0, 3 << 20), (4 * GIB, 8192)]).expect("regions");
    let mut map = ChunkMap::for_memory(regions, Tagging::Mac([0xcc; 16]));
    map.push(Chunk::Zero);
    map.push(Chunk::Data(Tag([0xaa; 32])));
    map.push(Chunk::Data(Tag([0xbb; 32])));
    map
}

/// Moves when a byte of the format does: then [`VERSIONS`] is to be raised and a golden image added.
#[test]
fn the_bytes_are_those_of_their_version() {
    let expected: Vec<u8> = [
        b"CKVMMMAP".as_slice(),
        &[2, 0, 0, 0],
        &[0, 0, 0x20, 0],
        &[0, 0x20, 0x40, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0],
        &[0, 0, 0, 0],
        &[2, 0, 0, 0, 0, 0, 0, 0],
        &[0xcc; 16],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0x30, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 1, 0, 0, 0],
        &[0, 0x20, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0x40, 0, 0, 0, 0, 0],
        &[0, 1, 1],
        &[0xaa; 32],
        &[0xbb; 32],
    ]
    .concat();
    assert_eq!(map().encode(), expected);
    assert_eq!(ChunkMap::decode(&expected).expect("decodes"), map());
    let old = [&expected[..8], &[1, 0, 0, 0], &expected[12..40], &expected[56..]].concat();
    let hashed = ChunkMap { tagging: Tagging::Hash, ..map() };
    assert_eq!(hashed.encode(), old);
    assert_eq!(ChunkMap::decode(&old).expect("decodes"), hashed);
}

#[test]
fn chunks_know_their_place() {
    let chunks: Vec<_> = map().chunks().collect();
    assert_eq!(
        chunks,
        [
            (0..2 << 20, Chunk::Zero),
            (2 << 20..4 << 20, Chunk::Data(Tag([0xaa; 32]))),
            (4 << 20..(4 << 20) + 8192, Chunk::Data(Tag([0xbb; 32]))),
        ]
    );
    assert_eq!(map().data_bytes(), (2 << 20) + 8192);
}

#[test]
fn a_map_of_nothing_is_a_map() {
    let empty = ChunkMap::for_file(0, Tagging::Mac([0xcc; 16]));
    assert_eq!(ChunkMap::decode(&empty.encode()).expect("decodes"), empty);
    assert_eq!(empty.chunks().count(), 0);
}

#[test]
fn every_header_field_is_checked() {
    // Offset, width and value of the change.
    let lies: [(usize, u64, usize); 16] = [
        (0, 0x58, 1),                      // magic
        (12, 4096, 4),                     // chunk size
        (16, (4 << 20) + 8193, 8),         // one byte more than the regions
        (16, 6 << 20, 8),                  // more chunks
        (16, IMAGE_FILE_BYTES_MAX + 1, 8), // more than there can be
        (16, u64::MAX, 8),
        (24, 1, 4), // regions
        (24, u64::from(u32::MAX), 4),
        (28, 1, 4), // reserved
        (32, 1, 8), // data chunks
        (32, u64::MAX, 8),
        (64, u64::MAX - 4095, 8), // a region that is larger than all
        (80, u64::MAX - 4095, 8), // a region at the end of the address space
        (72, 4096, 8),            // a region elsewhere in the file
        (96, 6 << 20, 8),
        (104, 2, 1), // a kind that is none
    ];
    for (offset, value, width) in lies {
        let mut bytes = map().encode();
        bytes[offset..offset + width].copy_from_slice(&value.to_le_bytes()[..width]);
        assert!(matches!(ChunkMap::decode(&bytes), Err(Error::Damaged { .. })), "{value:#x} at {offset}");
    }
    let mut bytes = map().encode();
    bytes[8] = 7;
    let line = ChunkMap::decode(&bytes).expect_err("another version").to_string();
    assert!(line.contains("format version 7, this ckvmm reads 1 to 2"), "{line}");
    let mut bytes = map().encode();
    bytes.push(0);
    assert!(matches!(ChunkMap::decode(&bytes), Err(Error::Damaged { .. })));
}

#[test]
fn regions_are_laid_out_at_chunk_boundaries() {
    let regions = Region::lay_out([(0, 3 * GIB), (4 * GIB, 4096), (8 * GIB, 4096)]).expect("regions");
    let offsets: Vec<u64> = regions.iter().map(|region| region.file_offset).collect();
    assert_eq!(offsets, [0, 3 * GIB, 3 * GIB + CHUNK_BYTES]);
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let wrong: [&[(u64, u64)]; 9] = [
        &[],
        &[(0, 0)],
        &[(0, 4095)],
        &[(1, 4096)],
        &[(0, 8192), (4096, 4096)],
        &[(8192, 4096), (0, 4096)],
        &[(u64::MAX - 4095, 8192)],
        &[(0, IMAGE_FILE_BYTES_MAX + 4096)],
        &[(0, IMAGE_FILE_BYTES_MAX), (IMAGE_FILE_BYTES_MAX, 4096)],
    ];
    for ranges in wrong {
        assert!(matches!(Region::lay_out(ranges.iter().copied()), Err(Error::Memory { .. })), "{ranges:?}");
    }
    let too_many = (0..=REGIONS_MAX as u64).map(|index| (index * 8192, 4096));
    assert!(matches!(Region::lay_out(too_many), Err(Error::Memory { .. })));
}

fn any_map() -> impl Strategy<Value = ChunkMap> {
    let regions = proptest::collection::vec((1_u64..8, 0_u64..3), 1..5);
    let chunks = proptest::collection::vec(proptest::option::of(any::<[u8; 32]>()), 100);
    (regions, chunks).prop_map(|(regions, chunks)| {
        let mut guest_address = 0;
        let ranges = regions.into_iter().map(|(units, gap)| {
            let start = guest_address + gap * 4096;
            guest_address = start + units * (1 << 20);
            (start, units << 20)
        });
        let regions = Region::lay_out(ranges.collect::<Vec<_>>()).expect("ascending");
        let mut map = ChunkMap::for_memory(regions, Tagging::Mac([0xcc; 16]));
        for chunk in chunks.into_iter().take(chunk_count(map.file_bytes()) as usize) {
            map.push(chunk.map_or(Chunk::Zero, |tag| Chunk::Data(Tag(tag))));
        }
        map
    })
}

proptest! {
    #[test]
    fn a_map_comes_back(map in any_map()) {
        let bytes = map.encode();
        prop_assert_eq!(ChunkMap::decode(&bytes)?, map);
    }
}
