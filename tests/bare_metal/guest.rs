//! Whether guests run here, and what they are told to do.

use std::{fs::OpenOptions, path::Path};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    console::value,
    process::Ckvmm,
};
use nix::sys::signal::{SigSet, Signal};
use serde_json::Value;

/// Both ways into a kernel.
pub(crate) const PROTOCOLS: [&str; 2] = ["linux", "pvh"];

/// True, with the reason on standard error, if this machine runs no guests.
pub(crate) fn skipped() -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => false,
        Err(error) => {
            eprintln!("skipped: /dev/kvm cannot be opened: {error}");
            true
        }
    }
}

/// A VM with so much memory that enters its guest by `protocol`.
pub(crate) fn config(protocol: &str, memory: &str, job: &str) -> Value {
    let mut config = bare_metal::config(job);
    config["memory"] = memory.into();
    config["kernel"]["protocol"] = protocol.into();
    config
}

/// Restores `checkpoint`; disks and logs of all restores of a test go to one directory.
pub(crate) fn restore(home: &Home, checkpoint: &Path, more: &[&str]) -> Ckvmm {
    let arguments: Vec<&str> = ["--work", "work"].iter().chain(more).copied().collect();
    home.restore(checkpoint, &arguments)
}

/// Whether this host can protect a guest's RAM; says so if not.
pub(crate) fn can_protect() -> bool {
    let can = ckvmm_snapshot::can_protect();
    can.map_err(|error| eprintln!("skipped: RAM cannot be protected here: {error}")).is_ok()
}

/// From now on a signal that asks for a checkpoint reaches a `ckvmm` of this thread however early it is sent: what a
/// parent blocks its child has blocked, and pending, until it takes signals itself.
pub(crate) fn keep_early_signals() {
    let signals: SigSet = [Signal::SIGUSR1, Signal::SIGUSR2].into_iter().collect();
    signals.thread_block().expect("signals can be blocked");
}

/// Asks the guest how many steps it has done. It answers, so it runs.
pub(crate) fn steps(vm: &mut Ckvmm) -> u64 {
    vm.console.skip();
    vm.type_bytes(b"s");
    vm.console.next("status", LIMIT, |line| value(line.strip_prefix("CKVMM status ")?, "steps")?.parse().ok())
}
