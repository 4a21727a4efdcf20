//! File systems of a test's own, which nobody else sees and which go with the test.

use std::{env, fs::File, path::Path, process::Command};

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

/// Makes a file system by `mkfs` in the new file `image`, of 512 MiB with holes, and mounts it on the directory `at`.
/// False, with the reason on standard output, if this machine cannot: no such tool, no such file system, no loop device.
///
/// # Panics
/// If the file cannot be made.
pub fn made_by(mkfs: &str, image: &Path, at: &Path) -> bool {
    File::create_new(image).and_then(|file| file.set_len(512 << 20)).expect("there is room for an empty file");
    let (image, at) = (image.to_string_lossy(), at.to_string_lossy());
    run(mkfs, &["-q", &image]) && run("mount", &["-o", "loop", &image, &at])
}

/// Takes away what is mounted on `at`.
pub fn unmount(at: &Path) {
    run("umount", &["--lazy", &at.to_string_lossy()]);
}

/// Whether a command of the system succeeds; it says so if not.
fn run(program: &str, arguments: &[&str]) -> bool {
    let path = format!("/usr/sbin:/sbin:{}", env::var("PATH").unwrap_or_default());
    let why = match Command::new(program).args(arguments).env("PATH", path).output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    println!("skipped: {program} {arguments:?}: {why}");
    false
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
