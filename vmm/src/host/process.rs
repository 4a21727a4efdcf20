//! A process held by a descriptor (pidfd_open(2)): what is sent to it reaches it or nobody, never another process that has
//! its number by now.

#![allow(unsafe_code)] // no library of ours has these calls

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A process, which need not be a child of this one.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: OwnedFd,
}

impl Process {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none, or the system has no descriptors left.
    pub fn open(pid: Pid) -> io::Result<Process> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
        // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows it.
        Ok(Process { pid, fd: unsafe { OwnedFd::from_raw_fd(fd as i32) } })
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has this file open. When it has ended, another process that has its number by now may be looked at
    /// instead, and that is no matter: what is sent to this one then reaches nobody.
    pub fn has_open(&self, file: &Metadata) -> bool {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        let mut open = open.filter_map(|entry| fs::metadata(entry.path()).ok());
        open.any(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
    }

    /// Sends it a signal; one that has ended needs none.
    pub fn signal(&self, signal: Signal) {
        let (fd, signal) = (self.fd.as_raw_fd(), signal as i32);
        // SAFETY: pidfd_send_signal(2) takes integers, and a null pointer for the signal as kill(2) sends it.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0) };
    }
}
