//! Who gets a CPU first: whoever the guest waits for, then the guest, then the writer.
#![allow(unsafe_code)]

/// What a child beside as many vCPUs as CPUs adds to its parent's niceness: these come first, with three parts of four of a CPU that one of them
/// keeps busy. Much more and, where all CPUs are busy, a checkpoint takes so long that copy-on-write costs the guest more
/// than it is spared.
pub(super) const NICE: libc::c_int = 5;
/// How much less of a CPU one niceness more takes; see sched(7).
const PER_NICE: f64 = 1.25;
const NICE_MAX: libc::c_int = 19;
/// Best effort, the last of its eight levels; see ioprio_set(2).
const IO_PRIORITY: libc::c_int = (2 << 13) | 7;
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// What a child beside `vcpus` adds to its parent's niceness: where they are more than the host's CPUs, and all are busy, what it has left of one
/// is still about a fourth, as far as that takes no privilege.
pub(super) fn niceness(vcpus: usize, cpus: usize) -> libc::c_int {
    let share = vcpus as f64 / cpus.max(1) as f64;
    let steps = share.max(1.0).log(PER_NICE).round() as libc::c_int;
    (NICE - steps).max(0)
}

/// The calling thread has `nice` more niceness, and never takes the CPU from a vCPU when it wakes up; see sched(7),
/// SCHED_BATCH. Its slice is the usual one, whatever its parent's is.
pub(super) fn stand_back(nice: libc::c_int) {
    // SAFETY: system calls that take integers and a structure of integers, for which zeros are valid, and concern this
    // thread alone.
    unsafe {
        let mut attributes: libc::sched_attr = std::mem::zeroed();
        attributes.size = size_of::<libc::sched_attr>() as u32;
        attributes.sched_policy = libc::SCHED_BATCH as u32;
        attributes.sched_nice = (libc::getpriority(libc::PRIO_PROCESS, 0) + nice).min(NICE_MAX);
        libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IO_PRIORITY);
    }
}

/// The calling thread does at once what the guest waits for, a short while each time: it comes before all that is not of
/// real time (sched(7), SCHED_RR), if it may.
pub(super) fn come_first() {
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: a system call that reads a structure of integers and concerns this thread alone.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const lowest) };
}
