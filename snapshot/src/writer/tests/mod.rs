//! The writer with real processes; the fault layer only to stop one at a chosen step.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::kill;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::fault::{Fault, with};
use crate::large;
use crate::limits::CHUNK_BYTES;
use crate::sparse::Named;

mod ahead;
mod straight;

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

/// How the child comes to what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Fork,
    Protect,
}

/// Those that there are here.
fn ways() -> &'static [Way] {
    if can_protect().is_ok() { &[Way::Fork, Way::Protect] } else { &[Way::Fork] }
}

/// Says so if not.
fn protects() -> bool {
    can_protect().map_err(|error| eprintln!("skipped: RAM cannot be protected here: {error}")).is_ok()
}

/// `memory` for a writer that protects it, with copies of `chunks` chunks at most.
fn lent(memory: &GuestMemoryMmap, chunks: u64) -> Lent {
    let copies = Copies { most_bytes: chunks * CHUNK_BYTES, ready_bytes: u64::MAX, room: Arc::new(|| u64::MAX) };
    Lent { memory: memory.clone(), mapping: Arc::new(memory.clone()), habits: Arc::default(), copies }
}

fn begun(way: Way, memory: &GuestMemoryMmap, directory: &tempfile::TempDir) -> ForkedWriter {
    let path = directory.path().join("memory");
    fs::remove_file(&path).ok();
    let mut writer = prepared(memory, path);
    let writer = match way {
        Way::Fork => writer.fork(memory).expect("forks"),
        Way::Protect => {
            writer.expect_protection(lent(memory, 4)).expect("it can be done here");
            writer.protect().expect("protects")
        }
    };
    writer.begin();
    writer
}

#[test]
fn what_is_written_is_memory_as_it_was_at_the_cut() {
    for way in ways().iter().copied() {
        what_is_written_is_memory_as_it_was(way, &tempfile::tempdir().expect("directory"));
    }
}

fn what_is_written_is_memory_as_it_was(way: Way, directory: &tempfile::TempDir) {
    let memory = guest();
    let writer = begun(way, &memory, directory);
    for chunk in 0..4 {
        memory.write_obj(99_u64, GuestAddress(chunk * CHUNK_BYTES + 4096)).expect("the guest goes on");
        memory.write_obj(99_u64, GuestAddress(chunk * CHUNK_BYTES + 9 * 4096)).expect("where it never was");
    }
    let progress = Progress::new();
    let WrittenMemory { file, map, layers, own_bytes } = writer.wait(&progress).expect("writes");
    assert!(layers.is_single() && own_bytes == 3 * CHUNK_BYTES);
    assert_eq!(progress.bytes_total(), MEMORY);

    let path = directory.path().join("whole");
    let whole = prepared(&guest(), path.clone()).write(&guest(), &Progress::new()).expect("writes");
    assert_eq!(map.regions(), whole.map.regions());
    let whole = Named { file: &whole.file, path: &path };
    let expected = large::map(whole, MEMORY, map.tagging(), &Progress::new()).expect("reads");
    assert!(map.chunks().eq(expected.chunks()));
    assert_eq!(fs::read(directory.path().join("memory")).expect("memory"), fs::read(path).expect("whole"));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().expect("metadata"));
    assert!(blocks * 512 < MEMORY, "zeros are holes");
}

#[test]
fn a_writer_is_left_a_fourth_of_a_cpu_however_many_vcpus_are_busy() {
    let niceness = priority::niceness;
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
    prepared.work_beside(2 * cpus, Aside::default());
    prepared.expect_fork();
    let writer = prepared.fork(&memory).expect("forks");
    // Once it sleeps it has nothing more to do of its own accord.
    let of_writer = || state_and_niceness(&writer.child.pid.to_string());
    let begun = Instant::now();
    while of_writer().0 != "S" {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", of_writer());
        thread::yield_now();
    }
    assert_eq!(of_writer().1, state_and_niceness("thread-self").1 + priority::niceness(2, 1));
    assert_eq!(writer.writer.target.results.bytes_done(), 0);
    writer.wait(&Progress::new()).expect("who waits for it lets it begin");
}

#[test]
fn a_failure_to_write_has_its_reason() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    // 0: create, 1: set_len, and the child's three writes.
    for at in 2..5 {
        for way in ways().iter().copied() {
            let fault = Fault::FailInChild(at, libc::ENOSPC);
            let (result, _) = with(fault, || begun(way, &memory, &directory).wait(&Progress::new()));
            let error = result.expect_err("no room");
            assert!(matches!(&error, Error::NoSpace { wanted: MEMORY, .. }), "{way:?}: {error}");
        }
    }
}

#[test]
fn a_writer_that_is_killed_is_an_error() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    for way in ways().iter().copied() {
        let (result, _) = with(Fault::Hang(2), || {
            let writer = begun(way, &memory, &directory);
            kill(writer.child.pid, Signal::SIGKILL).expect("it is there");
            writer.wait(&Progress::new())
        });
        let error = result.expect_err("killed");
        assert!(error.to_string().contains("the writer was killed"), "{error}");
    }
}

/// Writes to each chunk, where there is something.
fn write_everywhere(memory: &GuestMemoryMmap, number: u64) {
    for chunk in [3, 0, 2] {
        memory.write_obj(number, GuestAddress(chunk * CHUNK_BYTES + 4096)).expect("the guest goes on");
    }
}

#[test]
fn a_guest_waits_for_no_writer_that_has_ended() {
    if !protects() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    with(Fault::Hang(2), || {
        let mut prepared = prepared(&memory, directory.path().join("memory"));
        prepared.expect_protection(lent(&memory, 1)).expect("it can be done here");
        let writer = prepared.protect().expect("protects");
        thread::scope(|scope| {
            // There is room for one copy, which nobody reads.
            let guest = scope.spawn(|| write_everywhere(&memory, 99));
            kill(writer.child.pid, Signal::SIGKILL).expect("it is there");
            guest.join().expect("it went on");
        });
    });
}

#[test]
fn a_guest_that_is_faster_than_its_writer_waits() {
    if !protects() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let path = directory.path().join("memory");
    let mut prepared = prepared(&memory, path.clone());
    let lent = lent(&memory, 1);
    let habits = Arc::clone(&lent.habits);
    prepared.expect_protection(lent).expect("it can be done here");
    let writer = prepared.protect().expect("protects");
    thread::scope(|scope| {
        let guest = scope.spawn(|| write_everywhere(&memory, 99));
        // The first one is copied, and nobody takes the copy yet.
        let begun = Instant::now();
        while memory.read_obj::<u64>(GuestAddress(3 * CHUNK_BYTES + 4096)).expect("read") != 99 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody copies");
            thread::yield_now();
        }
        assert_eq!(memory.read_obj::<u64>(GuestAddress(2 * CHUNK_BYTES + 4096)).expect("read"), 3, "it waits");
        writer.begin();
        writer.wait(&Progress::new()).expect("writes");
        guest.join().expect("it went on");
    });
    let written = fs::read(path).expect("memory");
    for chunk in [0, 2, 3] {
        let at = (chunk * CHUNK_BYTES + 4096) as usize;
        assert_eq!(written[at..at + 8], (chunk + 1).to_le_bytes(), "chunk {chunk}");
    }
    assert_eq!(habits.chunks().first(), Some(&3), "where it wrote first it will write again");
}

#[test]
fn what_was_protected_for_nobody_is_not() {
    if !protects() {
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let mut unused = prepared(&memory, directory.path().join("unused"));
    unused.expect_protection(lent(&memory, 1)).expect("it can be done here");
    drop(unused);
    let mut unwanted = prepared(&memory, directory.path().join("unwanted"));
    unwanted.expect_protection(lent(&memory, 1)).expect("it can be done here");
    drop(unwanted.protect().expect("protects"));
    write_everywhere(&memory, 7);
    // Registered once more.
    let writer = begun(Way::Protect, &memory, &directory);
    write_everywhere(&memory, 99);
    writer.wait(&Progress::new()).expect("writes");
    assert_eq!(fs::read(directory.path().join("memory")).expect("memory")[4096], 7);
}

#[test]
fn a_writer_that_nobody_wants_any_more_is_gone() {
    let directory = tempfile::tempdir().expect("directory");
    let memory = guest();
    let cancelled = Progress::new();
    cancelled.cancel();
    for (way, waits) in ways().iter().flat_map(|way| [(*way, true), (*way, false)]) {
        let (pid, _) = with(Fault::Hang(2), || {
            let writer = begun(way, &memory, &directory);
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
    for way in ways().iter().copied() {
        with(Fault::Hang(2), || {
            let writer = begun(way, &memory, &directory);
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
}
