//! The memory that this process allocates: a VMM has little, its guest and other VMs want the rest.
#![allow(unsafe_code)]

/// All threads have one heap, not each its own, whose free memory serves no other: whoever the guest waits for allocates
/// little. To be called before a thread is started.
pub fn share_one() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes integers; see mallopt(3), M_ARENA_MAX.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back what is free: a checkpoint takes more than the VMM has between them, and the C library would keep it. Who
/// allocates meanwhile waits.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; see malloc_trim(3), which is safe among threads.
    unsafe {
        libc::malloc_trim(0);
    }
}
