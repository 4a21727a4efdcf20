//! No process outlives the test that started it, however that ends: also by a signal, as a runner sends it that is out of
//! patience.
//!
//! The kernel sends the signal when the *thread* ends that started the process. So whoever starts one keeps the handle of
//! it on that thread: [`Bound`] in it makes the compiler see to that.
#![allow(unsafe_code)]

use std::{io, marker::PhantomData, os::unix::process::CommandExt, process::Command, sync::MutexGuard};

/// In a value that must not leave its thread. It may be looked at from others.
pub(crate) type Bound = PhantomData<MutexGuard<'static, ()>>;

/// What `command` starts is killed when the thread that starts it has ended.
pub fn forbid(command: &mut Command) {
    let parent = std::process::id();
    let tie = move || {
        // SAFETY: prctl(2) and getppid(2) take integers and concern the new process alone.
        let orphaned = unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::getppid() as u32 != parent
        };
        if orphaned { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec `tie` makes two system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(tie) };
}
