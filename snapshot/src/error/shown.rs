//! How quantities stand in an error's line.

use std::{fmt, io};

use crate::limits::NAMES_IN_ERROR_MAX;

/// What there was to be room for, and what room there is.
pub(super) struct Space {
    pub(super) wanted: u64,
    pub(super) free: u64,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wanted {
            0 => write!(f, "not even for another file ({} bytes free)", self.free),
            wanted => write!(f, "{wanted} bytes wanted, {} free", self.free),
        }
    }
}

/// A few names in backquotes, then how many more there are.
pub(super) struct Names<'a>(pub(super) &'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(NAMES_IN_ERROR_MAX)];
        for (index, name) in shown.iter().enumerate() {
            write!(f, "{}`{name}`", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What to do about a system's error, after a semicolon, where that is known.
pub(super) struct Mend<'a>(pub(super) &'a io::Error);

impl fmt::Display for Mend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::EIO) => {
                f.write_str("; the storage has failed: see the kernel's log, and choose another directory")
            }
            _ => Ok(()),
        }
    }
}
