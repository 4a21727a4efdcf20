//! The writer with real processes; the fault layer only to stop one at a chosen step.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::fault::{Fault, with};
use crate::limits::CHUNK_BYTES;

const MEMORY: u64 = 4 * CHUNK_BYTES;

/// Four chunks, the second of them zero, each of the others with a number of its own.
fn guest() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
    for chunk in [0, 2, 3] {
        memory.write_obj(chunk + 1, GuestAddress(chunk * CHUNK_BYTES + 4096)).expect("write");
    }
    memory
}

fn prepared(memory: &GuestMemoryMmap, path: PathBuf) -> PreparedWriter {
    PreparedWriter::new(memory, &[], None, files::create(&path).expect("file"), path).expect("prepares")
}

fn forked(memory: &GuestMemoryMmap, directory: &tempfile::TempDir) -> ForkedWriter {
    let path = directory.path().join("memory");
    let writer = prepared(memory, path).fork(memory).expect("forks");
    writer.begin();
    writer
}

#[test]
fn what_is_written_is_memory_as_it_was_at_the_fork() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let writer = forked(&memory, &directory);
    for chunk in 0..4 {
        memory.write_obj(99_u64, GuestAddress(chunk * CHUNK_BYTES + 4096)).expect("the guest goes on");
    }
    let progress = Progress::new();
    let WrittenMemory { file, map, layers, own_bytes } = writer.wait(&progress).expect("writes");
    assert!(layers.is_single() && own_bytes == 3 * CHUNK_BYTES);
    assert_eq!(progress.bytes_total(), MEMORY);

    let path = directory.path().join("whole");
    let expected = prepared(&guest(), path.clone()).write(&guest(), &Progress::new()).expect("writes");
    assert_eq!(map, expected.map);
    assert_eq!(fs::read(directory.path().join("memory")).expect("memory"), fs::read(path).expect("whole"));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("metadata"));
    assert!(blocks * 512 < MEMORY, "zeros are holes");
}

#[test]
fn a_writer_is_left_a_fourth_of_a_cpu_however_many_vcpus_are_busy() {
    let niceness = child::niceness;
    assert_eq!([niceness(1, 1), niceness(1, 2), niceness(64, 64)], [5; 3]);
    assert_eq!([niceness(2, 1), niceness(4, 2), niceness(3, 1)], [2, 2, 0]);
    assert_eq!(
        [niceness(8, 1), niceness(254, 2), niceness(1, 0)],
        [0, 0, 5],
        "what needs a privilege is not asked for"
    );
}

/// State and niceness of a process; see proc_pid_stat(5).
fn state_and_niceness(process: &str) -> (String, i32) {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("its name ends").1.split(' ').collect();
    (fields[0].to_owned(), fields[16].parse().expect("a number"))
}

#[test]
fn a_writer_stands_back_and_waits_for_its_word() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let mut prepared = prepared(&memory, directory.path().join("memory"));
    let cpus = thread::available_parallelism().expect("they can be counted").get();
    prepared.expect_fork(2 * cpus);
    let writer = prepared.fork(&memory).expect("forks");
    // Once it sleeps it has nothing more to do of its own accord.
    let of_writer = || state_and_niceness(&writer.child.pid.to_string());
    let begun = Instant::now();
    while of_writer().0 != "S" {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", of_writer());
        thread::yield_now();
    }
    assert_eq!(of_writer().1, state_and_niceness("thread-self").1 + child::niceness(2, 1));
    assert_eq!(writer.writer.target.results.bytes_done(), 0);
    writer.wait(&Progress::new()).expect("who waits for it lets it begin");
}

#[test]
fn a_failure_to_write_has_its_reason() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    // 0: create, 1: set_len, and the child's three writes.
    for at in 2..5 {
        std::fs::remove_file(directory.path().join("memory")).ok();
        let fault = Fault::FailInChild(at, libc::ENOSPC);
        let (result, _) = with(fault, || forked(&memory, &directory).wait(&Progress::new()));
        let error = result.expect_err("no room");
        assert!(matches!(&error, Error::NoSpace { wanted: MEMORY, .. }), "{error}");
    }
}

#[test]
fn a_writer_that_is_killed_is_an_error() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let (result, _) = with(Fault::Hang(2), || {
        let writer = forked(&memory, &directory);
        kill(writer.child.pid, Signal::SIGKILL).expect("it is there");
        writer.wait(&Progress::new())
    });
    let error = result.expect_err("killed");
    assert!(error.to_string().contains("the writer was killed"), "{error}");
}

#[test]
fn a_writer_that_nobody_wants_any_more_is_gone() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let cancelled = Progress::new();
    cancelled.cancel();
    for waits in [true, false] {
        fs::remove_file(directory.path().join("memory")).ok();
        let (pid, _) = with(Fault::Hang(2), || {
            let writer = forked(&memory, &directory);
            let pid = writer.child.pid;
            if waits {
                assert!(matches!(writer.wait(&cancelled), Err(Error::Cancelled)));
            }
            pid
        });
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH), "reaped");
    }
}

#[test]
fn the_writer_holds_nothing_of_its_parent() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    with(Fault::Hang(2), || {
        let writer = forked(&memory, &directory);
        let proc = PathBuf::from(format!("/proc/{}", writer.child.pid));
        let descriptors = || {
            let links = fs::read_dir(proc.join("fd")).expect("it lives").flatten();
            links.flat_map(|link| fs::read_link(link.path())).collect::<BTreeSet<_>>()
        };
        let its_own = BTreeSet::from([directory.path().join("memory"), proc.join("pagemap")]);
        // It settles before its first write, at which it hangs.
        let begun = Instant::now();
        while descriptors() != its_own {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", descriptors());
            std::thread::yield_now();
        }
        let read = |name| fs::read_to_string(proc.join(name)).expect("it lives");
        assert_eq!((&*read("comm"), &*read("oom_score_adj")), ("ckvmm-writer\n", "1000\n"));
    });
}
