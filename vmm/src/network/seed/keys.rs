//! The ssh keys of a network: one with which each node logs in to all, and one for each node by which it is known.
//!
//! Invariant: what they are follows from random bytes that somebody else has drawn. They are made anew at each `up`.

use ssh_key::LineEnding;
use ssh_key::private::{Ed25519Keypair, PrivateKey};

/// Random bytes that a key is made of.
pub const KEY_BYTES: usize = 32;

/// A key, as OpenSSH has it in files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// For `~/.ssh/id_ed25519`.
    pub private: String,
    /// One line without its end.
    pub public: String,
}

impl Key {
    /// The one that follows from these bytes. Host and guest name no key by its comment; people do.
    pub fn from_random(bytes: &[u8; KEY_BYTES], comment: &str) -> Key {
        let mut key = PrivateKey::from(Ed25519Keypair::from_seed(bytes));
        key.set_comment(comment);
        let written = "a key without a passphrase can be written down";
        let private = key.to_openssh(LineEnding::LF).expect(written).to_string();
        Key { private, public: key.public_key().to_openssh().expect(written) }
    }
}

/// All keys of a network.
#[derive(Debug, Clone)]
pub struct Keys {
    /// With which each node logs in to all.
    pub login: Key,
    /// By which each node is known, in their order.
    pub hosts: Vec<Key>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first test of RFC 8032, 7.1.
    #[test]
    fn a_key_is_what_others_make_of_these_bytes() {
        let bytes = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let key = Key::from_random(&bytes, "n-0");
        let public = "AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";
        assert_eq!(key.public, format!("ssh-ed25519 {public} n-0"));
        let read = PrivateKey::from_openssh(&key.private).unwrap();
        assert_eq!(read.public_key().to_openssh().unwrap(), key.public);
    }
}
