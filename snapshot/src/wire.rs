//! Little-endian fields read from bytes that are not trusted: each read is bounded by what is left.

use crate::error::{Flaw, Versions};

/// A cursor over untrusted bytes.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// The next `count` bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| Flaw::broken("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| Flaw::broken("it ends too early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    /// A little-endian `u16`.
    pub(crate) fn u16(&mut self) -> Result<u16, Flaw> {
        self.array().map(u16::from_le_bytes)
    }

    /// A little-endian `u32`.
    pub(crate) fn u32(&mut self) -> Result<u32, Flaw> {
        self.array().map(u32::from_le_bytes)
    }

    /// A little-endian `u64`.
    pub(crate) fn u64(&mut self) -> Result<u64, Flaw> {
        self.array().map(u64::from_le_bytes)
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// An error unless all bytes have been read.
    pub(crate) fn end(self) -> Result<(), Flaw> {
        match self.rest.len() {
            0 => Ok(()),
            more => Err(Flaw::broken(format!("{more} bytes follow its end"))),
        }
    }

    /// Reads magic and format version, which open every binary file of an image; returns the version, one of these.
    pub(crate) fn header(&mut self, magic: &[u8; 8], reads: Versions, what: &str) -> Result<u16, Flaw> {
        if self.array::<8>()? != *magic {
            return Err(Flaw::broken(format!("it does not begin like a ckvmm {what}")));
        }
        match self.u32()? {
            found if (reads.oldest.into()..=reads.newest.into()).contains(&found) => Ok(found as u16),
            found => Err(Flaw::Version { found: found.into(), reads }),
        }
    }
}
