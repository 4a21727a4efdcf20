//! All that a run changed in one directory, in its order.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::change::Change;

/// A file, whatever its names are: the order in which they were made.
pub(crate) type FileId = usize;

/// A change. Paths are relative to the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    MakeDirectory(PathBuf),
    Create(PathBuf, FileId),
    Write {
        file: FileId,
        offset: u64,
        bytes: Arc<[u8]>,
    },
    SetLength(FileId, u64),
    Sync(FileId),
    SyncDirectory(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Symlink {
        target: PathBuf,
        link: PathBuf,
    },
    /// One more name of a file.
    Link(FileId, PathBuf),
    Remove(PathBuf),
    RemoveTree(PathBuf),
    /// No change: how far the run was.
    Mark(Mark),
}

/// What a run has promised so far, of the checkpoint, or whatever it makes, with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Begun(u64),
    Committed(u64),
    Removing(u64),
    Removed(u64),
}

/// What there must and may be; all else there may not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Promises {
    pub(super) must: BTreeSet<u64>,
    pub(super) may: BTreeSet<u64>,
}

impl Promises {
    pub(super) fn note(&mut self, mark: Mark) {
        match mark {
            Mark::Begun(number) => drop(self.may.insert(number)),
            Mark::Committed(number) => drop(self.must.insert(number)),
            // Its removal has begun.
            Mark::Removing(number) => drop(self.must.remove(&number)),
            Mark::Removed(number) => drop(self.may.remove(&number)),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Journal {
    root: PathBuf,
    /// By device and inode.
    files: BTreeMap<(u64, u64), FileId>,
    created: FileId,
    ops: Vec<Op>,
}

impl Journal {
    /// Of changes in `root`, which is empty.
    pub(crate) fn new(root: &Path) -> Self {
        Journal { root: root.to_path_buf(), files: BTreeMap::new(), created: 0, ops: Vec::new() }
    }

    pub(crate) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.ops.push(Op::Mark(mark));
    }

    /// Takes down a change that has just been made.
    pub(crate) fn note(&mut self, change: Change<'_>) {
        let op = match change {
            Change::MakeDirectory(path) => Op::MakeDirectory(self.inside(path)),
            Change::Create(path) => Op::Create(self.inside(path), self.created(path)),
            Change::Write { file, bytes, offset } => Op::Write { file: self.id(file), offset, bytes: bytes.into() },
            Change::SetLength { file, bytes, .. } => Op::SetLength(self.id(file), bytes),
            Change::Share { to } => {
                let bytes = length(to);
                self.ops.push(Op::SetLength(self.id(to), bytes));
                self.written(to, 0, bytes)
            }
            Change::Copy { to: file, offset, count } | Change::Punch { file, offset, count } => {
                self.written(file, offset, count as u64)
            }
            Change::Sync { file, .. } => Op::Sync(self.id(file)),
            Change::SyncDirectory(path) => Op::SyncDirectory(self.inside(path)),
            Change::Rename { from, to } | Change::RenameNew { from, to } => {
                Op::Rename { from: self.inside(from), to: self.inside(to) }
            }
            Change::Symlink { target, link } => Op::Symlink { target: target.to_path_buf(), link: self.inside(link) },
            Change::Link { file, to } => Op::Link(self.id(file), self.inside(to)),
            Change::Remove(path) => Op::Remove(self.inside(path)),
            Change::RemoveTree(path) => Op::RemoveTree(self.inside(path)),
        };
        self.ops.push(op);
    }

    /// What the kernel wrote by itself, as it is found there now.
    fn written(&self, to: &File, offset: u64, count: u64) -> Op {
        let mut bytes = vec![0; (length(to).min(offset + count) - offset) as usize];
        to.read_exact_at(&mut bytes, offset).expect("what was written can be read");
        Op::Write { file: self.id(to), offset, bytes: bytes.into() }
    }

    fn created(&mut self, path: &Path) -> FileId {
        let metadata = path.symlink_metadata().expect("it was just made");
        let id = self.created;
        self.created += 1;
        // The inode of a file that is gone may come again.
        self.files.insert((metadata.dev(), metadata.ino()), id);
        id
    }

    fn id(&self, file: &File) -> FileId {
        let metadata = file.metadata().expect("it is open");
        *self.files.get(&(metadata.dev(), metadata.ino())).expect("a file that the run made")
    }

    fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).expect("a path in the directory").to_path_buf()
    }
}

fn length(file: &File) -> u64 {
    file.metadata().expect("it is open").len()
}
