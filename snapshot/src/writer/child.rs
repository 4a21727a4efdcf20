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

use crate::files::retry;
use crate::memory::PlannedChunk;

/// How often somebody who waits for a child looks how far it is, in milliseconds.
const LOOK_EVERY_MS: u16 = 50;
/// What a child beside as many vCPUs as CPUs adds to its parent's niceness: these come first, with three parts of four of a CPU that one of them
/// keeps busy. Much more and, where all CPUs are busy, a checkpoint takes so long that copy-on-write costs the guest more
/// than it is spared.
const NICE: libc::c_int = 5;
/// How much less of a CPU one niceness more takes; see sched(7).
const PER_NICE: f64 = 1.25;
const NICE_MAX: libc::c_int = 19;
/// Best effort, the last of its eight levels; see ioprio_set(2).
const IO_PRIORITY: libc::c_int = (2 << 13) | 7;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// A child process. It is killed and reaped if this is dropped.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    reaped: bool,
}

/// What a child beside `vcpus` adds to its parent's niceness: where they are more than the host's CPUs, and all are busy, what it has left of one
/// is still about a fourth, as far as that takes no privilege.
pub(super) fn niceness(vcpus: usize, cpus: usize) -> libc::c_int {
    let share = vcpus as f64 / cpus.max(1) as f64;
    let steps = share.max(1.0).log(PER_NICE).round() as libc::c_int;
    (NICE - steps).max(0)
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
        // It never takes the CPU from a vCPU when it wakes up; see sched(7), SCHED_BATCH. Its slice is the usual one,
        // whatever its parent's is.
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        attributes.size = size_of::<libc::sched_attr>() as u32;
        attributes.sched_policy = libc::SCHED_BATCH as u32;
        attributes.sched_nice = (libc::getpriority(libc::PRIO_PROCESS, 0) + nice).min(NICE_MAX);
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IO_PRIORITY);
    }
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
