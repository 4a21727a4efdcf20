//! Opening a file that somebody named: what is wrong with it is said here, once, for every field.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::error::ConfigError;
use super::units::Bytes;

/// Largest kernel image, in bytes.
pub const KERNEL_MAX: u64 = 1 << 30;
/// Largest initial RAM disk, in bytes.
pub const INITRD_MAX: u64 = 4 << 30;

/// A file to be opened because a field names it.
#[derive(Clone, Copy, Debug)]
pub struct InputFile<'a> {
    /// The field, as `--set` names it (`disks.root.path`); empty if the file was given on the command line.
    pub field: &'a str,
    /// The file.
    pub path: &'a Path,
    /// Most bytes that it may have.
    pub max: u64,
    /// Whether it may be a block device.
    pub block_device: bool,
    /// Whether it is to be written too.
    pub write: bool,
}

impl InputFile<'_> {
    /// Opens it: a regular file (or block device) that is neither empty nor too large.
    ///
    /// # Errors
    /// One line with field, path and mend: missing, a directory, unreadable, empty, too large, something else.
    pub fn open(&self) -> Result<File, ConfigError> {
        let mut options = OpenOptions::new();
        // without O_NONBLOCK a FIFO would keep us waiting for its other end
        options.read(true).write(self.write).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = options.open(self.path).map_err(|e| self.cannot_open(&e))?;
        let metadata = file.metadata().map_err(|e| self.cannot_open(&e))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(self.error("is a directory", "give a file"));
        }
        if kind.is_block_device() && self.block_device {
            return Ok(file);
        }
        if !kind.is_file() {
            return Err(self.error("is no regular file", "give a file"));
        }
        // Whoever reads on wants whole reads: 9p cuts them short on a non-blocking descriptor.
        let flags = FcntlArg::F_SETFL(OFlag::empty());
        fcntl(&file, flags).map_err(|e| self.cannot_open(&e.into()))?;
        match metadata.len() {
            0 => Err(self.error("is empty", "give the right file, or make it again")),
            n if n > self.max => {
                let what = format!("is too large ({n} bytes)");
                Err(self.error(&what, &format!("give a file of at most {}", Bytes(self.max))))
            }
            _ => Ok(file),
        }
    }

    /// Opens and reads it. For files of at most a few MiB.
    ///
    /// # Errors
    /// As for [`InputFile::open`].
    pub fn read(&self) -> Result<Vec<u8>, ConfigError> {
        let mut bytes = Vec::new();
        // the file may grow after it was measured: one byte more than allowed tells
        let read = self.open()?.take(self.max + 1).read_to_end(&mut bytes);
        read.map_err(|e| self.cannot_open(&e))?;
        if bytes.len() as u64 > self.max {
            return Err(self.error("is too large", &format!("give a file of at most {}", Bytes(self.max))));
        }
        Ok(bytes)
    }

    /// What it was opened for has failed.
    pub fn cannot_open(&self, e: &std::io::Error) -> ConfigError {
        let verb = if self.write { "written" } else { "read" };
        match e.kind() {
            ErrorKind::NotFound => self.error("does not exist", "make it, or give another path"),
            ErrorKind::NotADirectory => self.error("does not exist: a part of it is no directory", "give another path"),
            ErrorKind::IsADirectory => self.error("is a directory", "give a file"),
            ErrorKind::PermissionDenied => {
                let mend = format!("give your user the right to it (ls -l {})", self.path.display());
                self.error(&format!("may not be {verb} by this user"), &mend)
            }
            ErrorKind::ReadOnlyFilesystem => {
                self.error("is on a read-only file system", "move it, or use \"mode\": \"private\"")
            }
            _ => self.error(&format!("cannot be {verb}: {e}"), "see what is wrong with it, or give another path"),
        }
    }

    fn error(&self, what: &str, mend: &str) -> ConfigError {
        match self.field.is_empty() {
            true => ConfigError::file(self.path, what, mend),
            false => ConfigError::field(self.field, format!("{} {what}", self.path.display()), mend),
        }
    }
}
