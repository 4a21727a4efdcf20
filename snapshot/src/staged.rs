//! An image on its way to being one: what is written, before `commit.rs` makes it a checkpoint.
//!
//! ```text
//! STORE/.STAGING-UUID/       made and locked by create
//!     state                  write_state
//!     memory  memory.map     write_memory, while the guest stands still
//!     disks/ID               capture_disk, while the guest stands still
//!     disks/ID.map           digest_disks, after that
//! ```
//!
//! Invariants: a file counts as written only when all of it is, so an operation that failed leaves an image that cannot
//! be committed. The lock is held until the image is committed or removed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use uuid::Uuid;
use vm_memory::GuestMemoryMmap;

use crate::chunk_map::{ChunkMap, chunk_ranges};
use crate::digest::{Digest, FileDigest};
use crate::error::{Error, Result};
use crate::files;
use crate::limits::IMAGE_FILE_BYTES_MAX;
use crate::manifest::FileEntry;
use crate::memory;
use crate::names;
use crate::progress::{Phase, Progress};
use crate::saved::StateMap;
use crate::sparse::{self, ChunkReader, CopyMethod, Named};
use crate::staging_dir;

/// A checkpoint that is being written. Dropped without [`StagedImage::commit`] it leaves nothing.
#[derive(Debug)]
pub struct StagedImage {
    pub(crate) id: Uuid,
    pub(crate) target: Target,
    /// The directory that it becomes an entry of.
    pub(crate) parent: PathBuf,
    /// Where the files are now.
    pub(crate) directory: PathBuf,
    /// What keeps a sweep away.
    _lock: Flock<File>,
    /// Written and digested, open until they are durable: an error of writing back is told to whoever has them open.
    pub(crate) written: BTreeMap<String, Written>,
    /// Captured disks that have no digests yet.
    pub(crate) captured: BTreeMap<String, Captured>,
    pub(crate) memory_bytes: u64,
    pub(crate) committed: bool,
}

/// What the checkpoint will be called.
#[derive(Debug)]
pub(crate) enum Target {
    /// This path.
    Named(PathBuf),
    /// The next free number of the store, decided at the commit.
    NextNumber,
}

/// A file of the image that is whole.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) file: File,
    pub(crate) entry: FileEntry,
}

/// A captured disk.
#[derive(Debug)]
pub(crate) struct Captured {
    file: File,
    bytes: u64,
    /// False until all of it is there.
    whole: bool,
}

/// How a disk was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskCapture {
    /// Length of the disk, bytes.
    pub bytes: u64,
    /// Shared extents or a copy.
    pub method: CopyMethod,
}

impl StagedImage {
    /// Begins a checkpoint that will be called `final_dir`. The directory that it lies in is made if only that one is
    /// missing.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::NoParent`], [`Error::ReadOnly`], [`Error::Denied`], [`Error::NoSpace`].
    pub fn create(final_dir: &Path) -> Result<Self> {
        let refuse = |why| Error::NoParent { path: final_dir.to_path_buf(), why };
        let final_dir = std::path::absolute(final_dir).map_err(|source| Error::io(final_dir, "resolve it", source))?;
        let parent = final_dir.parent().ok_or_else(|| refuse("it is not a name for a checkpoint"))?.to_path_buf();
        if final_dir.file_name().is_none() {
            return Err(refuse("it is not a name for a checkpoint"));
        }
        if final_dir.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: final_dir });
        }
        Self::create_in(parent, Target::Named(final_dir))
    }

    /// Begins a checkpoint that will get the next free number of `store`.
    ///
    /// # Errors
    /// As [`StagedImage::create`], apart from [`Error::Exists`].
    pub(crate) fn create_in_store(store: &Path) -> Result<Self> {
        let parent = std::path::absolute(store).map_err(|source| Error::io(store, "resolve it", source))?;
        Self::create_in(parent, Target::NextNumber)
    }

    fn create_in(parent: PathBuf, target: Target) -> Result<Self> {
        staging_dir::make_parent(&parent)?;
        let (id, directory, lock) = staging_dir::make(&parent)?;
        Ok(StagedImage {
            id,
            target,
            parent,
            directory,
            _lock: lock,
            written: BTreeMap::new(),
            captured: BTreeMap::new(),
            memory_bytes: 0,
            committed: false,
        })
    }

    /// The checkpoint's id, as its manifest will have it.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Writes the `state` file.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Io`].
    pub fn write_state(&mut self, state: &StateMap) -> Result<()> {
        self.write_small(names::STATE, &state.encode())
    }

    /// Writes guest RAM and its map; returns how many bytes were in chunks that are not zero. The guest stands still
    /// meanwhile. Unless it succeeds the image has no memory and cannot be committed.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::NoSpace`], [`Error::Memory`], [`Error::Io`].
    pub fn write_memory(&mut self, memory: &GuestMemoryMmap, progress: &Progress) -> Result<u64> {
        let path = self.directory.join(names::MEMORY);
        let file = files::create(&path)?;
        let map = memory::write(memory, Named { file: &file, path: &path }, progress)?;
        self.memory_bytes = map.regions().iter().map(|region| region.bytes).sum();
        self.record_large(names::MEMORY, file, &map)?;
        Ok(map.data_bytes())
    }

    /// Captures the disk `id` as it is now, while nobody writes to it: by sharing extents where the file system can,
    /// else by a copy without the holes. `disk` is a regular file or a block device, open for reading; its offset
    /// moves.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Io`]; the image can then not be committed.
    pub fn capture_disk(&mut self, id: &str, disk: &File) -> Result<DiskCapture> {
        let refuse = |why| Error::Disk { id: id.to_owned(), why };
        let name = names::disk(id);
        if !names::is_id(id) {
            return Err(refuse("its id must be [a-z0-9][a-z0-9-]{0,62}"));
        }
        if self.captured.contains_key(&name) || self.written.contains_key(&name) {
            return Err(refuse("it was captured already"));
        }
        let disks = self.directory.join(names::DISKS);
        if disks.symlink_metadata().is_err() {
            files::create_dir(&disks)?;
        }
        let path = self.directory.join(&name);
        let file = files::create(&path)?;
        let captured = self.captured.entry(name).or_insert(Captured { file, bytes: 0, whole: false });
        let label = PathBuf::from(format!("disk {id}"));
        let from = Named { file: disk, path: &label };
        captured.bytes = sparse::length(from)?;
        if captured.bytes > IMAGE_FILE_BYTES_MAX {
            return Err(Error::TooLarge { path: label, bytes: captured.bytes, limit: IMAGE_FILE_BYTES_MAX });
        }
        let to = Named { file: &captured.file, path: &path };
        let method = sparse::clone_or_copy(from, to, captured.bytes)?;
        captured.whole = true;
        Ok(DiskCapture { bytes: captured.bytes, method })
    }

    /// Digests the captured disks and writes their maps. The guest may run meanwhile.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::NoSpace`], [`Error::Io`]; the image can then not be committed.
    pub fn digest_disks(&mut self, progress: &Progress) -> Result<()> {
        progress.begin(Phase::Disks, self.captured.values().map(|disk| disk.bytes).sum());
        while let Some((name, disk)) = self.captured.first_key_value() {
            if !disk.whole {
                return Err(Error::Incomplete { what: name.clone() });
            }
            let name = name.clone();
            let path = self.directory.join(&name);
            let mut map = ChunkMap::for_file(disk.bytes);
            let mut reader = ChunkReader::new(Named { file: &disk.file, path: &path }, disk.bytes);
            for range in chunk_ranges(disk.bytes) {
                map.push(reader.read(range.clone())?);
                progress.advance(range.end - range.start)?;
            }
            drop(reader);
            let disk = self.captured.remove(&name).expect("it was just there");
            self.record_large(&name, disk.file, &map)?;
        }
        Ok(())
    }

    fn write_small(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let file = files::create(&path)?;
        write_all(&file, &path, bytes)?;
        let entry = FileEntry { bytes: bytes.len() as u64, digest: FileDigest::Whole(Digest::of(bytes)) };
        self.written.insert(name.to_owned(), Written { file, entry });
        Ok(())
    }

    /// Writes the map of a large file that is complete, then counts both as written.
    fn record_large(&mut self, name: &str, file: File, map: &ChunkMap) -> Result<()> {
        let bytes = map.encode();
        self.write_small(&names::map_of(name), &bytes)?;
        let entry = FileEntry { bytes: map.file_bytes(), digest: FileDigest::Chunks(Digest::of(&bytes)) };
        self.written.insert(name.to_owned(), Written { file, entry });
        Ok(())
    }
}

impl Drop for StagedImage {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now is swept at the next start.
            let _ = files::remove_tree(&self.directory);
        }
    }
}

pub(crate) fn write_all(file: &File, path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_at(file, bytes, 0).map_err(|source| Error::io_wanting(path, "write it", bytes.len() as u64, source))
}

#[cfg(test)]
mod tests;
