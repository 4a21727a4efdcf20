//! Whether the checkpoint directory's file system can share extents (FICLONE), by trying it.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Check;

const NAME: &str = "reflink";

nix::ioctl_write_int!(ficlone, 0x94, 9);

pub(super) fn check(dir: &Path) -> Check {
    let shown = dir.display();
    match try_it(dir) {
        Ok(()) => Check::ok(NAME, format!("{shown} can share extents: disks are captured without copying")),
        Err(e) if cannot(&e) => Check::warning(
            NAME,
            format!("{shown} is on a file system that cannot share extents: disks are copied"),
            "keep disks and checkpoints together on XFS or Btrfs",
        ),
        Err(e) => Check::failure(
            NAME,
            format!("{shown} cannot be tried: {e}"),
            "name a directory that you can write to: ckvmm doctor DIR",
        ),
    }
}

fn cannot(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::EXDEV | libc::ENOSYS))
}

fn try_it(dir: &Path) -> io::Result<()> {
    let from = Scratch::new(dir)?;
    let to = Scratch::new(dir)?;
    (&from.file).write_all(&[1; 4096])?;
    let source = from.file.as_raw_fd();
    let source = libc::c_ulong::try_from(source).expect("an open descriptor is not negative");
    // SAFETY: FICLONE takes a descriptor, not a pointer; both are open regular files of our own.
    unsafe { ficlone(to.file.as_raw_fd(), source) }?;
    Ok(())
}

/// A file that is gone when it is dropped.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn new(dir: &Path) -> io::Result<Self> {
        let path = dir.join(format!(".ckvmm-doctor-{}", uuid::Uuid::new_v4()));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_directory_that_is_not_there_is_said_so() {
        let check = check(Path::new("/nonexistent/checkpoints"));
        assert_eq!(check.level, Level::Failure);
        assert!(check.found.contains("/nonexistent/checkpoints"), "{check:?}");
    }

    #[test]
    fn a_file_system_without_extents_is_only_slower() {
        // /proc/self/fd never is, /dev/shm is a tmpfs
        let check = check(Path::new("/dev/shm"));
        assert_eq!(check.level, Level::Warning, "{check:?}");
    }
}
