//! What an operation of [`files`](crate::files) changes, as tests look at it.
//!
//! A new operation is a variant here, its name in [`Change::name`], and what it does to a disk in `crash/journal.rs`.
#![cfg_attr(not(test), expect(dead_code, reason = "only tests look at what is changed"))]

use std::fs::File;
use std::path::Path;

/// A change of a file system that is about to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    MakeDirectory(&'a Path),
    Create(&'a Path),
    Write {
        file: &'a File,
        bytes: &'a [u8],
        offset: u64,
    },
    SetLength {
        file: &'a File,
        path: &'a Path,
        bytes: u64,
    },
    /// All of a file, by FICLONE.
    Share {
        to: &'a File,
    },
    /// Up to so many bytes, from another file or from memory.
    Copy {
        to: &'a File,
        offset: u64,
        count: usize,
    },
    /// So many bytes are zero.
    Punch {
        file: &'a File,
        offset: u64,
        count: usize,
    },
    Sync {
        file: &'a File,
        path: &'a Path,
    },
    SyncDirectory(&'a Path),
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    /// To a name that nothing has.
    RenameNew {
        from: &'a Path,
        to: &'a Path,
    },
    Symlink {
        target: &'a Path,
        link: &'a Path,
    },
    /// One more name.
    Link {
        file: &'a File,
        to: &'a Path,
    },
    Remove(&'a Path),
    RemoveTree(&'a Path),
}

#[cfg(test)]
impl Change<'_> {
    /// What tests call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Change::MakeDirectory(_) => "mkdir",
            Change::Create(_) => "create",
            Change::Write { .. } => "write",
            Change::SetLength { .. } => "set_len",
            Change::Share { .. } => "reflink",
            Change::Copy { .. } => "copy",
            Change::Punch { .. } => "punch",
            Change::Sync { .. } => "sync",
            Change::SyncDirectory(_) => "sync_dir",
            Change::Rename { .. } => "rename",
            Change::RenameNew { .. } => "rename_new",
            Change::Symlink { .. } => "symlink",
            Change::Link { .. } => "link",
            Change::Remove(_) => "remove",
            Change::RemoveTree(_) => "remove_tree",
        }
    }

    /// What is changed; nothing where only a descriptor is known.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Change::MakeDirectory(path) | Change::Create(path) | Change::SyncDirectory(path) => path,
            Change::Remove(path) | Change::RemoveTree(path) => path,
            Change::SetLength { path, .. } | Change::Sync { path, .. } => path,
            Change::Rename { to, .. } | Change::RenameNew { to, .. } | Change::Link { to, .. } => to,
            Change::Symlink { link, .. } => link,
            Change::Write { .. } | Change::Share { .. } | Change::Copy { .. } | Change::Punch { .. } => Path::new(""),
        }
    }
}
