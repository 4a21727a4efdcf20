//! What is written to a file system that is memory, where copier and child have one CPU.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("there is memory")
}

#[test]
fn it_is_memory_as_it_was_at_the_cut() {
    if protects() {
        what_is_written_is_memory_as_it_was(Way::Protect, &in_memory());
    }
}

#[test]
fn whoever_is_first_at_a_chunk_what_is_written_is_of_the_cut() {
    if !protects() {
        return;
    }
    let directory = in_memory();
    for round in 0..50 {
        let memory = guest();
        let writer = begun(Way::Protect, &memory, &directory);
        thread::scope(|scope| {
            scope.spawn(|| {
                for chunk in if round % 2 == 0 { [3, 0, 2] } else { [0, 2, 3] } {
                    memory.write_obj(99_u64, GuestAddress(chunk * CHUNK_BYTES + 4096)).expect("the guest goes on");
                    memory
                        .write_obj(99_u64, GuestAddress((chunk + 1) * CHUNK_BYTES - 8))
                        .expect("in a page that is new");
                }
            });
            writer.wait(&Progress::new()).expect("writes");
        });
        let written = fs::read(directory.path().join("memory")).expect("memory");
        let mut expected = vec![0; MEMORY as usize];
        guest().read_slice(&mut expected, GuestAddress(0)).expect("it is RAM");
        assert!(written == expected, "round {round}");
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
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).expect("nobody has mapped it");
    writer.expect_protection(lent(&memory, 4)).expect("it can be done here");
    let error = writer.protect().expect("protects").wait(&Progress::new()).expect_err("nobody may write");
    assert!(error.to_string().contains("not permitted to write guest memory"), "{error}");
}

/// Whether the child writes anything if there is `room` for so many bytes: it fails then.
fn child_writes(room: u64) -> bool {
    let (directory, memory) = (in_memory(), guest());
    let (result, _) = with(Fault::FailInChild(2, libc::EIO), || {
        let mut prepared = prepared(&memory, directory.path().join("memory"));
        let mut lent = lent(&memory, 4);
        lent.copies.room = Arc::new(move || room);
        prepared.expect_protection(lent).expect("it can be done here");
        prepared.protect().expect("protects").wait(&Progress::new())
    });
    result.is_err()
}

#[test]
fn where_memory_is_scarce_the_child_writes_which_is_the_one_to_be_killed_for_it() {
    if protects() {
        assert!(!child_writes(u64::MAX));
        assert!(child_writes(0) && child_writes(CHUNK_BYTES));
    }
}
