//! The network's state directory.
//!
//! ```text
//! STATE/network.lock  control.sock
//! STATE/NODE/         the VM's state directory, with its lock; vm.json, what it was booted from; output, what it says
//! ```
//!
//! Invariant: a network begins only where no VM of another one runs, supervised or not: what it writes here, and what it
//! sweeps from among the checkpoints, whoever takes that one over needs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ckvmm_snapshot::make_dirs;

use crate::error::{Error, Result};
use crate::host;
use crate::network::store;

/// The directory, absolute, and its lock.
///
/// # Errors
/// It cannot be made, or it has a supervisor.
pub(super) fn open(path: &Path) -> Result<(PathBuf, File)> {
    let path = std::path::absolute(path).map_err(Error::os("finding the current directory"))?;
    make_dir(&path)?;
    let lock = store::lock(&path.join("network.lock"))?;
    Ok((path, lock))
}

/// The same, for a network that begins.
///
/// # Errors
/// As [`open`]; or VMs run in it that a supervisor has left.
pub(super) fn open_without_vms(path: &Path) -> Result<(PathBuf, File)> {
    let (path, lock) = open(path)?;
    let what = "cannot be listed; give another directory with --state";
    let entries = fs::read_dir(&path).map_err(|source| Error::Io { path: path.clone(), what, source })?;
    for entry in entries.filter_map(std::result::Result::ok) {
        // What cannot be opened is no VM's; and a FIFO would be waited for.
        let mut open = OpenOptions::new();
        let Ok(vm) = open.read(true).custom_flags(libc::O_NONBLOCK).open(entry.path().join("lock")) else { continue };
        if !host::lock::take(&vm).map_err(Error::os("looking for VMs that run"))? {
            let node = entry.file_name().to_string_lossy().into_owned();
            return Err(Error::LeftBehind { path, node });
        }
    }
    Ok((path, lock))
}

pub(super) fn make_dir(path: &Path) -> Result<()> {
    let what = "the state directory cannot be made there; give another one with --state";
    make_dirs(path).map_err(|source| Error::Io { path: path.into(), what, source })
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_a_lock_that_somebody_holds_is_a_vm_s() {
        let dir = tempfile::tempdir().unwrap();
        let node = |name: &str| {
            let node = dir.path().join(name);
            fs::create_dir(&node).unwrap();
            node.join("lock")
        };
        fs::write(dir.path().join("file"), "").unwrap();
        mkfifo(&node("fifo"), Mode::S_IRWXU).unwrap();
        fs::create_dir(node("directory")).unwrap();
        node("none");
        fs::write(node("left"), "").unwrap();
        drop(open_without_vms(dir.path()).expect("no VM runs there"));
        let held = File::create(node("n-0")).unwrap();
        assert!(host::lock::take(&held).unwrap());
        let error = open_without_vms(dir.path()).unwrap_err().to_string();
        assert!(error.contains("the VM of n-0 runs there"), "{error}");
    }
}
