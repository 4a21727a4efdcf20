//! BLAKE3 digests of files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    /// `blake3-chunks:HEX`: the digest of the file's chunk map (the same path with `.map`), which holds the tags of its
    /// 2 MiB chunks.
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

#[cfg(test)]
mod tests {
    use super::*;

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
