//! The seal of a manifest: its last member, the digest of every byte of the file before its line's comma, so that a manifest
//! of which anything was changed says so.

use crate::digest::Digest;

const OPEN: &str = ",\n  \"seal\": \"";
const CLOSE: &str = "\"\n}\n";
const DIGEST_BYTES: usize = "blake3:".len() + 64;

/// An object, as pretty JSON, with its seal.
///
/// # Panics
/// If `json` is something else.
pub fn sealed(json: &str) -> String {
    let body = json.strip_suffix("\n}").expect("an object with members ends in a line of its own");
    format!("{body}{OPEN}{}{CLOSE}", Digest::of(body.as_bytes()))
}

/// Compares the seal with the bytes before it. The tail's spelling is fixed, so its own bytes are covered too.
pub fn is_sealed(bytes: &[u8]) -> bool {
    let tail_bytes = OPEN.len() + DIGEST_BYTES + CLOSE.len();
    let Some(body_bytes) = bytes.len().checked_sub(tail_bytes) else { return false };
    let (body, tail) = bytes.split_at(body_bytes);
    tail == format!("{OPEN}{}{CLOSE}", Digest::of(body)).as_bytes()
}
