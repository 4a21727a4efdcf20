//! The process that the writer runs in.
//!
//! clone(2) is called directly: the C library's fork would first wait for the locks of its allocator, with the guest
//! standing still, only so that the child may allocate, which it does not.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::priority;
use crate::files::retry;
use crate::memory::PlannedChunk;

/// How often somebody who waits for a child looks how far it is, in milliseconds.
const LOOK_EVERY_MS: u16 = 50;
/// A child process. It is killed and reaped if this is dropped.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

/// Runs `work` in a child, whose exit status it returns, with `nice` more niceness than this one; of the descriptors the
/// child keeps only `keep`, ascending.
pub(super) fn fork(keep: &[RawFd], nice: libc::c_int, work: impl FnOnce() -> i32) -> io::Result<Child> {
    let parent = std::process::id();
    // The child has no use for our handlers, nor for a Ctrl-C at the terminal.
    let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: without CLONE_VM the child has its own copy of everything and goes on here; with CLONE_PIDFD the kernel
    // writes one descriptor to `pidfd`, which outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    if pid == 0 {
        let _exit = ExitOnUnwind;
        settle(keep, nice, parent);
        exit(work());
    }
    let failed = (pid < 0).then(io::Error::last_os_error);
    signals.thread_set_mask()?;
    match failed {
        Some(error) => Err(error),
        None => {
            // SAFETY: the kernel just made this descriptor for us alone.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: Pid::from_raw(pid as libc::pid_t), pidfd, reaped: false })
        }
    }
}

/// The child's: to be out of everybody's way, and to end with its parent. What it cannot have it does without.
fn settle(keep: &[RawFd], nice: libc::c_int, parent: u32) {
    // SAFETY: system calls that take integers, constant strings and a structure of integers, for which zeros are valid,
    // and concern this process alone. Its descriptors are copies: closing them takes nothing from the parent.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() as u32 != parent {
            exit(1);
        }
        // What is locked through them is free when the parent ends, however long this process stands back after this.
        let mut next = 0;
        for kept in keep {
            if *kept > next {
                libc::syscall(libc::SYS_close_range, next, *kept - 1, 0);
            }
            next = *kept + 1;
        }
        libc::syscall(libc::SYS_close_range, next, u32::MAX, 0);
        // If the host runs out of memory, the checkpoint goes, not the guest.
        let victim = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        libc::write(victim, c"1000".as_ptr().cast(), 4);
        libc::close(victim);
        libc::prctl(libc::PR_SET_NAME, c"ckvmm-writer".as_ptr());
    }
    priority::stand_back(nice);
}

/// The child's: it needs this chunk no more, so that the guest's writes there need no copy.
pub(super) fn give_back(memory: &GuestMemoryMmap, planned: &PlannedChunk) {
    let Ok(slice) = memory.get_slice(GuestAddress(planned.guest_address), planned.guest_bytes as usize) else { return };
    let start = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is guest RAM, of which this process holds no reference, and drops its own view only: the
    // mapping is private. A failure costs memory, nothing else.
    unsafe { libc::madvise(start.cast(), planned.guest_bytes as usize, libc::MADV_DONTNEED) };
}

impl Child {
    /// Something that can be read from once it has ended.
    pub(super) fn end(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Waits a moment for its end, and reaps it.
    pub(super) fn wait(&mut self) -> io::Result<Option<WaitStatus>> {
        let mut ended = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ended, LOOK_EVERY_MS) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            other => other?,
        };
        self.reap().map(Some)
    }

    fn reap(&mut self) -> io::Result<WaitStatus> {
        let status = retry(|| Ok(waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED)?))?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // Not reaped, its number is nobody else's. Both succeed, and there is nothing to do if they did not.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = self.reap();
        }
    }
}

/// Ends the child where it stands: it must not run its parent's code.
struct ExitOnUnwind;

impl Drop for ExitOnUnwind {
    fn drop(&mut self) {
        exit(2);
    }
}

fn exit(status: i32) -> ! {
    // SAFETY: ends this process without running anything of it.
    unsafe { libc::_exit(status) }
}
