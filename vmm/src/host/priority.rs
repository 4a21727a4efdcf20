//! Work in the background: the guest comes first.
#![allow(unsafe_code)]

/// Niceness of a thread that may take what the guest leaves of the CPUs, and a tenth of what it does not.
const NICE: libc::c_int = 10;

/// The calling thread stands back behind the vCPUs and whoever serves them: these run at once when they wake up. If it
/// cannot it works all the same.
pub fn stand_back() {
    // SAFETY: a system call on this thread's own priority (0: the caller; on Linux a thread, not its process).
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}
