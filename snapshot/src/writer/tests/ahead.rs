//! RAM that is protected ahead of the cut.

use super::*;

const CHUNKS: u64 = 32;
/// The chunks that there are before anything is protected; and that come to be before the cut.
const OLD: [u64; 3] = [1, 3, 5];
const NEW: [u64; 2] = [0, 8];

fn at(chunk: u64) -> GuestAddress {
    GuestAddress(chunk * CHUNK_BYTES + 4096)
}

fn write(memory: &GuestMemoryMmap, chunks: &[u64], number: u64) {
    chunks.iter().for_each(|chunk| memory.write_obj(number, at(*chunk)).expect("the guest goes on"));
}

/// What is written of a guest that writes to `loose` and to new chunks before the cut, and everywhere after it; with memory
/// for copies of so many chunks. There are `holes` in its memory.
fn written(loose: &[u64], copies: u64, holes: u64) -> Vec<(u64, u64)> {
    let directory = tempfile::tempdir().expect("directory");
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (CHUNKS * CHUNK_BYTES) as usize)]).expect("memory");
    write(&memory, &OLD, 10);
    for hole in 0..holes {
        memory.write_obj(40_u64, GuestAddress(12 * CHUNK_BYTES + hole * 2 * 4096)).expect("it is RAM");
    }
    let mut prepared = prepared(&memory, directory.path().join("memory"));
    prepared.expect_protection(lent(&memory, copies)).expect("it can be done here");
    prepared.protect_ahead();
    write(&memory, loose, 20);
    write(&memory, &NEW, 30);
    let writer = prepared.protect().expect("protects");
    thread::scope(|scope| {
        let after = scope.spawn(|| write(&memory, &[OLD.as_slice(), &NEW].concat(), 99));
        if copies >= CHUNKS {
            // It need not wait for the writer.
            after.join().expect("the guest goes on");
        }
        writer.wait(&Progress::new()).expect("writes");
    });
    let file = fs::read(directory.path().join("memory")).expect("memory");
    let number = |chunk| u64::from_le_bytes(file[at(chunk).0 as usize..][..8].try_into().expect("eight bytes"));
    (0..CHUNKS).map(|chunk| (chunk, number(chunk))).filter(|(_, number)| *number > 0).collect()
}

#[test]
fn what_the_guest_writes_before_the_cut_is_written_and_what_it_writes_after_it_is_not() {
    if !protects() {
        return;
    }
    // So many holes are looked at one by one, and so many are not.
    for (copies, holes) in [(CHUNKS, 0), (1, 0), (CHUNKS, 100)] {
        let written = |loose: &[u64]| written(loose, copies, holes);
        assert_eq!(written(&[]), [(0, 30), (1, 10), (3, 10), (5, 10), (8, 30)]);
        assert_eq!(written(&[3]), [(0, 30), (1, 10), (3, 20), (5, 10), (8, 30)]);
        assert_eq!(written(&[5, 1]), [(0, 30), (1, 20), (3, 10), (5, 20), (8, 30)]);
        // With the new ones that is more than an eighth of the chunks: all of RAM is protected again.
        assert_eq!(written(&[5, 1, 3]), [(0, 30), (1, 20), (3, 20), (5, 20), (8, 30)]);
    }
}

#[test]
fn a_guest_that_is_not_cut_after_all_goes_on() {
    if !protects() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let mut prepared = prepared(&memory, directory.path().join("memory"));
    prepared.expect_protection(lent(&memory, 1)).expect("it can be done here");
    prepared.protect_ahead();
    write_everywhere(&memory, 7);
    drop(prepared);
    write_everywhere(&memory, 99);
}
