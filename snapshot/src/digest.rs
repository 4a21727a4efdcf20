//! BLAKE3 digests of files and chunks, and the test for zeros that goes with them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::PAGE_BYTES;

/// A BLAKE3 digest of 32 bytes; prints as `blake3:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

const PREFIX_WHOLE: &str = "blake3:";
const PREFIX_CHUNKS: &str = "blake3-chunks:";

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// Exactly 64 lower-case digits: one digest has one spelling, so that a changed letter never goes unseen.
    fn from_hex(hex: &str) -> Option<Digest> {
        let lower = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let hash = blake3::Hash::from_hex(hex).ok()?;
        lower.then_some(Digest(*hash.as_bytes()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX_WHOLE}{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Digest, String> {
        text.strip_prefix(PREFIX_WHOLE)
            .and_then(Digest::from_hex)
            .ok_or_else(|| format!("`{text}` is not {PREFIX_WHOLE} and 64 lower-case hexadecimal digits"))
    }
}

/// How the content of a file is pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileDigest {
    /// `blake3:HEX`: the digest of the file's bytes.
    Whole(Digest),
    /// `blake3-chunks:HEX`: the digest of the file's chunk map (the same path with `.map`), which holds the digests of
    /// its 2 MiB chunks.
    Chunks(Digest),
}

impl fmt::Display for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileDigest::Whole(digest) => write!(f, "{PREFIX_WHOLE}{}", digest.hex()),
            FileDigest::Chunks(digest) => write!(f, "{PREFIX_CHUNKS}{}", digest.hex()),
        }
    }
}

impl FromStr for FileDigest {
    type Err = String;

    fn from_str(text: &str) -> Result<FileDigest, String> {
        if let Some(hex) = text.strip_prefix(PREFIX_CHUNKS) {
            return Digest::from_hex(hex)
                .map(FileDigest::Chunks)
                .ok_or_else(|| format!("`{text}` is not {PREFIX_CHUNKS} and 64 lower-case hexadecimal digits"));
        }
        text.parse().map(FileDigest::Whole)
    }
}

impl Serialize for FileDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FileDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FileDigest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a chunk of a large file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing but zeros. It need not be stored: a hole reads the same.
    Zero,
    /// Bytes with this digest, at least one of them not zero.
    Data(Digest),
}

/// Digests one chunk after another, each in pieces.
///
/// Zeros at a chunk's beginning are counted, not hashed, until something else turns up: most memory of most guests is
/// zero, and looking is several times faster than hashing. Allocates nothing.
pub(crate) struct ChunkDigester {
    hasher: blake3::Hasher,
    leading_zeros: u64,
    any_data: bool,
}

impl ChunkDigester {
    /// Ready for the first chunk.
    pub(crate) fn new() -> Self {
        ChunkDigester { hasher: blake3::Hasher::new(), leading_zeros: 0, any_data: false }
    }

    /// Takes the next piece of the chunk; true if it held anything but zeros.
    pub(crate) fn piece(&mut self, piece: &[u8]) -> bool {
        let data = !is_zero(piece);
        if data && !self.any_data {
            self.any_data = true;
            hash_zeros(&mut self.hasher, self.leading_zeros);
        }
        if self.any_data {
            self.hasher.update(piece);
        } else {
            self.leading_zeros += piece.len() as u64;
        }
        data
    }

    /// Takes `bytes` zeros as the next piece of the chunk.
    pub(crate) fn zeros(&mut self, bytes: u64) {
        if self.any_data {
            hash_zeros(&mut self.hasher, bytes);
        } else {
            self.leading_zeros += bytes;
        }
    }

    /// Ends the chunk and is ready for the next.
    pub(crate) fn finish(&mut self) -> Chunk {
        let chunk = if self.any_data { Chunk::Data(Digest(*self.hasher.finalize().as_bytes())) } else { Chunk::Zero };
        self.hasher.reset();
        self.leading_zeros = 0;
        self.any_data = false;
        chunk
    }
}

static ZERO_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

fn hash_zeros(hasher: &mut blake3::Hasher, bytes: u64) {
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PAGE_BYTES);
        hasher.update(&ZERO_PAGE[..now as usize]);
        left -= now;
    }
}

/// True if all bytes are zero. Compares page by page with a page of zeros: that is memcmp(3), vectorised whatever the
/// optimisation level, and it ends at the first page that holds anything.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZERO_PAGE.len()).all(|page| *page == ZERO_PAGE[..page.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn pieces_make_the_digest_of_the_whole() {
        let mut digester = ChunkDigester::new();
        let mut whole = vec![0; 10_000];
        whole[9_000] = 1;
        for pieces in [vec![10_000], vec![4096, 4096, 1808], vec![1, 8_998, 1, 1_000]] {
            let mut at = 0;
            for piece in pieces {
                digester.piece(&whole[at..at + piece]);
                at += piece;
            }
            assert_eq!(digester.finish(), Chunk::Data(Digest::of(&whole)));
        }
        digester.zeros(9_000);
        digester.piece(&[1]);
        digester.zeros(999);
        assert_eq!(digester.finish(), Chunk::Data(Digest::of(&whole)));
        digester.piece(&whole[..9_000]);
        digester.zeros(17);
        assert_eq!(digester.finish(), Chunk::Zero);
    }

    #[test]
    fn a_digest_has_one_spelling() {
        let digest = Digest::of(b"ckvmm");
        let text = digest.to_string();
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(FileDigest::Chunks(digest).to_string().parse(), Ok(FileDigest::Chunks(digest)));
        let hex = text.strip_prefix("blake3:").expect("prefix");
        for wrong in [
            hex.to_owned(),
            text.to_uppercase(),
            format!("blake3:{}", hex.to_uppercase()),
            format!("{text}0"),
            format!("blake3: {}", &hex[1..]),
            "blake3:".to_owned(),
            format!("md5:{hex}"),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
            assert!(wrong.parse::<FileDigest>().is_err(), "{wrong}");
        }
    }
}
