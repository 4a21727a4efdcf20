//! Tags of the chunks of large files, and the test for zeros that goes with them.
//!
//! A chunk is 2 MiB of RAM or of a disk, and there are thousands: what pins it must cost little beside writing it. BLAKE3
//! does 4 GB a second on one core, not even twice what a file system in memory takes. AEGISMAC does up to 25 with the AES
//! instructions of any CPU of the last ten years: as fast as RAM comes to the core.
//!
//! It is a message authentication code, not a hash, so it needs a key: a random one for each file, which stands in the
//! file's chunk map and passes to what builds on the file. It tells damage, and a guest that has not seen the key cannot
//! make two chunks with one tag. Who has read the image can: tags are no proof against somebody who also writes to it.
//!
//! Images from before that have BLAKE3 digests for tags, and so has what builds on them.

use std::fmt;

use aegis::aegis128x2::Aegis128X2Mac;
use uuid::Uuid;

use crate::limits::PAGE_BYTES;

/// What pins a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub [u8; 32]);

/// How the tags in one chunk map are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tagging {
    /// AEGISMAC-128X2 of 256 bits under this key, with a nonce of zeros (RFC 10032).
    Mac([u8; 16]),
    /// BLAKE3.
    Hash,
}

impl Tagging {
    /// For a file that builds on no other. The key is a UUID of version 4, 122 bits of which are random (RFC 9562).
    pub(crate) fn new() -> Tagging {
        Tagging::Mac(Uuid::new_v4().into_bytes())
    }

    /// The tag of a chunk that holds `bytes`.
    pub fn tag(self, bytes: &[u8]) -> Tag {
        let mut state = State::new(self);
        state.update(bytes);
        state.finish()
    }
}

/// Without the key: a log is read by more than an image is.
impl fmt::Debug for Tagging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Tagging::Hash { "Hash" } else { "Mac" })
    }
}

/// A tag in the making.
enum State {
    Mac(Box<Aegis128X2Mac<32>>),
    Hash(Box<blake3::Hasher>),
}

impl State {
    fn new(tagging: Tagging) -> State {
        match tagging {
            Tagging::Mac(key) => State::Mac(Box::new(Aegis128X2Mac::new(&key))),
            Tagging::Hash => State::Hash(Box::new(blake3::Hasher::new())),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            State::Mac(mac) => mac.update(bytes),
            State::Hash(hasher) => _ = hasher.update(bytes),
        }
    }

    fn zeros(&mut self, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            let now = left.min(PAGE_BYTES);
            self.update(&ZERO_PAGE[..now as usize]);
            left -= now;
        }
    }

    /// Ends the tag and is ready for the next.
    fn finish(&mut self) -> Tag {
        match self {
            State::Mac(mac) => Tag(mac.finalize_and_reset()),
            State::Hash(hasher) => {
                let tag = Tag(*hasher.finalize().as_bytes());
                hasher.reset();
                tag
            }
        }
    }
}

/// What a chunk of a large file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing but zeros. It need not be stored: a hole reads the same.
    Zero,
    /// Bytes with this tag, at least one of them not zero.
    Data(Tag),
}

/// Tags one chunk after another, each in pieces.
///
/// Zeros at a chunk's beginning are counted, not tagged, until something else turns up: most memory of most guests is
/// zero, and what was never touched is not even read. Allocates nothing, and takes no lock once made.
pub(crate) struct ChunkTagger {
    state: State,
    leading_zeros: u64,
    any_data: bool,
}

impl ChunkTagger {
    /// Ready for the first chunk.
    pub(crate) fn new(tagging: Tagging) -> Self {
        ChunkTagger { state: State::new(tagging), leading_zeros: 0, any_data: false }
    }

    /// In pieces of so many bytes a chunk is best tagged by somebody who copies it.
    pub(crate) fn part_bytes(&self) -> usize {
        match self.state {
            State::Mac(_) => MAC_PART_BYTES,
            State::Hash(_) => HASH_PART_BYTES,
        }
    }

    /// Takes the next piece of the chunk; true if it held anything but zeros.
    pub(crate) fn piece(&mut self, piece: &[u8]) -> bool {
        let data = !is_zero(piece);
        if data && !self.any_data {
            self.any_data = true;
            self.state.zeros(self.leading_zeros);
        }
        if self.any_data {
            self.state.update(piece);
        } else {
            self.leading_zeros += piece.len() as u64;
        }
        data
    }

    /// The same, for who does not ask: of what follows data nobody looks whether it is zero.
    pub(crate) fn add(&mut self, piece: &[u8]) {
        match self.any_data {
            true => self.state.update(piece),
            false => _ = self.piece(piece),
        }
    }

    /// Takes `bytes` zeros as the next piece of the chunk.
    pub(crate) fn zeros(&mut self, bytes: u64) {
        if self.any_data {
            self.state.zeros(bytes);
        } else {
            self.leading_zeros += bytes;
        }
    }

    /// Ends the chunk and is ready for the next.
    pub(crate) fn finish(&mut self) -> Chunk {
        let chunk = if self.any_data { Chunk::Data(self.state.finish()) } else { Chunk::Zero };
        self.leading_zeros = 0;
        self.any_data = false;
        chunk
    }
}

/// So much is to be copied, then tagged, then the next: it is still in the nearest cache, and the core fetches what comes next
/// while it tags.
const MAC_PART_BYTES: usize = 512;
/// BLAKE3 works on many KiB at the same time, and takes longer than it takes to fetch them.
const HASH_PART_BYTES: usize = 64 << 10;

static ZERO_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// True if all bytes are zero. Compares page by page with a page of zeros: that is memcmp(3), vectorised whatever the
/// optimisation level, and it ends at the first page that holds anything.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZERO_PAGE.len()).all(|page| *page == ZERO_PAGE[..page.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYED: Tagging = Tagging::Mac([7; 16]);

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("two digits"));
        digits.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect()
    }

    /// The library computes what RFC 10032 says in its test vector: images are read by versions of it
    /// that are yet to come.
    #[test]
    fn tags_are_those_of_the_standard() {
        let [mut key, mut nonce] = [[0; 16]; 2];
        key[..2].copy_from_slice(&[0x10, 0x01]);
        nonce[..3].copy_from_slice(&[0x10, 0x00, 0x02]);
        let data: Vec<u8> = (0..35).collect();
        let mut mac = Aegis128X2Mac::<32>::new_with_nonce(&key, &nonce);
        mac.update(&data);
        let expected = "afcba3fc2d63c8d6c7f2d63f3ec8fbbbaf022e15ac120e78ffa7755abccd959c";
        assert_eq!(mac.finalize()[..], hex(expected));
    }

    #[test]
    fn another_key_makes_another_tag() {
        assert_ne!(KEYED.tag(b"ckvmm"), Tagging::Mac([8; 16]).tag(b"ckvmm"));
        assert!(Tagging::new() != Tagging::new());
    }

    #[test]
    fn zero_is_told_from_nearly_zero() {
        for len in [0, 1, 7, 4095, 4096, 4097, 300_000] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for at in [0, len / 2, len.saturating_sub(1)] {
                if at < len {
                    bytes[at] = 0x80;
                    assert!(!is_zero(&bytes), "{len} with a byte at {at}");
                    bytes[at] = 0;
                }
            }
        }
    }

    #[test]
    fn pieces_make_the_tag_of_the_whole() {
        [KEYED, Tagging::Hash].into_iter().for_each(pieces_make_the_tag);
    }

    fn pieces_make_the_tag(tagging: Tagging) {
        let mut tagger = ChunkTagger::new(tagging);
        let mut whole = vec![0; 10_000];
        whole[9_000] = 1;
        for pieces in [vec![10_000], vec![4096, 4096, 1808], vec![1, 8_998, 1, 1_000]] {
            let mut at = 0;
            for piece in pieces {
                tagger.piece(&whole[at..at + piece]);
                at += piece;
            }
            assert_eq!(tagger.finish(), Chunk::Data(tagging.tag(&whole)));
        }
        tagger.zeros(9_000);
        tagger.piece(&[1]);
        tagger.zeros(999);
        assert_eq!(tagger.finish(), Chunk::Data(tagging.tag(&whole)));
        tagger.piece(&whole[..9_000]);
        tagger.zeros(17);
        assert_eq!(tagger.finish(), Chunk::Zero);
    }
}
