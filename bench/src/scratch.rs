//! Directories and processes of one run, which end with it, however it ends: a signal that cannot be caught included.
//!
//! A shell, the keeper, waits for the end of its standard input, which only this process holds open. Then it removes
//! the directories, undoes what was changed of the host, and kills its process group, in which every VM is. No process
//! IDs are kept that may have become somebody else's, and a VM's start takes no longer for it.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use ckvmm_tests::{
    paths,
    process::{self, Ckvmm},
};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

use crate::{case::Place, host};

/// What is on the disk and in memory for the time of a run.
pub(crate) struct Scratch {
    keeper: Child,
    tmpfs: PathBuf,
    disk: PathBuf,
    /// Numbers the directories.
    made: u32,
}

impl Scratch {
    /// Empty directories, and who removes them.
    pub(crate) fn new() -> Self {
        let tmpfs = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).map(TempDir::keep);
        let tmpfs = tmpfs.expect("there is room for temporary files");
        let disk = tempfile::tempdir_in(paths::root().join("build")).map(TempDir::keep);
        let disk = disk.expect("build/ can be written").canonicalize().expect("it was just made");
        let keeper = Command::new("sh")
            .args(["-c", &format!("read -r _; {}\nrm -rf -- \"$@\"; kill -KILL 0", host::undo()), "keeper"])
            .args([&tmpfs, &disk])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        Scratch { keeper: keeper.expect("there is a shell"), tmpfs, disk, made: 0 }
    }

    /// A new directory.
    pub(crate) fn dir(&mut self, place: Place) -> PathBuf {
        self.made += 1;
        let dir = self.place(place).join(format!("{}", self.made));
        fs::create_dir(&dir).expect("the run's directory is there");
        dir
    }

    /// Where the directories are made.
    pub(crate) fn place(&self, place: Place) -> &Path {
        match place {
            Place::Tmpfs => &self.tmpfs,
            Place::Disk => &self.disk,
        }
    }

    /// Whether what is written there takes memory.
    pub(crate) fn is_memory(&self, place: Place) -> bool {
        statfs(self.place(place)).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
    }

    /// `ckvmm` in `dir`.
    pub(crate) fn ckvmm(&self, dir: &Path) -> Command {
        process::command(dir)
    }

    /// Starts a VMM, which will not outlive this process.
    pub(crate) fn start(&self, mut command: Command) -> Ckvmm {
        command.process_group(self.keeper.id() as i32);
        Ckvmm::start_command(command)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        // It kills itself last.
        let _ = self.keeper.wait();
    }
}
