//! What was under way to a VM at a cut, as a file of its checkpoint, little-endian:
//!
//! ```text
//!  0  8  magic "CKVMMNET"
//!  8  4  format version, 1
//! 12  4  number of frames; then each, in order:
//!        2  the node that it came from      4 + n  the frame with its virtio-net header
//! ```
//!
//! Invariant: whatever the bytes are, reading them is a log or an error, and costs no more than they are long.

use crate::packet::Node;
use crate::wire::FRAME_BYTES_MIN;
use crate::{Error, Result, link::FRAME_BYTES_MAX, port::Frame};

const MAGIC: &[u8; 8] = b"CKVMMNET";
const VERSION: u32 = 1;

/// The bytes of a log.
pub fn encode(log: &[(Node, Frame)]) -> Vec<u8> {
    let bytes: usize = log.iter().map(|(_, frame)| 6 + frame.len()).sum();
    let mut out = Vec::with_capacity(16 + bytes);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(log.len() as u32).to_le_bytes());
    for (from, frame) in log {
        out.extend_from_slice(&from.0.to_le_bytes());
        out.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        out.extend_from_slice(frame);
    }
    out
}

/// Reads a log of a network of so many nodes.
///
/// # Errors
/// [`Error::Log`] says in which way it is none.
pub fn decode(bytes: &[u8], nodes: u16) -> Result<Vec<(Node, Frame)>> {
    let mut rest = bytes;
    if take(&mut rest)? != *MAGIC {
        return Err(Error::Log { what: "it is not ckvmm's" });
    }
    if u32::from_le_bytes(take(&mut rest)?) != VERSION {
        return Err(Error::Log { what: "it is of another version" });
    }
    let count = u32::from_le_bytes(take(&mut rest)?);
    let mut log = Vec::new();
    for _ in 0..count {
        let from = u16::from_le_bytes(take(&mut rest)?);
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        if from >= nodes {
            return Err(Error::Log { what: "a frame is from a node that does not exist" });
        }
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&length) || length > rest.len() {
            return Err(Error::Log { what: "a frame is too short or too long" });
        }
        let (frame, after) = rest.split_at(length);
        log.push((Node(from), Frame::from(frame)));
        rest = after;
    }
    if rest.is_empty() { Ok(log) } else { Err(Error::Log { what: "bytes follow its end" }) }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (first, after) = rest.split_first_chunk().ok_or(Error::Log { what: "it ends too early" })?;
    *rest = after;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logs() -> impl Strategy<Value = Vec<(Node, Frame)>> {
        let frame = prop::collection::vec(any::<u8>(), FRAME_BYTES_MIN..200);
        prop::collection::vec((0..4_u16, frame).prop_map(|(from, frame)| (Node(from), Frame::from(frame))), 0..5)
    }

    proptest! {
        #[test]
        fn what_was_logged_is_read(log in logs()) {
            prop_assert_eq!(decode(&encode(&log), 4).unwrap(), log);
        }

        #[test]
        fn a_log_cut_short_or_changed_is_an_error_or_another(log in logs(), at: prop::sample::Index, flip in 1..=255_u8) {
            let mut bytes = encode(&log);
            let at = at.index(bytes.len());
            prop_assert!(decode(&bytes[..at], 4).is_err());
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes, 4).map_or(true, |other| other != log));
        }
    }

    #[test]
    fn a_log_says_what_is_wrong_with_it() {
        let log = vec![(Node(3), Frame::from(vec![0; FRAME_BYTES_MIN]))];
        let bytes = encode(&log);
        let wrong = |bytes: &[u8], nodes| decode(bytes, nodes).unwrap_err().to_string();
        assert!(wrong(&bytes, 3).contains("does not exist"));
        assert!(wrong(&[&bytes[..], b"x"].concat(), 4).contains("follow"));
        assert!(wrong(&[b"CKVMMNET\x02\0\0\0", &bytes[12..]].concat(), 4).contains("another version"));
        assert!(wrong(b"CKVMMSTA", 4).contains("not ckvmm's"));
    }
}
