//! What can go wrong, each variant naming the thing and the mend in one line.

mod shown;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use self::shown::{Mend, Names, Space};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file failed in a way that has no variant of its own.
    #[error("{}: cannot {doing}: {source}{}", path.display(), Mend(source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done, completing "cannot …".
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// ENOSPC or EDQUOT.
    #[error(
        "{}: no space left on the file system or in the quota: {}; free some or choose another directory",
        path.display(),
        Space { wanted: *wanted, free: *free }
    )]
    NoSpace {
        /// The file that did not fit.
        path: PathBuf,
        /// Apparent size of that file, bytes; 0 if it was the file itself, an inode or a name, that did not fit.
        wanted: u64,
        /// Bytes that the file system still had for this user.
        free: u64,
    },
    /// The file system is mounted read-only.
    #[error("{}: the file system is read-only; choose a directory that can be written", path.display())]
    ReadOnly {
        /// The file or directory.
        path: PathBuf,
    },
    /// EACCES or EPERM.
    #[error("{}: not permitted to {doing}; run as the owner or change its permissions", path.display())]
    Denied {
        /// The file or directory.
        path: PathBuf,
        /// What was being done, completing "not permitted to …".
        doing: &'static str,
    },
    /// Something already has that name; this crate never overwrites.
    #[error("{}: exists already; remove it or choose another name", path.display())]
    Exists {
        /// What exists.
        path: PathBuf,
    },
    /// The directory that was to hold a checkpoint cannot hold one.
    #[error("{}: {why}; make the directory or choose another one", path.display())]
    NoParent {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The directory is not a committed checkpoint.
    #[error("{}: not a checkpoint: {why}; {mend}", path.display())]
    NotACheckpoint {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        why: String,
        /// What to do.
        mend: String,
    },
    /// Another version of the image format.
    #[error(
        "{}: format version {found}, this ckvmm reads {reads}; use the ckvmm that wrote it",
        path.display()
    )]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u64,
        /// Versions that this build reads.
        reads: Versions,
    },
    /// A file of the image is not what ckvmm writes.
    #[error("{}: damaged: {why}; use another checkpoint", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The content of a file differs from its digest.
    #[error(
        "{}: damaged: the {bytes} bytes at offset {offset} differ from their digest; use another checkpoint",
        path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// Offset of the chunk in the file, bytes.
        offset: u64,
        /// Length of the chunk, bytes.
        bytes: u64,
    },
    /// A file of the image is shorter or longer than its manifest says.
    #[error("{}: damaged: {found} bytes long, saved with {expected}; use another checkpoint", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes that the manifest states.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A file is beyond what ckvmm reads or writes.
    #[error("{}: {bytes} bytes, more than the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, bytes.
        bytes: u64,
        /// The bound, bytes.
        limit: u64,
    },
    /// Guest RAM of a shape that a memory image does not hold.
    #[error("guest memory: {why}")]
    Memory {
        /// What is wrong.
        why: String,
    },
    /// A disk id that cannot be a file name here, is captured twice or is not in the image.
    #[error("disk `{id}`: {why}")]
    Disk {
        /// The id.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The image lacks a part: an error of the caller.
    #[error("checkpoint: {what} was not written, so there is nothing to commit")]
    Incomplete {
        /// The part.
        what: String,
    },
    /// The process that writes guest RAM failed.
    #[error("checkpoint: the writer {why}; {mend}")]
    Writer {
        /// What became of it, after "the writer".
        why: String,
        /// What to do.
        mend: &'static str,
    },
    /// The checkpoint that a new one builds on cannot be read.
    #[error("{}: cannot be built on: {source}; the next checkpoint will be a full one", path.display())]
    Base {
        /// Its directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The operation was cancelled through its [`Progress`](crate::Progress).
    #[error("checkpoint: cancelled")]
    Cancelled,
    /// A device or vCPU could not be saved.
    #[error("{what}: cannot be saved: {why}")]
    Save {
        /// The device.
        what: String,
        /// The reason.
        why: String,
    },
    /// A saved state does not fit the device or vCPU that it is given to.
    #[error("{what}: cannot be restored: {why}")]
    Restore {
        /// The device.
        what: String,
        /// The reason.
        why: String,
    },
    /// A name, kind or number of states beyond the bounds of a state map.
    #[error("state `{name}`: {why}")]
    StateName {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two states of one name.
    #[error("state `{name}`: saved twice; each device needs a name of its own")]
    StateDuplicate {
        /// The name.
        name: String,
    },
    /// A state that this machine needs is not in the image.
    #[error(
        "state `{name}`: not in the checkpoint; restore with the configuration and the ckvmm that it was made with"
    )]
    StateMissing {
        /// The name.
        name: String,
    },
    /// A state was saved by another kind of device.
    #[error(
        "state `{name}`: is of kind `{found}`, this machine has a `{wanted}` there; \
         restore with the saved configuration"
    )]
    StateKind {
        /// The name.
        name: String,
        /// Kind in the image.
        found: String,
        /// Kind that was asked for.
        wanted: &'static str,
    },
    /// A state of a version that this build does not read.
    #[error("state `{name}` (kind `{kind}`): version {found}, this ckvmm reads {reads}; use the ckvmm that wrote it")]
    StateVersion {
        /// The name.
        name: String,
        /// Its kind.
        kind: &'static str,
        /// Version in the image.
        found: u16,
        /// Versions that this build reads.
        reads: Versions,
    },
    /// A state could not be encoded, or its bytes do not decode.
    #[error("state `{name}`: {why}")]
    StateContent {
        /// The name.
        name: String,
        /// The serialiser's reason.
        why: String,
    },
    /// The image holds states that no device of this machine took.
    #[error(
        "checkpoint has state that this machine has no device for: {}; restore with the saved configuration",
        Names(names)
    )]
    StateLeft {
        /// Their names, in order.
        names: Vec<String>,
    },
}

/// An inclusive range of versions; prints as `1` or `1 to 5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// First one.
    pub oldest: u16,
    /// Last one.
    pub newest: u16,
}

impl Versions {
    /// One version and no other.
    pub(crate) fn only(version: u16) -> Versions {
        Versions { oldest: version, newest: version }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

impl Error {
    /// The error for a failed system call that asked for no space.
    pub(crate) fn io(path: &Path, doing: &'static str, source: io::Error) -> Error {
        Error::io_wanting(path, doing, 0, source)
    }

    /// The error for a failed system call on a file that was to have `wanted` bytes.
    pub(crate) fn io_wanting(path: &Path, doing: &'static str, wanted: u64, source: io::Error) -> Error {
        let path = path.to_path_buf();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Error::NoSpace { wanted, free: crate::files::free_bytes(&path), path },
            Some(libc::EROFS) => Error::ReadOnly { path },
            Some(libc::EACCES | libc::EPERM) => Error::Denied { path, doing },
            Some(libc::EEXIST | libc::ENOTEMPTY) => Error::Exists { path },
            _ => Error::Io { path, doing, source },
        }
    }

    /// True if this is a matter of a missing file.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What a decoder of bytes finds wrong, before anybody has said which file the bytes are from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A header of another format version.
    Version { found: u64, reads: Versions },
    /// Not what ckvmm writes.
    Broken(String),
}

impl Flaw {
    /// A flaw described in a few words.
    pub(crate) fn broken(why: impl Into<String>) -> Flaw {
        Flaw::Broken(why.into())
    }

    /// The error for this flaw in the file `path`.
    pub(crate) fn at(self, path: &Path) -> Error {
        let path = path.to_path_buf();
        match self {
            Flaw::Version { found, reads } => Error::FormatVersion { path, found, reads },
            Flaw::Broken(why) => Error::Damaged { path, why },
        }
    }
}
