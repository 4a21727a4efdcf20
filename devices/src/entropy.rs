//! Random bytes from the host's kernel. No descriptor and no state of our own: nothing that a fork or a checkpoint
//! could copy.

#![allow(unsafe_code)] // getrandom(2)

use std::io;

/// Fills `buffer` with bytes of cryptographic quality. It blocks only before the host itself has been seeded.
///
/// # Errors
/// The kernel has none.
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice of bytes.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_byte_is_filled_and_no_two_calls_agree() {
        let (mut first, mut second) = (vec![0; 4096], vec![0; 4096]);
        super::fill(&mut first).unwrap();
        super::fill(&mut second).unwrap();
        assert_ne!(first, second);
        // 64 zero bytes in a row somewhere would mean that a part was left out.
        assert!(first.chunks(64).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
        super::fill(&mut []).unwrap();
    }
}
