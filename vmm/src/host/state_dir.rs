//! A VM's state directory: `lock`, `log`, `console.log`, `disks/`, `checkpoints/`. Private to its owner.
//!
//! Invariant: whoever holds a [`StateDir`] is the only VM that runs on it, on this host: `lock` is held by flock(2)
//! until the process ends, however it ends. What is flushed to disks and checkpoints in it is found after a power loss:
//! the directories' names are durable before one is made. No earlier: a guest that is restored would wait for it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use ckvmm_snapshot::{make_dir_unsynced, sync_name};
use nix::unistd::Pid;

use super::{lock, process::Process};
use crate::error::{Error, Result};

/// A pid is read from somebody else's lock file: no more of it than this.
const PID_BYTES_MAX: u64 = 16;
/// What the guest says on its serial port goes to this file of the directory.
pub const CONSOLE_LOG: &str = "console.log";

/// A state directory that this process has for itself.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// It was not there before.
    is_new: bool,
    /// Set once its name is durable.
    lasting: OnceLock<()>,
    _lock: File,
}

impl StateDir {
    /// Opens the directory, makes it if it is not there, and takes its lock.
    ///
    /// # Errors
    /// If it cannot be made or written, or another VM runs on it.
    pub fn open(path: &Path) -> Result<Self> {
        let path = &std::path::absolute(path).map_err(Error::os("finding the current directory"))?;
        let is_new = make_or_find(path)?;
        let lock_path = path.join("lock");
        let what = "cannot be written; mend that, or give another directory with --state (or --work)";
        let io_error = |source| Error::Io { path: lock_path.clone(), what, source };
        let mut held = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error)?;
        if !lock::take(&held).map_err(io_error)? {
            return Err(Error::Busy { path: path.into(), pid: owner(&held) });
        }
        // For people who look, and for `holder`: the lock itself is what counts.
        held.set_len(0).and_then(|()| writeln!(held, "{}", std::process::id())).map_err(io_error)?;
        Ok(StateDir { path: path.into(), is_new, lasting: OnceLock::new(), _lock: held })
    }

    /// Waits until its name is durable. Who made it before this process may have seen to that, and may not let the
    /// directory above be read: of such a one it is no error that it cannot be waited for.
    ///
    /// # Errors
    /// If the file system does not say so.
    pub fn make_lasting(&self) -> Result<()> {
        if self.lasting.get().is_none() {
            match sync_name(&self.path) {
                Err(source) if self.is_new => return Err(not_lasting(&self.path, source)),
                _ => self.lasting.get_or_init(|| ()),
            };
        }
        Ok(())
    }

    /// Sees that working copies of disks can be made, to last.
    ///
    /// # Errors
    /// If there can be no directory for them.
    pub fn make_disks(&self) -> Result<()> {
        self.make_lasting()?;
        let path = self.path.join("disks");
        make_or_find(&path)?;
        sync_name(&path).map_err(|source| not_lasting(&path, source))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the working copy of a disk is.
    pub fn disk(&self, id: &str) -> PathBuf {
        self.path.join("disks").join(format!("{id}.raw"))
    }

    /// Where checkpoints go if the configuration does not say.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// What ckvmm itself says.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// What the guest says on its serial port.
    pub fn console_log(&self) -> PathBuf {
        self.path.join(CONSOLE_LOG)
    }
}

/// Who has the lock of a state directory: whoever it names, if that one has it open. Absent: it cannot be told.
pub fn holder(lock: &File) -> Option<Process> {
    let process = Process::open(Pid::from_raw(owner(lock).parse().ok()?)).ok()?;
    process.has_open(&lock.metadata().ok()?).then_some(process)
}

fn owner(lock: &File) -> String {
    let mut pid = String::new();
    match lock.take(PID_BYTES_MAX).read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => pid.trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}

/// Makes a directory; false if it is there already, which is as good.
fn make_or_find(path: &Path) -> Result<bool> {
    let what = "the state directory cannot be made there; give another one with --state (or --work)";
    let failed = |source| Error::Io { path: path.into(), what, source };
    match make_dir_unsynced(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if fs::metadata(path).map_err(failed)?.is_dir() {
                Ok(false)
            } else {
                Err(failed(ErrorKind::NotADirectory.into()))
            }
        }
        made => made.map(|()| true).map_err(failed),
    }
}

fn not_lasting(path: &Path, source: io::Error) -> Error {
    let what = "its name cannot be made durable; give another state directory with --state (or --work)";
    Error::Io { path: path.into(), what, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_vm_at_a_time_and_nobody_else_looks_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ckvmm");
        let first = StateDir::open(&path).unwrap();
        first.make_disks().unwrap();
        for private in [&path, &path.join("disks")] {
            assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        StateDir::open(&path).unwrap().make_disks().unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ckvmm");
        fs::write(&path, "").unwrap();
        assert!(StateDir::open(&path).unwrap_err().to_string().contains("--state"));
    }
}
