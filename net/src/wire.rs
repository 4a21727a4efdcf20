//! Packets as bytes, little-endian:
//!
//! ```text
//!  0  4  magic "CKN1"                                   the 1 is the version
//!  4  1  kind: 1 frame, 2 marker, 3 bye, 4 hello
//!  5  1  0
//!  6  2  hello: the sender's node; else 0
//!  8  8  incarnation
//! 16  8  colour; hello: 0
//! 24  8  link_seq; hello: the next one that the sender expects
//! 32     frame: struct virtio_net_hdr_v1 (12 bytes), Ethernet frame
//! ```
//!
//! A link's first packet each way is a hello. One packet is one message of a socket that keeps messages apart; a
//! stream puts a length in front.
//!
//! Invariants: nothing is copied, neither way; whatever the bytes are, reading them is a packet or an error.

use crate::link::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::packet::{Colour, Content, Incarnation, Node, Packet};
use crate::{Error, Result};

/// Bytes in front of the frame.
pub const PREFIX_BYTES: usize = 32;

/// The largest packet.
pub const PACKET_BYTES_MAX: usize = PREFIX_BYTES + FRAME_BYTES_MAX;

/// The smallest frame: its virtio-net header and an Ethernet header.
pub const FRAME_BYTES_MIN: usize = HEADER_BYTES + 14;

const MAGIC: [u8; 4] = *b"CKN1";
const FRAME: u8 = 1;
const MARKER: u8 = 2;
const BYE: u8 = 3;
const HELLO: u8 = 4;

/// How a VMM opens its end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Who it is.
    pub node: Node,
    /// Its life.
    pub incarnation: Incarnation,
    /// The `link_seq` that it waits for: 0, or more on a link that takes up where a broken connection ended.
    pub expects: u64,
}

impl<F> Packet<F> {
    /// What goes in front of the frame, if there is one.
    pub fn prefix(&self) -> [u8; PREFIX_BYTES] {
        let kind = match self.content {
            Content::Frame(_) => FRAME,
            Content::Marker => MARKER,
            Content::Bye => BYE,
        };
        prefix(kind, Node(0), self.incarnation, self.colour, self.link_seq)
    }
}

impl<'a> Packet<&'a [u8]> {
    /// Reads a packet; the frame stays where it is.
    ///
    /// # Errors
    /// [`Error::Packet`] says in which way it is none.
    pub fn decode(bytes: &'a [u8]) -> Result<Packet<&'a [u8]>> {
        let (prefix, frame) = split(bytes)?;
        let content = match (prefix[4], frame.len()) {
            (FRAME, FRAME_BYTES_MIN..=FRAME_BYTES_MAX) => Content::Frame(frame),
            (FRAME, _) => return Err(Error::Packet { what: "its frame is too short or too long" }),
            (MARKER, 0) => Content::Marker,
            (BYE, 0) => Content::Bye,
            (MARKER | BYE, _) => return Err(Error::Packet { what: "bytes follow its end" }),
            (HELLO, _) => return Err(Error::Packet { what: "it opens a link that is open" }),
            _ => return Err(Error::Packet { what: "its kind is unknown" }),
        };
        if prefix[5..8] != [0; 3] {
            return Err(Error::Packet { what: "its reserved bytes are not 0" });
        }
        Ok(Packet {
            incarnation: Incarnation(word(prefix, 8)),
            colour: Colour(word(prefix, 16)),
            link_seq: word(prefix, 24),
            content,
        })
    }
}

impl Hello {
    /// Its bytes.
    pub fn encode(&self) -> [u8; PREFIX_BYTES] {
        let Hello { node, incarnation, expects } = *self;
        prefix(HELLO, node, incarnation, Colour::NONE, expects)
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Error::Packet`] says in which way it is none.
    pub fn decode(bytes: &[u8]) -> Result<Hello> {
        let (prefix, rest) = split(bytes)?;
        if prefix[4] != HELLO || prefix[5] != 0 || word(prefix, 16) != 0 || !rest.is_empty() {
            return Err(Error::Packet { what: "it does not open a link" });
        }
        Ok(Hello {
            node: Node(u16::from_le_bytes([prefix[6], prefix[7]])),
            incarnation: Incarnation(word(prefix, 8)),
            expects: word(prefix, 24),
        })
    }
}

fn prefix(kind: u8, node: Node, incarnation: Incarnation, colour: Colour, link_seq: u64) -> [u8; PREFIX_BYTES] {
    let mut bytes = [0; PREFIX_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = kind;
    bytes[6..8].copy_from_slice(&node.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&incarnation.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&colour.0.to_le_bytes());
    bytes[24..].copy_from_slice(&link_seq.to_le_bytes());
    bytes
}

fn split(bytes: &[u8]) -> Result<(&[u8; PREFIX_BYTES], &[u8])> {
    let (prefix, rest) = bytes.split_first_chunk().ok_or(Error::Packet { what: "it ends too early" })?;
    if prefix[..3] != MAGIC[..3] {
        return Err(Error::Packet { what: "it is not ckvmm's" });
    }
    if prefix[3] != MAGIC[3] {
        return Err(Error::Packet { what: "it is of another version" });
    }
    Ok((prefix, rest))
}

fn word(prefix: &[u8; PREFIX_BYTES], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&prefix[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet as it is on a link: prefix and frame, one after the other.
    fn bytes_of(packet: &Packet<Vec<u8>>) -> Vec<u8> {
        let mut bytes = packet.prefix().to_vec();
        if let Content::Frame(frame) = &packet.content {
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    fn packets() -> impl Strategy<Value = Packet<Vec<u8>>> {
        let frames = prop::collection::vec(any::<u8>(), FRAME_BYTES_MIN..2000);
        let content = prop_oneof![frames.prop_map(Content::Frame), Just(Content::Marker), Just(Content::Bye)];
        (any::<u64>(), any::<u64>(), any::<u64>(), content).prop_map(|(incarnation, colour, link_seq, content)| {
            Packet { incarnation: Incarnation(incarnation), colour: Colour(colour), link_seq, content }
        })
    }

    proptest! {
        #[test]
        fn what_was_sent_is_read(packet in packets()) {
            let bytes = bytes_of(&packet);
            prop_assert_eq!(Packet::decode(&bytes).unwrap().map(<[u8]>::to_vec), packet);
            prop_assert!(Hello::decode(&bytes).is_err());
        }

        #[test]
        fn a_hello_comes_back(node: u16, incarnation: u64, expects: u64) {
            let hello = Hello { node: Node(node), incarnation: Incarnation(incarnation), expects };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
            prop_assert!(Packet::decode(&hello.encode()).is_err());
        }

        /// What is read has one form only: no byte of it goes unlooked at.
        #[test]
        fn any_bytes_are_an_error_or_what_they_say(packet in packets(), at: prop::sample::Index, flip in 1..=255_u8) {
            let mut bytes = bytes_of(&packet);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(read) = Packet::decode(&bytes) {
                prop_assert_eq!(bytes_of(&read.map(<[u8]>::to_vec)), bytes);
            } else {
                prop_assert!(at < 8, "only magic, kind and reserved bytes can be wrong");
            }
        }

        #[test]
        fn a_packet_cut_short_is_an_error(packet in packets(), length: prop::sample::Index) {
            let bytes = bytes_of(&packet);
            let short = &bytes[..length.index(bytes.len())];
            prop_assert!(short.len() >= PREFIX_BYTES + FRAME_BYTES_MIN || Packet::decode(short).is_err());
            prop_assert!(Hello::decode(short).is_err());
        }
    }

    #[test]
    fn frames_have_bounds() {
        let packet = |bytes: usize| Packet {
            incarnation: Incarnation(1),
            colour: Colour(2),
            link_seq: 3,
            content: Content::Frame(vec![0; bytes]),
        };
        for (bytes, good) in [
            (FRAME_BYTES_MIN - 1, false),
            (FRAME_BYTES_MIN, true),
            (FRAME_BYTES_MAX, true),
            (FRAME_BYTES_MAX + 1, false),
        ] {
            assert_eq!(Packet::decode(&bytes_of(&packet(bytes))).is_ok(), good, "{bytes}");
        }
        assert_eq!(bytes_of(&packet(FRAME_BYTES_MAX)).len(), PACKET_BYTES_MAX);
    }

    #[test]
    fn the_bytes_are_these() {
        let content = Content::<&[u8]>::Marker;
        let packet = Packet { incarnation: Incarnation(1), colour: Colour(0x0203), link_seq: 4, content };
        let mut bytes = *b"CKN1\x02\0\0\0\x01\0\0\0\0\0\0\0\x03\x02\0\0\0\0\0\0\x04\0\0\0\0\0\0\0";
        assert_eq!(packet.prefix(), bytes);
        bytes[3] = b'2';
        let error = Packet::decode(&bytes).unwrap_err();
        assert!(error.to_string().contains("another version"), "{error}");
    }
}
