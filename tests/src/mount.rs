//! File systems of a test's own, which nobody else sees and which go with the test.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// True if namespaces can be had; says so if not.
pub fn possible() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        println!("skipped: a mount namespace takes root");
    }
    root
}

/// Moves the calling thread, and what it starts, into a mount namespace of its own. False if that is not to be had
/// without root.
///
/// # Panics
/// If root cannot have one either.
pub fn enter_namespace() -> bool {
    if !possible() {
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

/// A file system on a block device that can be made to fail, and be mended: a loop device whose end is cut off. What the
/// kernel writes back beyond the new end gets EIO, as from a disk that breaks.
#[derive(Debug)]
pub struct Device {
    name: String,
    file: PathBuf,
    bytes: u64,
}

impl Device {
    /// Mounts an empty one of `bytes` bytes on the directory `at`; its content is kept in the new file `file`. `None`,
    /// with the reason, if this host gives no loop device. It goes when it is mounted no more.
    ///
    /// # Panics
    /// If it cannot be made or mounted.
    pub fn mount(at: &Path, file: PathBuf, bytes: u64) -> Option<Device> {
        File::create(&file).and_then(|file| file.set_len(bytes)).expect("there is room for a sparse file");
        // No journal: the first failure would end it, and with it all writing for good.
        let ext4 = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-E", "lazy_itable_init=0"];
        succeeds("mke2fs", Command::new("/sbin/mke2fs").args(ext4).arg(&file));
        let found = Command::new("/sbin/losetup").args(["--find", "--show"]).arg(&file).output();
        let found = found.expect("losetup is installed");
        if !found.status.success() {
            println!("skipped: no loop device: {}", String::from_utf8_lossy(&found.stderr).trim());
            return None;
        }
        let name = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        mount(&["-o", "errors=continue", &name, &at.to_string_lossy()]);
        // In use, it is given back later, at the unmount.
        succeeds("losetup", Command::new("/sbin/losetup").args(["--detach", &name]));
        fs::remove_dir(at.join("lost+found")).expect("mke2fs made it");
        Some(Device { name, file, bytes })
    }

    /// From now on only the first `bytes` bytes can be written.
    ///
    /// # Panics
    /// If the device cannot be changed.
    pub fn fail_beyond(&self, bytes: u64) {
        let file = File::options().write(true).open(&self.file).expect("it is there");
        file.set_len(bytes).expect("its length can be changed");
        succeeds("losetup", Command::new("/sbin/losetup").args(["--set-capacity", &self.name]));
    }

    /// All of it can be written again. What was beyond is zero now.
    ///
    /// # Panics
    /// If the device cannot be changed.
    pub fn mend(&self) {
        self.fail_beyond(self.bytes);
    }
}

fn mount(arguments: &[&str]) {
    succeeds(&format!("mount {arguments:?}"), Command::new("mount").args(arguments));
}

fn succeeds(what: &str, command: &mut Command) {
    let Output { status, stderr, .. } = command.output().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(status.success(), "{what}: {}", String::from_utf8_lossy(&stderr));
}
