//! Real files; where the file system has no direct writes the tests say so.

use std::fs;

use super::*;

/// A chunk with a number of its own in each page.
fn chunk(number: u64) -> Vec<u8> {
    let pages = (0..CHUNK_BYTES / PAGE_BYTES).map(|page| (number << 32) | (page + 1));
    pages.flat_map(|value| value.to_le_bytes().repeat(PAGE_BYTES as usize / 8)).collect()
}

/// A file of so many chunks on a disk, and how it is written; `None` where the file system cannot.
fn opened(directory: &tempfile::TempDir, chunks: u64) -> Option<(File, Direct)> {
    let file = files::create(&directory.path().join("memory")).expect("file");
    file.set_len(chunks * CHUNK_BYTES).expect("length");
    let direct = Direct::open(&file);
    if direct.is_none() {
        eprintln!("skipped: no direct writes in {}", directory.path().display());
    }
    Some((file, direct?))
}

#[test]
fn more_chunks_than_buffers_arrive_in_their_places_and_zeros_stay_holes() {
    const CHUNKS: u64 = 3 * BUFFERS as u64;
    for begins in [true, false] {
        let directory = tempfile::tempdir().expect("directory");
        let Some((file, mut direct)) = opened(&directory, CHUNKS) else { return };
        // Without a context each write is waited for.
        if begins {
            direct.begin();
            assert!(direct.context != 0);
        }
        let mut expected = vec![0; (CHUNKS * CHUNK_BYTES) as usize];
        let of = |number: u64| (number * CHUNK_BYTES) as usize;
        for number in (0..CHUNKS).rev() {
            direct.buffer().expect("buffer").copy_from_slice(&chunk(number));
            let mut pieces = Pieces::default();
            for piece in [0, 1, 3, 7] {
                pieces.insert(piece * PIECE_BYTES as u64);
                let bytes = piece as usize * PIECE_BYTES..(piece as usize + 1) * PIECE_BYTES;
                expected[of(number)..of(number + 1)][bytes.clone()].copy_from_slice(&chunk(number)[bytes]);
            }
            direct.write(&pieces, BUFFER_BYTES, number * CHUNK_BYTES).expect("begins");
        }
        direct.finish().expect("writes");
        assert_eq!(direct.in_flight, [0; BUFFERS]);
        assert!(fs::read(directory.path().join("memory")).expect("memory") == expected, "begins: {begins}");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("metadata"));
        assert!(blocks * 512 < CHUNKS * CHUNK_BYTES, "zeros are holes");
    }
}

#[test]
fn what_lies_in_a_buffer_after_the_last_byte_is_not_written() {
    let directory = tempfile::tempdir().expect("directory");
    let Some((_, mut direct)) = opened(&directory, 1) else { return };
    direct.begin();
    direct.buffer().expect("buffer").copy_from_slice(&chunk(0));
    let mut pieces = Pieces::default();
    pieces.insert(0);
    direct.write(&pieces, PAGE_BYTES as usize, 0).expect("begins");
    direct.finish().expect("writes");
    let found = fs::read(directory.path().join("memory")).expect("memory");
    let page = PAGE_BYTES as usize;
    assert!(found[..page] == chunk(0)[..page] && found[page..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_write_that_fails_is_an_error() {
    let directory = tempfile::tempdir().expect("directory");
    let Some((_, mut direct)) = opened(&directory, 1) else { return };
    direct.begin();
    direct.buffer().expect("buffer").copy_from_slice(&chunk(0));
    let mut pieces = Pieces::default();
    pieces.insert(0);
    // Not where a direct write can begin.
    let begun = direct.write(&pieces, BUFFER_BYTES, 1);
    let error = begun.and_then(|()| direct.finish()).expect_err("not aligned");
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    assert_eq!(direct.in_flight, [0; BUFFERS]);
}

#[test]
fn runs_are_maximal() {
    let mut pieces = Pieces::default();
    for (insert, expected) in [(1, "[1..2]"), (3, "[1..2, 3..4]"), (2, "[1..4]"), (7, "[1..4, 7..8]")] {
        pieces.insert(insert * PIECE_BYTES as u64);
        assert_eq!(format!("{:?}", pieces.runs().collect::<Vec<_>>()), expected);
    }
    (0..8).for_each(|piece| pieces.insert(piece * PIECE_BYTES as u64));
    assert_eq!(format!("{:?}", pieces.runs().collect::<Vec<_>>()), "[0..8]");
}
