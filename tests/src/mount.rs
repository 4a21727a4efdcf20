//! File systems of a test's own, which nobody else sees and which go with the test.

use std::{path::Path, process::Command};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// Moves the calling thread, and what it starts, into a mount namespace of its own. False if that is not to be had
/// without root.
///
/// # Panics
/// If root cannot have one either.
pub fn enter_namespace() -> bool {
    if !Uid::effective().is_root() {
        println!("skipped: a mount namespace takes root");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNS).expect("root can have a mount namespace");
    mount(&["--make-rprivate", "/"]);
    true
}

/// Mounts an empty file system of at most `bytes` bytes, in memory, on the directory `at`.
///
/// # Panics
/// If it cannot be mounted.
pub fn small(at: &Path, bytes: u64) {
    mount(&["-t", "tmpfs", "-o", &format!("size={bytes},mode=0777"), "none", &at.to_string_lossy()]);
}

/// Makes what is mounted on `at` read-only, or writable again.
///
/// # Panics
/// If it cannot be.
pub fn set_read_only(at: &Path, read_only: bool) {
    let options = if read_only { "remount,ro" } else { "remount,rw" };
    mount(&["-o", options, &at.to_string_lossy()]);
}

fn mount(arguments: &[&str]) {
    let output = Command::new("mount").args(arguments).output().expect("mount is installed");
    assert!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
