//! The time of day as KVM tells its guests (kvmclock): a page that the host fills in, and the TSC.
//!
//! ```text
//!   0  version u32, odd while it changes     8  TSC at the time below     16  time, ns
//!  24  multiplier of TSC ticks u32 (/ 2^32)  28  shift of them before that i8
//! ```

use crate::machine::{set_kvmclock, tsc};

#[repr(C, align(64))]
struct Page([u64; 8]);

static mut PAGE: Page = Page([0; 8]);

/// The TSC, and the nanoseconds of kvmclock at that moment. Asked for the first time, KVM is told of the page; anybody
/// but KVM makes a triple fault of that.
pub fn read() -> (u64, u64) {
    let page = &raw const PAGE as *const u64;
    // SAFETY: a page of our own, which is never moved; what is read of it while the host writes is read again.
    let word = |at: usize| unsafe { page.add(at).read_volatile() };
    if word(0) as u32 == 0 {
        set_kvmclock(page as u32 | 1);
    }
    loop {
        let version = word(0);
        let (since, time, scale) = (word(1), word(2), word(3));
        let now = tsc();
        if version & 1 == 0 && version as u32 != 0 && word(0) == version {
            let ticks = u128::from(now.wrapping_sub(since));
            let ticks = match (scale >> 32) as i8 {
                shift @ 0.. => ticks << shift,
                shift => ticks >> shift.unsigned_abs(),
            };
            return (now, time + (ticks * u128::from(scale as u32) >> 32) as u64);
        }
    }
}
