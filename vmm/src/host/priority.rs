//! Who gets a CPU first where there are too few: whoever is waited for, then the guest, then work in the background.
//!
//! A thread has a slice, for which it computes before another one's turn comes. One with a short slice gets the CPU at once
//! when it wakes up, and is overtaken by others no less than before if it computes on: on a host with more busy vCPUs than
//! CPUs a checkpoint begins when it is asked for, and not when each of these has had its turn. It takes no privilege
//! (Linux 6.12; before, a slice is not looked at).
#![allow(unsafe_code)]

/// Niceness of a thread that may take what the guest leaves of the CPUs, and a tenth of what it does not.
const NICE: libc::c_int = 10;
/// The kernel's shortest slice, in nanoseconds.
const SHORTEST_SLICE: u64 = 100_000;
/// The slice that the kernel thinks right.
const USUAL_SLICE: u64 = 0;

/// The calling thread, and those that it will start, have little to do at a time, for which others wait.
pub fn be_prompt() {
    set(libc::SCHED_OTHER, nice(), SHORTEST_SLICE);
}

/// The calling thread computes, as a vCPU does.
pub fn be_usual() {
    set(libc::SCHED_OTHER, nice(), USUAL_SLICE);
}

/// The calling thread stands back behind the vCPUs and whoever serves them: these run at once when they wake up, and it
/// takes the CPU from nobody when it does (SCHED_BATCH).
pub fn stand_back() {
    set(libc::SCHED_BATCH, NICE, USUAL_SLICE);
}

fn nice() -> libc::c_int {
    // SAFETY: a system call that takes integers. A failure, of which there is none for the caller itself, reads as -1.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Of the calling thread; see sched_setattr(2). If it cannot, it works all the same. Who was started under another policy,
/// a real-time one or SCHED_BATCH, is meant to keep that.
fn set(policy: libc::c_int, nice: libc::c_int, slice: u64) {
    // SAFETY: integers, for which zeros are valid; and system calls that read them and concern this thread alone.
    unsafe {
        let policy = match libc::sched_getscheduler(0) {
            libc::SCHED_OTHER => policy,
            libc::SCHED_BATCH => libc::SCHED_BATCH,
            _ => return,
        };
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        attributes.size = size_of::<libc::sched_attr>() as u32;
        attributes.sched_policy = policy as u32;
        attributes.sched_nice = nice;
        attributes.sched_runtime = slice;
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
    }
}
