//! What stands in a pcap file.

use std::time::Duration;

/// The frames in a file of LINKTYPE_ETHERNET, which may still be written to: what is not there as a whole is left out.
///
/// # Panics
/// If it is none, or its times go back.
pub fn frames_of(file: &[u8]) -> Vec<&[u8]> {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!((word(file, 0), word(file, 20)), (0xa1b2_3c4d, 1));
    let (mut rest, mut frames, mut last) = (&file[24..], Vec::new(), Duration::ZERO);
    while rest.len() >= 16 && rest.len() - 16 >= word(rest, 8) as usize {
        let time = Duration::new(word(rest, 0).into(), word(rest, 4));
        assert!(time >= last || last - time < Duration::from_secs(1), "time goes on");
        last = time;
        let bytes = word(rest, 8) as usize;
        assert_eq!(word(rest, 12) as usize, bytes);
        frames.push(&rest[16..16 + bytes]);
        rest = &rest[16 + bytes..];
    }
    frames
}
