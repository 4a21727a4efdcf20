//! Writing to the disk begins while there is more to write, so that the flush at the end has little left to wait for.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// Has the kernel begin to write these bytes of `file` to its disk, as far as they are only in its cache; it does not
/// wait for that (sync_file_range(2)). Nothing is durable by it, and nothing is lost where it does nothing.
pub(crate) fn begin(file: &File, range: &Range<u64>) {
    let (offset, bytes) = (range.start as libc::off64_t, (range.end - range.start) as libc::off64_t);
    // SAFETY: a system call that takes integers, on a descriptor that is open.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
}
