//! A Debian guest in a directory of its own.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use ckvmm_tests::{LIMIT, config, console::value, process::Ckvmm};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// Where a VM and its checkpoints live.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        Home { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Boots `config` and waits until its jobs run.
    pub(crate) fn boot(&self, config: &Value) -> Ckvmm {
        self.boot_with(config, &[])
    }

    pub(crate) fn boot_with(&self, config: &Value, more: &[&str]) -> Ckvmm {
        let file = config::write(self.path(), config);
        let mut arguments = vec!["boot", "--config", file.to_str().unwrap()];
        arguments.extend(more);
        let vm = Ckvmm::start(self.path(), arguments);
        vm.console.expect("CKVMM ready", LIMIT);
        vm
    }

    /// Restores `checkpoint` into the work directory `work`.
    pub(crate) fn restore(&self, checkpoint: &Path, work: &str, more: &[&str]) -> Ckvmm {
        let mut arguments = vec!["restore", checkpoint.to_str().unwrap(), "--work", work];
        arguments.extend(more);
        Ckvmm::start(self.path(), arguments)
    }

    pub(crate) fn checkpoint(&self, number: u32) -> PathBuf {
        self.path().join("checkpoints").join(format!("{number:06}"))
    }
}

/// Sends SIGUSR1 and waits until the checkpoint is durable; returns its directory.
pub(crate) fn checkpoint(vm: &Ckvmm) -> PathBuf {
    vm.signal(Signal::SIGUSR1);
    committed(vm)
}

/// Waits for the message of a checkpoint; returns its directory.
pub(crate) fn committed(vm: &Ckvmm) -> PathBuf {
    let line = vm.messages.expect("checkpoint", LIMIT);
    let (_, rest) = line.split_once("checkpoint ").unwrap_or_else(|| panic!("no checkpoint: {line}"));
    let (dir, _) = rest.split_once(": ").unwrap();
    let dir = PathBuf::from(dir);
    assert!(fs::metadata(dir.join("manifest.json")).is_ok(), "{line}");
    dir
}

/// What the guest's counter said in a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Count {
    pub(crate) nonce: String,
    pub(crate) boot_id: String,
    pub(crate) count: u64,
    /// Seconds of the guest's boot time.
    pub(crate) uptime: f64,
}

impl Count {
    /// The next line of the counter.
    pub(crate) fn next(vm: &Ckvmm) -> Count {
        vm.console.next("line of the counter", LIMIT, Self::parse)
    }

    pub(crate) fn parse(line: &str) -> Option<Count> {
        let line = line.strip_prefix("CKVMM counter ")?;
        Some(Count {
            nonce: value(line, "nonce")?.to_owned(),
            boot_id: value(line, "boot_id")?.to_owned(),
            count: value(line, "count")?.parse().ok()?,
            uptime: value(line, "uptime")?.parse().ok()?,
        })
    }

    /// The last count of a console's lines.
    pub(crate) fn last(lines: &[String]) -> Count {
        lines.iter().rev().find_map(|line| Count::parse(line)).expect("the counter said something")
    }

    pub(crate) fn same_process(&self, other: &Count) -> bool {
        (&self.nonce, &self.boot_id) == (&other.nonce, &other.boot_id)
    }
}

/// Lines of the kernel that a guest which was merely stopped for a while would not print.
pub(crate) fn complaints(lines: &[String]) -> Vec<&String> {
    let bad = [
        "soft lockup",
        "hard LOCKUP",
        "rcu_sched",
        "rcu: INFO",
        "timekeeping watchdog",
        "clocksource: ",
        "TSC unstable",
        "stalls on",
        "NETDEV WATCHDOG",
        "I/O error",
        "EXT4-fs error",
        "BUG:",
        "Oops",
        "CHANGED",
    ];
    let harmless = |line: &str| line.contains("clocksource: Switched to") || (in_the_lab() && starved(line));
    lines.iter().filter(|line| bad.iter().any(|bad| line.contains(bad)) && !harmless(line)).collect()
}

fn in_the_lab() -> bool {
    env::var_os("CKVMM_LAB").is_some()
}

/// Whether the guest says no more than that its clocks were not looked at for long, and that they agree about it: an
/// emulated processor is slow. A clock that jumped would differ from the other.
fn starved(line: &str) -> bool {
    let nanoseconds = |key| line.split_once(key)?.1.split_whitespace().next()?.parse::<i64>().ok();
    let agree = |(clock, watchdog): (i64, i64)| (clock - watchdog).abs() < 1_000_000;
    line.contains("Long readout interval") && nanoseconds("cs_nsec: ").zip(nanoseconds("wd_nsec: ")).is_some_and(agree)
}

#[test]
fn starvation_is_no_jump() {
    let line = |clock: u64, watchdog: u64| {
        let what = "clocksource: Long readout interval, skipping watchdog check";
        format!("{what}: cs_nsec: {clock} wd_nsec: {watchdog}")
    };
    assert!(starved(&line(1_216_437_612, 1_216_437_000)));
    assert!(!starved(&line(4_216_437_612, 1_216_437_000)), "a clock jumped");
    assert!(!starved("clocksource: Marking clocksource 'tsc' as unstable because the skew is too large:"));
}
