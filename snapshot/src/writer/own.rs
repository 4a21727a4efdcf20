//! A fork after which this process writes to its memory as before.
//!
//! After a fork the pages of both processes are the same until one of them writes there, who then waits for a copy, and
//! interrupts all CPUs that it is on. There are dozens that are written to while the guest stands still. A page that is
//! pinned the kernel copies for the child at once (`copy_present_page`), so that its owner never notices. What pins pages
//! is a ring of io_uring(7) that has them as its buffers.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::present::Present;

/// Larger mappings than a thread's stack, but for the heap, are none that are written to all the time.
const MOST_BYTES: usize = (2 << 20) + (64 << 10);
/// `IORING_REGISTER_BUFFERS` and `IORING_UNREGISTER_BUFFERS` (io_uring_register(2)).
const REGISTER_BUFFERS: libc::c_uint = 0;
const UNREGISTER_BUFFERS: libc::c_uint = 1;
/// `struct io_uring_params`: nothing but zeros is asked for.
const PARAMS_BYTES: usize = 120;

/// Pages that are pinned as long as this lives.
pub(super) struct Pinned(OwnedFd);

/// Pins what this process has of its own beside `others`: heap and stacks.
///
/// # Errors
/// It may not, or not so much (RLIMIT_MEMLOCK), a thread has just ended, or the kernel has no io_uring.
pub(super) fn pin<'a>(others: impl Iterator<Item = &'a Range<usize>> + Clone) -> io::Result<Pinned> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let is_other = |memory: &Range<usize>| others.clone().any(|other| other.contains(&memory.start));
    let own: Vec<Range<usize>> = maps.lines().filter_map(own_memory).filter(|memory| !is_other(memory)).collect();
    let buffer = |run: &Range<usize>| libc::iovec { iov_base: run.start as *mut libc::c_void, iov_len: run.len() };
    let buffers: Vec<libc::iovec> = Present::now(&own)?.all().iter().map(buffer).collect();
    let mut params = [0_u64; PARAMS_BYTES / size_of::<u64>()];
    // SAFETY: the kernel reads and writes `params`, which is as long as its structure, and makes a descriptor.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us alone.
    let ring = unsafe { OwnedFd::from_raw_fd(made as libc::c_int) };
    // SAFETY: the kernel reads the list, and pins the pages; nothing is ever read into them.
    let pinned = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring.as_raw_fd(),
            REGISTER_BUFFERS,
            buffers.as_ptr(),
            buffers.len() as libc::c_uint,
        )
    };
    if pinned < 0 { Err(io::Error::last_os_error()) } else { Ok(Pinned(ring)) }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: takes integers. The kernel would do it when the ring is closed, but later.
        unsafe {
            let none = std::ptr::null::<libc::iovec>();
            libc::syscall(libc::SYS_io_uring_register, self.0.as_raw_fd(), UNREGISTER_BUFFERS, none, 0 as libc::c_uint);
        }
    }
}

/// The memory that a line of proc_pid_maps(5) tells of, if it is the program's own, no file's, and can be written to.
fn own_memory(line: &str) -> Option<Range<usize>> {
    let words: Vec<&str> = line.split(' ').collect();
    let [span, "rw-p", _, _, "0", ..] = words[..] else { return None };
    let (start, end) = span.split_once('-')?;
    let memory = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    (memory.len() <= MOST_BYTES || line.ends_with(" [heap]")).then_some(memory)
}

#[cfg(test)]
mod tests {
    use super::super::child;
    use super::*;

    /// How many page faults this thread has had that a disk has nothing to do with.
    fn faults() -> i64 {
        // SAFETY: zeros are a valid structure of integers, which the kernel fills in.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage.ru_minflt
        }
    }

    /// Of a write to each of a hundred pages, after a fork.
    fn faults_after_a_fork(pinned: Option<Pinned>, memory: &mut [u8]) -> i64 {
        let wait = || loop {
            std::thread::park();
        };
        let child = child::fork(&[], 0, wait).expect("forks");
        drop(pinned);
        let before = faults();
        memory.iter_mut().step_by(4096).for_each(|byte| *byte += 1);
        let after = faults();
        drop(child);
        after - before
    }

    #[test]
    fn what_is_pinned_is_written_to_after_a_fork_as_before() {
        const PAGES: usize = 100;
        let mut memory = vec![1; PAGES * 4096];
        let own = memory.as_ptr() as usize;
        let (all, none) = (0..usize::MAX, own..own);
        // Again if another test forks or pins as well, in the same process.
        assert!((0..9).any(|_| faults_after_a_fork(pin([&all].into_iter()).ok(), &mut memory) >= PAGES as i64));
        match pin([&none].into_iter()).map_err(|error| error.raw_os_error()) {
            Err(Some(libc::ENOSYS | libc::EPERM)) => eprintln!("skipped: there is no io_uring here"),
            _ => assert!(
                (0..9).any(|_| { faults_after_a_fork(pin([&none].into_iter()).ok(), &mut memory) < PAGES as i64 / 10 })
            ),
        }
    }

    #[test]
    fn own_memory_is_private_no_files_and_can_be_written_to() {
        let line = |access, end, inode| format!("7f0000000000-{end} {access} 00000000 00:00 {inode} ");
        let (small, large) = ("7f0000002000", "7f0000401000");
        assert_eq!(own_memory(&line("rw-p", small, 0)), Some(0x7f00_0000_0000..0x7f00_0000_2000));
        assert!(own_memory(&(line("rw-p", large, 0) + "    [heap]")).is_some());
        for (access, end, inode) in [("r--p", small, 0), ("rw-s", small, 0), ("rw-p", large, 0), ("rw-p", small, 7)] {
            assert_eq!(own_memory(&line(access, end, inode)), None);
        }
        assert_eq!(own_memory(""), None);
    }
}
