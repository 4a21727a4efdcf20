//! Guest memory as an image has it, held against the model.

use std::{os::unix::fs::FileExt, path::Path};

use ckvmm_snapshot::Image;

use crate::model::{self, ARENA_LOWEST, CELL, HEADER_ADDRESS, Header, Job, MAGIC, Mismatch, VERSION};

/// The image `dir`.
///
/// # Panics
/// If it is none.
pub(crate) fn open(dir: &Path) -> Image {
    Image::open(dir).unwrap_or_else(|error| panic!("{error}"))
}

/// `bytes` bytes of guest memory from `address` on. What lies in no run is zero.
pub(crate) fn read(image: &Image, address: u64, bytes: u64) -> Vec<u8> {
    let mut found = vec![0; bytes as usize];
    let plan = image.memory().plan();
    for run in plan.mapped.into_iter().chain(plan.read) {
        let (start, end) = (run.guest_address.max(address), run.guest_end().min(address + bytes));
        if start < end {
            let piece = &mut found[(start - address) as usize..(end - address) as usize];
            let offset = run.file_offset + (start - run.guest_address);
            image.memory().layer(run.layer).read_exact_at(piece, offset).expect("as long as its map says");
        }
    }
    found
}

/// The guest's header.
pub(crate) fn header(image: &Image) -> Header {
    let bytes = read(image, HEADER_ADDRESS, Header::BYTES as u64);
    Header::parse(&bytes).unwrap_or_else(|why| panic!("{}: {why}", image.path().display()))
}

/// Compares `arena` with what `header` says that it must be.
pub(crate) fn compare(header: &Header, arena: &[u8]) -> Result<(), Mismatch> {
    let (cells, rest) = arena.as_chunks::<8>();
    assert!(rest.is_empty() && cells.len() as u64 * CELL == header.arena_bytes, "not the whole arena");
    model::check(header, |cell| u64::from_le_bytes(cells[cell as usize]))
}

/// Compares the whole arena of the image `dir` with the model; returns the header, which says how far the guest was.
///
/// # Panics
/// At the first cell that is not what it must be.
pub(crate) fn check(dir: &Path) -> Header {
    let image = open(dir);
    let header = header(&image);
    let arena = read(&image, header.arena, header.arena_bytes);
    compare(&header, &arena).unwrap_or_else(|mismatch| panic!("{}: {mismatch}", dir.display()));
    header
}

#[test]
fn the_comparison_sees_one_flipped_bit_anywhere() {
    let (cells, hot, steps) = (4096, 1024, 4096 + 3 * 1024 + 17);
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        job: Job::Write as u32,
        seed: 11,
        arena: ARENA_LOWEST,
        arena_bytes: cells * CELL,
        hot_bytes: hot * CELL,
        steps,
        ..Header::EMPTY
    };
    let mut arena = vec![0; header.arena_bytes as usize];
    for (cell, value) in header.writes().take(steps as usize) {
        arena[(cell * CELL) as usize..][..8].copy_from_slice(&value.to_le_bytes());
    }
    compare(&header, &arena).expect("this is what the guest leaves");
    for at in (0..arena.len()).step_by(61) {
        arena[at] ^= 1 << (at % 8);
        let mismatch = compare(&header, &arena).expect_err("a bit was flipped");
        assert_eq!(mismatch.address, ARENA_LOWEST + at as u64 / CELL * CELL);
        arena[at] ^= 1 << (at % 8);
    }
    // One write may have begun; a picture that is two steps older or newer than its header says is none.
    for wrong in [steps - 2, steps + 2] {
        assert!(compare(&Header { steps: wrong, ..header }, &arena).is_err(), "{wrong}");
    }
}
