//! An image on its way to being one: what is written, before `commit.rs` makes it a checkpoint.
//!
//! ```text
//! STORE/.STAGING-UUID/       made and locked by create
//!     state                  write_state
//!     memory  memory.map     write_memory, while the guest stands still, or finish_memory after a fork
//!     disks/ID               from cut_disks on, before the guest's writes and by finish_disks
//!     disks/ID.map           finish_disks
//! ```
//!
//! Invariants: a file counts as written only when all of it is, so an operation that failed leaves an image that cannot
//! be committed. The lock is held until the image is committed or removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::Flock;
use uuid::Uuid;
use vm_memory::GuestMemoryMmap;

use crate::chunk_map::{ChunkMap, chunk_ranges};
use crate::digest::{Digest, FileDigest};
use crate::disk::{Capture, LiveDisk};
use crate::error::{Error, Result};
use crate::files;
use crate::limits::IMAGE_FILE_BYTES_MAX;
use crate::manifest::FileEntry;
use crate::memory::{self, Run};
use crate::names;
use crate::progress::{Phase, Progress};
use crate::saved::StateMap;
use crate::sparse::{self, ChunkReader, Named};
use crate::staging_dir;
use crate::writer::{ForkedWriter, PreparedWriter};

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
    /// Names of the disks that it is to have.
    pub(crate) wanted_disks: BTreeSet<String>,
    /// Disks that are not written and digested yet.
    pub(crate) disks: BTreeMap<String, CapturedDisk>,
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

/// A disk and its capture, which ends when this goes.
#[derive(Debug)]
pub(crate) struct CapturedDisk {
    disk: Arc<LiveDisk>,
    capture: Arc<Capture>,
}

impl Drop for CapturedDisk {
    fn drop(&mut self) {
        self.disk.end(&self.capture);
    }
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
            wanted_disks: BTreeSet::new(),
            disks: BTreeMap::new(),
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
    /// meanwhile. `mapped` are the runs of RAM, ascending, over which a file is mapped; all else is anonymous, and what
    /// was never touched there is not read. Unless it succeeds the image has no memory and cannot be committed.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::NoSpace`], [`Error::Memory`], [`Error::Io`].
    pub fn write_memory(&mut self, memory: &GuestMemoryMmap, mapped: &[Run], progress: &Progress) -> Result<u64> {
        let path = self.directory.join(names::MEMORY);
        let file = files::create(&path)?;
        let map = memory::write(memory, mapped, Named { file: &file, path: &path }, progress)?;
        self.record_memory(file, &map)
    }

    fn record_memory(&mut self, file: File, map: &ChunkMap) -> Result<u64> {
        self.memory_bytes = map.regions().iter().map(|region| region.bytes).sum();
        self.record_large(names::MEMORY, file, map)?;
        Ok(map.data_bytes())
    }

    /// Prepares a child process that is to write guest RAM and its map; `mapped` as in [`StagedImage::write_memory`].
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Memory`], [`Error::Io`], [`Error::Writer`].
    pub fn prepare_writer(&mut self, memory: &GuestMemoryMmap, mapped: &[Run]) -> Result<PreparedWriter> {
        let path = self.directory.join(names::MEMORY);
        PreparedWriter::new(memory, mapped, files::create(&path)?, path)
    }

    /// Waits for the child that was forked from what [`StagedImage::prepare_writer`] made; else as
    /// [`StagedImage::write_memory`].
    ///
    /// # Errors
    /// As there, and [`Error::Writer`] if the child was killed.
    pub fn finish_memory(&mut self, writer: ForkedWriter, progress: &Progress) -> Result<u64> {
        let (file, map) = writer.wait(progress)?;
        self.record_memory(file, &map)
    }

    /// Prepares to capture the disk `id`, which the guest may still change.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Io`].
    pub fn prepare_disk(&mut self, id: &str, disk: &Arc<LiveDisk>) -> Result<()> {
        let refuse = |why| Error::Disk { id: id.to_owned(), why };
        let name = names::disk(id);
        if !names::is_id(id) {
            return Err(refuse("its id must be [a-z0-9][a-z0-9-]{0,62}"));
        }
        if !self.wanted_disks.insert(name.clone()) {
            return Err(refuse("it was captured already"));
        }
        let disks = self.directory.join(names::DISKS);
        if disks.symlink_metadata().is_err() {
            files::create_dir(&disks)?;
        }
        let label = PathBuf::from(format!("disk {id}"));
        let bytes = sparse::length(Named { file: disk.file(), path: &label })?;
        if bytes > IMAGE_FILE_BYTES_MAX {
            return Err(Error::TooLarge { path: label, bytes, limit: IMAGE_FILE_BYTES_MAX });
        }
        let path = self.directory.join(&name);
        let capture = Arc::new(Capture::new(disk, label, files::create(&path)?, path, bytes)?);
        self.disks.insert(name, CapturedDisk { disk: Arc::clone(disk), capture });
        Ok(())
    }

    /// The instant of which the image has the disks. No change to one is under way; from now on they may be changed.
    pub fn cut_disks(&self) {
        self.disks.values().for_each(|CapturedDisk { disk, capture }| disk.begin(capture));
    }

    /// Captures what is left of the disks, digests them and writes their maps. The guest may run meanwhile.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::NoSpace`], [`Error::Io`], also for what was captured for the guest's sake since
    /// the cut; the image can then not be committed.
    pub fn finish_disks(&mut self, progress: &Progress) -> Result<()> {
        let total = self.disks.values().map(|disk| disk.capture.bytes()).sum();
        progress.begin(Phase::Disks, total);
        self.disks.values().try_for_each(|disk| disk.capture.sweep(progress))?;
        progress.begin(Phase::Digests, total);
        while let Some((name, CapturedDisk { disk, capture })) = self.disks.first_key_value() {
            disk.end(capture);
            let map = digest(capture, progress)?;
            let (name, file) = (name.clone(), capture.file().file.try_clone());
            let file = file.map_err(|source| Error::io(capture.file().path, "keep it open", source))?;
            self.disks.remove(&name);
            self.record_large(&name, file, &map)?;
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

/// Digests a captured disk.
fn digest(capture: &Capture, progress: &Progress) -> Result<ChunkMap> {
    let mut map = ChunkMap::for_file(capture.bytes());
    let mut reader = ChunkReader::new(capture.file(), capture.bytes());
    for range in chunk_ranges(capture.bytes()) {
        map.push(reader.read(range.clone())?);
        progress.advance(range.end - range.start)?;
    }
    Ok(map)
}

pub(crate) fn write_all(file: &File, path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_at(file, bytes, 0).map_err(|source| Error::io_wanting(path, "write it", bytes.len() as u64, source))
}

#[cfg(test)]
mod tests;
