//! A child of another process, held from its first instruction on: what it does takes a moment, and a test may need all
//! the time in the world for what is to happen meanwhile. The kernel holds it for whoever traces its parent. And a thread
//! that stands still, as if its disk did not answer.
//!
//! Invariant: all calls about a process come from the thread that traces it, so no type leaves its thread.

use std::{ffi::OsStr, fs, marker::PhantomData, path::Path};

use nix::{
    sys::{
        ptrace::{self, Event, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// A process whose next child will be held.
#[derive(Debug)]
pub struct Expecting(Pid, PhantomData<*const ()>);

/// A child that has not begun. It goes on when this goes.
#[derive(Debug)]
pub struct Held(Pid, PhantomData<*const ()>);

impl Expecting {
    /// Begins to trace the main thread of the process `parent`.
    ///
    /// # Panics
    /// If that is not allowed.
    pub fn new(parent: i32) -> Self {
        let parent = Pid::from_raw(parent);
        ptrace::seize(parent, Options::PTRACE_O_TRACEFORK).expect("a process of this test can be traced");
        Expecting(parent, PhantomData)
    }

    /// Waits until the main thread has forked, and lets it go on.
    ///
    /// # Panics
    /// If it ends before.
    pub fn child(self) -> Held {
        loop {
            match wait(self.0) {
                WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_FORK as i32 => {
                    let child = Pid::from_raw(ptrace::getevent(self.0).expect("it has forked") as i32);
                    wait(child);
                    ptrace::detach(self.0, None).expect("it stands still");
                    return Held(child, PhantomData);
                }
                WaitStatus::PtraceEvent(..) => ptrace::cont(self.0, None).expect("it stands still"),
                WaitStatus::Stopped(_, signal) => ptrace::cont(self.0, signal).expect("it stands still"),
                other => panic!("it does not fork: {other:?}"),
            }
        }
    }
}

impl Held {
    /// Kills it.
    pub fn kill9(self) {
        // It may be dead already, with its parent; either way its end is seen below.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Of one that is dead, its parent hears only after whoever traces it.
        if ptrace::detach(self.0, None).is_err() {
            while !matches!(wait(self.0), WaitStatus::Signaled(..) | WaitStatus::Exited(..)) {}
        }
    }
}

/// A thread that stands still. It goes on when this goes.
#[derive(Debug)]
pub struct Still(Pid, PhantomData<*const ()>);

impl Still {
    /// Stops the thread of that name of a process.
    ///
    /// # Panics
    /// If there is none, or that is not allowed.
    pub fn thread(process: i32, name: &str) -> Self {
        let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten();
        let is_called = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let thread = threads.map(|thread| thread.path()).find(|path| is_called(path)).expect("it has such a thread");
        let number = thread.file_name().and_then(OsStr::to_str).and_then(|number| number.parse().ok());
        let thread = Pid::from_raw(number.expect("threads have numbers"));
        ptrace::seize(thread, Options::empty()).expect("a process of this test can be traced");
        ptrace::interrupt(thread).expect("it is traced");
        wait(thread);
        Still(thread, PhantomData)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // Of a process that was killed there is none any more.
        let _ = ptrace::detach(self.0, None);
    }
}

fn wait(pid: Pid) -> WaitStatus {
    waitpid(pid, Some(WaitPidFlag::__WALL)).expect("it is traced")
}
