//! What is written to a file system that is memory, where copier and child have one CPU.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;
use crate::tag::{Chunk, is_zero};

fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("there is memory")
}

/// `memory` is protected, and to be written to a file in `directory`; there is room for so many bytes.
fn protected(
    memory: &GuestMemoryMmap,
    directory: &tempfile::TempDir,
    room: impl Fn() -> u64 + Send + Sync + 'static,
) -> ForkedWriter {
    let path = directory.path().join("memory");
    fs::remove_file(&path).ok();
    let mut prepared = prepared(memory, path);
    let mut lent = lent(memory, 4);
    lent.copies.room = Arc::new(room);
    prepared.expect_protection(lent).expect("it can be done here");
    prepared.protect().expect("protects")
}

#[test]
fn it_is_memory_as_it_was_at_the_cut() {
    if protects() {
        what_is_written_is_memory_as_it_was(Way::Protect, &in_memory());
    }
}

/// Room for two chunks, and then for none.
fn two_chunks() -> impl Fn() -> u64 {
    let room = AtomicU64::new(8 * CHUNK_BYTES);
    move || room.swap(0, Relaxed)
}

#[test]
fn whoever_is_first_at_a_chunk_what_is_written_is_of_the_cut() {
    if !protects() {
        return;
    }
    let directory = in_memory();
    let mut expected = vec![0; MEMORY as usize];
    guest().read_slice(&mut expected, GuestAddress(0)).expect("it is RAM");
    for round in 0..60 {
        let memory = guest();
        let writer = match round % 3 {
            0 => protected(&memory, &directory, two_chunks()),
            _ => protected(&memory, &directory, || u64::MAX),
        };
        writer.begin();
        let map = thread::scope(|scope| {
            scope.spawn(|| {
                for chunk in if round % 2 == 0 { [3, 0, 2] } else { [0, 2, 3] } {
                    for place in [chunk * CHUNK_BYTES + 4096, (chunk + 1) * CHUNK_BYTES - 8] {
                        memory.write_obj(99_u64, GuestAddress(place)).expect("the guest goes on");
                    }
                }
            });
            writer.wait(&Progress::new()).expect("writes").map
        });
        let written = fs::read(directory.path().join("memory")).expect("memory");
        assert!(written == expected, "round {round}");
        let has_its_tag = |(range, held): (Range<u64>, Chunk)| {
            let content = &expected[range.start as usize..range.end as usize];
            held == if is_zero(content) { Chunk::Zero } else { Chunk::Data(map.tagging().tag(content)) }
        };
        assert!(map.chunks().all(has_its_tag), "round {round}");
    }
}

#[test]
fn a_failure_to_write_has_its_reason_whoever_writes() {
    if !protects() {
        return;
    }
    let memory = guest();
    let file = File::from(memfd_create(c"memory", MFdFlags::MFD_ALLOW_SEALING).expect("memory"));
    let sealed = OwnedFd::from(file.try_clone().expect("it is open"));
    let mut writer = PreparedWriter::new(&memory, &[], None, file, "memory".into()).expect("prepares");
    writer.expect_protection(lent(&memory, 4)).expect("it can be done here");
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).expect("nobody has mapped it");
    let error = writer.protect().expect("protects").wait(&Progress::new()).expect_err("nobody may write");
    assert!(error.to_string().contains("not permitted to write guest memory"), "{error}");
}

#[test]
fn nothing_is_written_for_a_child_that_has_ended() {
    if !protects() {
        return;
    }
    let (directory, memory) = (in_memory(), guest());
    let writer = protected(&memory, &directory, || u64::MAX);
    kill(writer.child.pid, Signal::SIGKILL).expect("it is there");
    let end = writer.child.end().expect("it can be waited for");
    poll(&mut [PollFd::new(end.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).expect("it ends");
    let error = writer.wait(&Progress::new()).expect_err("killed");
    assert!(error.to_string().contains("the writer was killed"), "{error}");
    let blocks = fs::metadata(directory.path().join("memory")).expect("it is there").blocks();
    assert_eq!(blocks, 0);
}

/// Whether the child writes anything if there is `room` for so many bytes: it fails then.
fn child_writes(room: impl Fn() -> u64 + Send + Sync + 'static) -> bool {
    let (directory, memory) = (in_memory(), guest());
    let fault = Fault::FailInChild(2, libc::EIO);
    with(fault, || protected(&memory, &directory, room).wait(&Progress::new())).0.is_err()
}

#[test]
fn where_memory_is_scarce_the_child_writes_which_is_the_one_to_be_killed_for_it() {
    if protects() {
        assert!(!child_writes(|| u64::MAX));
        assert!(child_writes(|| 0) && child_writes(|| CHUNK_BYTES) && child_writes(two_chunks()));
    }
}
