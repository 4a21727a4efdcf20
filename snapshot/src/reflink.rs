//! FICLONE: one file takes the content of another by sharing its extents (ioctl_ficlone(2)).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Makes `to` share the whole content of `from`, length included. What happens to either later does not show in the
/// other.
///
/// # Errors
/// EOPNOTSUPP, EXDEV, EINVAL and others where the file system cannot: copy instead. ENOSPC, EIO.
pub(crate) fn reflink(from: &File, to: &File) -> io::Result<()> {
    loop {
        // SAFETY: FICLONE takes the source descriptor by value and touches no memory of ours; both descriptors are
        // open for as long as the borrows of the two files.
        let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
