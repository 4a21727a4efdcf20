//! A copy that leaves the caches alone.
//!
//! What is copied for a guest that waits is read again only much later. The memory that it goes to need not be read first,
//! which is a third of the time.
#![allow(unsafe_code)]

/// Copies `to.len()` bytes; all of it is aligned to, and a multiple of, a line of 64 bytes.
///
/// # Safety
/// So many bytes from `from` on can be read, which nobody has a reference to.
pub(super) unsafe fn copy(from: *const u8, to: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if [from as usize, to.as_ptr() as usize, to.len()].iter().all(|at| at.is_multiple_of(LINE_BYTES)) {
        // SAFETY: as said, and checked.
        unsafe { stream(from, to) };
        return;
    }
    // SAFETY: as said.
    unsafe { from.copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
}

#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// `MOVNTDQ` (Intel SDM vol. 1, §10.4.6.2).
#[cfg(target_arch = "x86_64")]
unsafe fn stream(from: *const u8, to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_load_si128, _mm_sfence, _mm_stream_si128};
    let (from, to, words) = (from.cast::<__m128i>(), to.as_mut_ptr().cast::<__m128i>(), to.len() / 16);
    for line in (0..words).step_by(4) {
        // SAFETY: both are aligned, and so many words long.
        unsafe {
            let words = [0, 1, 2, 3].map(|word| _mm_load_si128(from.add(line + word)));
            for (word, content) in words.into_iter().enumerate() {
                _mm_stream_si128(to.add(line + word), content);
            }
        }
    }
    // SAFETY: it orders these stores before all that comes after.
    unsafe { _mm_sfence() };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_copies_whatever_the_alignment() {
        let from: Vec<u8> = (0..4096_u32 + 64).map(|byte| (byte * 7 / 3) as u8).collect();
        let start = from.as_ptr().align_offset(64);
        for (offset, bytes) in [(start, 4032), (start, 64), (start + 1, 4000), (start, 63), (start, 0)] {
            let mut to = vec![0; 4096 + 64];
            let aligned = to.as_ptr().align_offset(64);
            // SAFETY: it lies in `from`.
            unsafe { copy(from[offset..].as_ptr(), &mut to[aligned..aligned + bytes]) };
            assert_eq!(to[aligned..aligned + bytes], from[offset..offset + bytes]);
            assert!(to[aligned + bytes..].iter().all(|byte| *byte == 0));
        }
    }
}
