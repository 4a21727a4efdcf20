//! The second CPU: what it does, and its own account of it. It asks nobody and answers nobody.

use core::ptr::addr_of_mut;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::fail;
use crate::jobs::Account;
use crate::machine::{start_second_cpu, tsc};
use crate::model::Header;

/// TSC ticks in which it begins, or does not at all.
const PATIENCE: u64 = 1 << 35;

static ARENA: AtomicU64 = AtomicU64::new(0);
static HOT: AtomicU64 = AtomicU64::new(0);
static READS: AtomicBool = AtomicBool::new(false);
static RUNS: AtomicBool = AtomicBool::new(false);
/// Its account. The first CPU reads it and forgets its gaps.
static mut HEADER: Header = Header::EMPTY;

/// Lets the second CPU sweep the hot set too, from its middle on; returns its account.
pub fn sweep(arena: u64, hot: u64, reads: bool) -> *mut Header {
    ARENA.store(arena, Ordering::Relaxed);
    HOT.store(hot, Ordering::Relaxed);
    READS.store(reads, Ordering::Release);
    start_second_cpu();
    let begin = tsc();
    while !RUNS.load(Ordering::Acquire) {
        if tsc().wrapping_sub(begin) > PATIENCE {
            fail(format_args!("the second CPU does not start"));
        }
        core::hint::spin_loop();
    }
    addr_of_mut!(HEADER)
}

/// Where second.s goes to, at CPL 3.
#[unsafe(no_mangle)]
extern "sysv64" fn second_main() -> ! {
    let reads = READS.load(Ordering::Acquire);
    let (arena, hot) = (ARENA.load(Ordering::Relaxed), HOT.load(Ordering::Relaxed));
    let mut account = Account::of_second(addr_of_mut!(HEADER), arena);
    RUNS.store(true, Ordering::Release);
    account.sweep(hot, hot / 2 & !0xfff, reads)
}
