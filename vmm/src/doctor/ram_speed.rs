//! How fast RAM is that was just mapped: the first touch, then a write to every byte.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use serde::{Deserialize, Serialize};

use crate::host::memory::available_bytes;

/// Bytes that are measured at a time.
const BYTES: usize = 64 << 20;
/// The best of so many rounds counts: if this host is a VM itself, its own host finds memory during the first.
const ROUNDS: usize = 3;
/// A huge page; the mapping is aligned to it.
const HUGE: usize = 2 << 20;
/// A small page: the first touch touches each.
const PAGE: usize = 4096;
/// Nothing is measured unless so many times [`BYTES`] are free.
const FREE_TIMES: u64 = 4;

/// Speed of RAM in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// First touch of each page: what a guest's first use of its RAM costs.
    pub first_touch_bytes_per_second: u64,
    /// Filling pages that are there.
    pub fill_bytes_per_second: u64,
}

impl Speed {
    fn best(self, other: Self) -> Self {
        Self {
            first_touch_bytes_per_second: self.first_touch_bytes_per_second.max(other.first_touch_bytes_per_second),
            fill_bytes_per_second: self.fill_bytes_per_second.max(other.fill_bytes_per_second),
        }
    }
}

/// Measures with or without huge pages. `None` if memory is short.
pub(super) fn measure(huge: bool) -> Option<Speed> {
    (0..ROUNDS).filter_map(|_| measure_once(huge)).reduce(Speed::best)
}

fn measure_once(huge: bool) -> Option<Speed> {
    if available_bytes()? < BYTES as u64 * FREE_TIMES {
        return None;
    }
    let length = NonZeroUsize::new(BYTES + HUGE)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new private anonymous mapping, at an address that the kernel chooses, overlaps nothing.
    let base = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE) };
    let base = base.ok()?;
    let advice = if huge { MmapAdvise::MADV_HUGEPAGE } else { MmapAdvise::MADV_NOHUGEPAGE };
    // SAFETY: the range is the mapping made above; this advice changes no contents. Without THP in the kernel it
    // fails, and then the speed without it is what there is to measure.
    let _ = unsafe { madvise(base, length.get(), advice) };
    let offset = base.as_ptr().cast::<u8>().align_offset(HUGE).min(HUGE);
    // SAFETY: offset + BYTES is at most the mapping's length; it is zero-filled, hence initialised, and nobody else
    // knows of it. The slice is not used after the munmap below.
    let ram = unsafe { std::slice::from_raw_parts_mut(base.as_ptr().cast::<u8>().add(offset), BYTES) };
    let speed = speed_of(ram);
    // SAFETY: exactly the mapping made above, to which no reference is left.
    let _ = unsafe { munmap(base, length.get()) };
    Some(speed)
}

fn speed_of(ram: &mut [u8]) -> Speed {
    let begin = Instant::now();
    ram.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    let touch = begin.elapsed();
    let begin = Instant::now();
    std::hint::black_box(&mut *ram).fill(2);
    std::hint::black_box(&mut *ram);
    let fill = begin.elapsed();
    Speed { first_touch_bytes_per_second: per_second(touch), fill_bytes_per_second: per_second(fill) }
}

fn per_second(time: Duration) -> u64 {
    let rate = BYTES as u128 * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_pages_can_be_measured() {
        if available_bytes().is_some_and(|free| free > 2 * FREE_TIMES * BYTES as u64) {
            for huge in [false, true] {
                let speed = measure(huge).unwrap();
                assert!(speed.first_touch_bytes_per_second > 0 && speed.fill_bytes_per_second > 0);
            }
        }
    }
}
