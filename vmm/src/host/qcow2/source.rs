//! A file of a qcow2 chain, for imago to read.
//!
//! Invariants: it is never written. A file that is cut off is an error, and not zeros from there on: whatever is read
//! lies in clusters that the file has, the last one perhaps in part.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

/// The file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// Its length.
    pub(super) bytes: u64,
    /// Length of its clusters; 1 if it has none.
    pub(super) cluster_bytes: u64,
    /// What imago keeps of a file that is written.
    pub(super) helper: CommonStorageHelper,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Source {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let wanted = offset.checked_add(buffer.len() as u64);
        let allocated = self.bytes.next_multiple_of(self.cluster_bytes);
        if wanted.is_none_or(|end| end > allocated) {
            let what = format!("{} has {} bytes, and what is wanted lies at {offset}", self, self.bytes);
            return Err(Error::new(ErrorKind::UnexpectedEof, what));
        }
        let there = self.bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (there, rest) = buffer.split_at_mut(there);
        rest.fill(0);
        self.file.read_exact_at(there, offset)
    }
}

fn read_only() -> Error {
    ErrorKind::ReadOnlyFilesystem.into()
}

// The methods are unsafe to call for what a caller has to see to (alignment, no write beside another one). Nothing here
// relies on it.
impl Storage for Source {
    fn size(&self) -> Result<u64> {
        Ok(self.bytes)
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, mut offset: u64) -> Result<()> {
        for mut buffer in buffers.into_inner() {
            self.read(&mut buffer, offset)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, _: IoVector<'_>, _: u64) -> Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }
}
