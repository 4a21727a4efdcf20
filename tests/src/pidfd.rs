//! A process held by a descriptor: its number may be another one's by now, the descriptor never is.
#![allow(unsafe_code)]

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sys::signal::Signal,
};

/// A process that need not be a child of this one.
#[derive(Debug)]
pub struct Pidfd {
    pid: i32,
    fd: OwnedFd,
}

impl Pidfd {
    /// The process with this number; `None` if there is none.
    pub fn open(pid: i32) -> Option<Self> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the kernel just made this descriptor for us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Some(Pidfd { pid, fd })
    }

    /// The children of the process `parent` that are there now.
    pub fn children_of(parent: u32) -> Vec<Self> {
        let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let pids =
            lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>());
        // Looked at again once it is held: only then is it known to be the one that was in the list.
        pids.filter_map(Self::open).filter(|child| child.parent() == Some(parent)).collect()
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn parent(&self) -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
    }

    /// Kills it. That it has ended by itself is no failure.
    pub fn kill9(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends it a signal. That it has ended by itself is no failure.
    pub fn signal(&self, signal: Signal) {
        let (fd, signal) = (self.fd.as_raw_fd(), signal as i32);
        // SAFETY: pidfd_send_signal(2) takes integers, and a null pointer for the signal as kill(2) sends it.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0) };
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    pub fn wait(&self, limit: Duration) {
        let mut ended = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        assert_eq!(poll(&mut ended, limit), Ok(1), "process {} does not end", self.pid);
    }
}
