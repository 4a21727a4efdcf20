//! Memory of processes, and of the host.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

/// Between two looks at the memory of processes. A look walks their page tables.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// No mapping of a VMM's own is as large, and no guest's is smaller.
const LARGE: u64 = 256 << 20;

/// Bytes that the processes and their children have, what is shared divided among those who share it.
pub(crate) fn proportional(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        rollup.lines().find_map(|line| kib(line, "Pss:")).unwrap_or_default()
    };
    pids.iter().map(|pid| of(pid) + children(*pid).iter().map(of).sum::<u64>()).sum()
}

/// What `work` returns, and the most that [`proportional`] said of a process meanwhile.
pub(crate) fn peak_while<T>(pid: u32, work: impl FnOnce() -> T) -> (T, u64) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(proportional(&[pid]));
                thread::sleep(LOOK_EVERY);
            }
            peak
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        (result, watcher.join().expect("looking does not fail"))
    })
}

/// Bytes that are resident in a process beside its guest's RAM, which is its large mappings: one below the MMIO gap and,
/// of a guest with more RAM, one above.
pub(crate) fn beside_guest(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let figures = |name| maps.lines().filter_map(move |line| kib(line, name));
    let resident: u64 = figures("Rss:").sum();
    let large = figures("Size:").zip(figures("Rss:")).filter(|(size, _)| *size >= LARGE);
    resident - large.map(|(_, resident)| resident).sum::<u64>()
}

/// Bytes that the host can give.
pub(crate) fn available() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    info.lines().find_map(|line| kib(line, "MemAvailable:")).unwrap_or_default()
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    threads
        .flatten()
        .flat_map(|thread| of(thread).split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// The value of a line `NAME   N kB`, in bytes.
fn kib(line: &str, name: &str) -> Option<u64> {
    let number: u64 = line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number << 10)
}
