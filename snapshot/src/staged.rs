//! An image on its way to being one: what is written, before `commit.rs` makes it a checkpoint.
//!
//! ```text
//! STORE/.STAGING-UUID/       made and locked by create
//!     state                  write_state
//!     memory  memory.map     write_memory, while the guest stands still, or finish_memory after a fork
//!     disks/ID               from cut_disks on, before the guest's writes and by finish_disks
//!     disks/ID.map           finish_disks
//!     network/NIC            write_network, once all that was under way is known
//!     memory.UUID …          build_on: hard links to what it builds on; those that it needs get a memory.layers
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

use crate::chunk_map::ChunkMap;
use crate::digest::{Digest, FileDigest};
use crate::disk::{Capture, LiveDisk};
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::layers::Layers;
use crate::limits::{IMAGE_FILE_BYTES_MAX, NETWORK_BYTES_MAX};
use crate::manifest::FileEntry;
use crate::memory::Run;
use crate::names;
use crate::progress::{Phase, Progress};
use crate::saved::StateMap;
use crate::sparse::{self, Named};
use crate::staging_dir;
use crate::writer::{ForkedWriter, PreparedWriter, WrittenMemory};

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
    /// Disks and their captures, until they are part of a checkpoint.
    pub(crate) disks: BTreeMap<String, CapturedDisk>,
    /// The image that it builds on.
    base: Option<Arc<Image>>,
    /// Layers of that image, linked here; all durable.
    pub(crate) linked: BTreeMap<String, u64>,
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

/// A disk and its capture, which is given up if this goes before a checkpoint has come of it.
#[derive(Debug)]
pub(crate) struct CapturedDisk {
    disk: Arc<LiveDisk>,
    capture: Arc<Capture>,
    pub(crate) committed: bool,
}

impl Drop for CapturedDisk {
    fn drop(&mut self) {
        match self.committed {
            true => self.disk.end(&self.capture),
            false => self.disk.give_up(&self.capture),
        }
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
            base: None,
            linked: BTreeMap::new(),
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

    /// Writes guest RAM and its map; returns how many bytes the image has of its own. The guest stands still meanwhile. `mapped` are the runs of RAM, ascending, over which a file is mapped; all else is anonymous, and what
    /// was never touched there is not read. Unless it succeeds the image has no memory and cannot be committed.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::NoSpace`], [`Error::Memory`], [`Error::Io`].
    pub fn write_memory(&mut self, memory: &GuestMemoryMmap, mapped: &[Run], progress: &Progress) -> Result<u64> {
        let writer = self.prepare_writer(memory, mapped)?;
        self.write_prepared(writer, memory, progress)
    }

    /// [`StagedImage::write_memory`] by what [`StagedImage::prepare_writer`] made of the same memory.
    ///
    /// # Errors
    /// As there.
    pub fn write_prepared(
        &mut self,
        writer: PreparedWriter,
        memory: &GuestMemoryMmap,
        progress: &Progress,
    ) -> Result<u64> {
        let written = writer.write(memory, progress)?;
        self.record_memory(written)
    }

    /// Writes what was under way to the network card `id` at the cut, in whatever form the network gives it.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::NoSpace`], [`Error::Io`].
    pub fn write_network(&mut self, id: &str, bytes: &[u8]) -> Result<()> {
        assert!(names::is_id(id), "a configuration has only such ids");
        let path = self.directory.join(names::NETWORK);
        if bytes.len() as u64 > NETWORK_BYTES_MAX {
            return Err(Error::TooLarge { path, bytes: bytes.len() as u64, limit: NETWORK_BYTES_MAX });
        }
        make_directory(&path)?;
        self.write_small(&names::network(id), bytes)
    }

    fn record_memory(&mut self, written: WrittenMemory) -> Result<u64> {
        let WrittenMemory { file, map, layers, own_bytes } = written;
        self.memory_bytes = map.regions().iter().map(|region| region.bytes).sum();
        self.record_large(names::MEMORY, file, &map, &layers)?;
        Ok(own_bytes)
    }

    /// Prepares to have guest RAM and its map written; `mapped` as in [`StagedImage::write_memory`].
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Memory`], [`Error::Io`], [`Error::Writer`].
    pub fn prepare_writer(&mut self, memory: &GuestMemoryMmap, mapped: &[Run]) -> Result<PreparedWriter> {
        let path = self.directory.join(names::MEMORY);
        PreparedWriter::new(memory, mapped, self.base.clone(), files::create(&path)?, path)
    }

    /// Waits for the child that was forked from what [`StagedImage::prepare_writer`] made; else as
    /// [`StagedImage::write_memory`].
    ///
    /// # Errors
    /// As there, and [`Error::Writer`] if the child was killed.
    pub fn finish_memory(&mut self, writer: ForkedWriter, progress: &Progress) -> Result<u64> {
        let written = writer.wait(progress)?;
        self.record_memory(written)
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
        self.make_disks_directory()?;
        let label = PathBuf::from(format!("disk {id}"));
        let bytes = sparse::length(Named { file: disk.file(), path: &label })?;
        if bytes > IMAGE_FILE_BYTES_MAX {
            return Err(Error::TooLarge { path: label, bytes, limit: IMAGE_FILE_BYTES_MAX });
        }
        let path = self.directory.join(&name);
        let mut capture = Capture::new(disk, self.id, label, files::create(&path)?, path, bytes)?;
        if let Some(base) = &self.base {
            capture.build_on(base, id);
        }
        self.disks.insert(name, CapturedDisk { disk: Arc::clone(disk), capture: Arc::new(capture), committed: false });
        Ok(())
    }

    /// The instant of which the image has the disks. No change to one is under way; from now on they may be changed.
    pub fn cut_disks(&self) {
        self.disks.values().for_each(|CapturedDisk { disk, capture, .. }| disk.begin(capture));
    }

    /// Captures what is left of the disks, digests them and writes their maps. The guest may run meanwhile.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::NoSpace`], [`Error::Io`], also for what was captured for the guest's sake since
    /// the cut; the image can then not be committed.
    pub fn finish_disks(&mut self, progress: &Progress) -> Result<()> {
        let left = || self.disks.iter().filter(|(name, _)| !self.written.contains_key(*name));
        let total = left().map(|(_, disk)| disk.capture.bytes()).sum();
        progress.begin(Phase::Disks, total);
        left().try_for_each(|(_, disk)| disk.capture.sweep(progress))?;
        progress.begin(Phase::Digests, total);
        let mut digested = Vec::new();
        for (name, disk) in left() {
            disk.disk.end(&disk.capture);
            let (map, layers) = digest::of(&disk.capture, progress)?;
            let file = disk.capture.file();
            let kept = file.file.try_clone().map_err(|source| Error::io(file.path, "keep it open", source))?;
            digested.push((name.clone(), kept, map, layers));
        }
        digested.into_iter().try_for_each(|(name, file, map, layers)| self.record_large(&name, file, &map, &layers))
    }

    pub(crate) fn make_disks_directory(&self) -> Result<()> {
        make_directory(&self.directory.join(names::DISKS))
    }

    fn write_small(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let file = files::create(&path)?;
        write_all(&file, &path, bytes)?;
        let entry = FileEntry { bytes: bytes.len() as u64, digest: FileDigest::Whole(Digest::of(bytes)) };
        self.written.insert(name.to_owned(), Written { file, entry });
        Ok(())
    }

    /// Writes the map of a large file that is complete, and the table of its layers, then counts all as written.
    pub(crate) fn record_large(&mut self, name: &str, file: File, map: &ChunkMap, layers: &Layers) -> Result<()> {
        let bytes = map.encode();
        self.write_small(&names::map_of(name), &bytes)?;
        if !layers.is_single() {
            self.write_small(&names::layers_of(name), &layers.encode(map.file_bytes()))?;
        }
        let needed: Vec<String> = layers.ids().iter().map(|id| names::layer(name, *id)).collect();
        self.unlink(|link| names::layer_of(link) == Some(name) && !needed.iter().any(|needed| needed == link))?;
        let entry = FileEntry { bytes: map.file_bytes(), digest: FileDigest::Chunks(Digest::of(&bytes)) };
        self.written.insert(name.to_owned(), Written { file, entry });
        Ok(())
    }

    /// What the manifest is to list.
    pub(crate) fn entries(&self) -> BTreeMap<String, FileEntry> {
        let written = self.written.iter().map(|(name, written)| (name.clone(), written.entry));
        let linked = self.linked.iter().filter_map(|(name, bytes)| {
            let digest = self.written.get(names::layer_of(name)?)?.entry.digest;
            Some((name.clone(), FileEntry { bytes: *bytes, digest }))
        });
        written.chain(linked).collect()
    }
}

impl Drop for StagedImage {
    fn drop(&mut self) {
        if !self.committed {
            // What cannot be removed now is swept at the next start.
            let _ = staging_dir::remove(&self.directory);
        }
    }
}

fn make_directory(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() { files::create_dir(path) } else { Ok(()) }
}

pub(crate) fn write_all(file: &File, path: &Path, bytes: &[u8]) -> Result<()> {
    files::write_at(file, bytes, 0).map_err(|source| Error::io_wanting(path, "write it", bytes.len() as u64, source))
}

mod digest;
mod links;
#[cfg(test)]
mod tests;
