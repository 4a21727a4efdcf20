//! A committed image, open for reading.
//!
//! Invariant: bytes become an [`Image`] only after manifest, state and chunk maps agree with their digests and every
//! file has the length that was saved. Bulk contents are compared by [`Image::verify`], which may run while the image
//! is in use. Nothing here writes to the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::chunk_map::ChunkMap;
use crate::digest::{Digest, FileDigest};
use crate::error::{Error, Flaw, Result};
use crate::files;
use crate::large::{LargeFile, LayerFile};
use crate::layers::Layers;
use crate::limits::{CHUNK_MAP_BYTES_MAX, NETWORK_BYTES_MAX, STATE_BYTES_MAX};
use crate::manifest::{FileEntry, Manifest};
use crate::memory::MemoryImage;
use crate::names;
use crate::progress::{Phase, Progress};
use crate::saved::StateMap;
use crate::sparse::CopyMethod;

/// A checkpoint whose manifest, state and maps are verified.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    manifest: Manifest,
    state: Option<StateMap>,
    memory: MemoryImage,
    disks: BTreeMap<String, LargeFile>,
}

impl Image {
    /// Opens the checkpoint directory `dir`, which may be a symbolic link such as `latest`.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`], [`Error::FormatVersion`], [`Error::Damaged`], [`Error::Digest`], [`Error::Size`],
    /// [`Error::TooLarge`], [`Error::Denied`], [`Error::Io`]: each names the file.
    pub fn open(dir: &Path) -> Result<Image> {
        // The directory itself, not what a link says: `latest` may point elsewhere before all is read.
        let path = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let manifest = Manifest::load(&path)?;
        let files = Files { directory: &path, manifest: &manifest };
        let state = files.small(names::STATE, STATE_BYTES_MAX, StateMap::parse)?;
        let memory = MemoryImage(files.large(names::MEMORY)?);
        if memory.regions().is_empty() || memory.bytes() != manifest.memory_bytes {
            let why = "its regions are not the memory that the manifest states".to_owned();
            return Err(Error::Damaged { path: path.join(names::map_of(names::MEMORY)), why });
        }
        for name in manifest.files.keys().filter(|name| names::network_id(name).is_some()) {
            files.small(name, NETWORK_BYTES_MAX, |_| Ok(()))?;
        }
        let mut disks = BTreeMap::new();
        for (name, id) in manifest.files.keys().filter_map(|name| Some((name, names::disk_id(name)?))) {
            let disk = files.large(name)?;
            if !disk.map.regions().is_empty() {
                let why = "it has regions of memory".to_owned();
                return Err(Error::Damaged { path: path.join(names::map_of(name)), why });
            }
            disks.insert(id.to_owned(), disk);
        }
        Ok(Image { path, manifest, state: Some(state), memory, disks })
    }

    /// Its directory, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says about itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The states of devices, vCPUs and VM, once.
    ///
    /// # Errors
    /// [`Error::StateMissing`] the second time.
    pub fn take_state(&mut self) -> Result<StateMap> {
        self.state.take().ok_or_else(|| Error::StateMissing { name: names::STATE.to_owned() })
    }

    /// What a later image needs of its base: not the states, nor what the manifest says of the VM and its host, which
    /// take most of the memory. The manifest has `null` for these.
    #[must_use]
    pub fn into_base(mut self) -> Image {
        self.state = None;
        (self.manifest.config, self.manifest.host) = Default::default();
        self
    }

    /// What was under way to the network card `id`, if the VM was in a network.
    ///
    /// # Errors
    /// [`Error::Digest`] and others if it has changed since the image was opened.
    pub fn network(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let (name, files) = (names::network(id), Files { directory: &self.path, manifest: &self.manifest });
        let listed = self.manifest.files.contains_key(&name);
        listed.then(|| files.small(&name, NETWORK_BYTES_MAX, |bytes| Ok(bytes.to_vec()))).transpose()
    }

    /// The ids of the network cards to which something was under way, in order.
    pub fn network_ids(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.keys().filter_map(|name| names::network_id(name))
    }

    /// Guest RAM.
    pub fn memory(&self) -> &MemoryImage {
        &self.memory
    }

    /// The ids of its disks, in order.
    pub fn disk_ids(&self) -> impl Iterator<Item = &str> {
        self.disks.keys().map(String::as_str)
    }

    /// Length of the disk `id`, bytes.
    pub fn disk_bytes(&self, id: &str) -> Option<u64> {
        self.disks.get(id).map(|disk| disk.map.file_bytes())
    }

    /// Gives the guest a disk of its own: makes the file `dst` with the content of the disk `id`, sharing extents where
    /// the file system can. The content is not compared with its digests on the way.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Exists`], [`Error::NoSpace`], [`Error::ReadOnly`], [`Error::Denied`], [`Error::Io`];
    /// `dst` is then not left behind.
    pub fn materialise_disk(&self, id: &str, dst: &Path) -> Result<CopyMethod> {
        let missing = || Error::Disk { id: id.to_owned(), why: "it is not in the checkpoint" };
        self.disks.get(id).ok_or_else(missing)?.copy_to(dst)
    }

    /// The disk `id`, if it has one.
    pub(crate) fn disk(&self, id: &str) -> Option<&LargeFile> {
        self.disks.get(id)
    }

    /// Its large files with their names in the directory.
    pub(crate) fn large_files(&self) -> impl Iterator<Item = (String, &LargeFile)> {
        let disks = self.disks.iter().map(|(id, disk)| (names::disk(id), disk));
        std::iter::once((names::MEMORY.to_owned(), &self.memory.0)).chain(disks)
    }

    /// Waits until guest RAM and disks are durable: an image that was not committed here but copied need not be, and one
    /// that builds on it would be no better.
    ///
    /// # Errors
    /// [`Error::Io`] names the file.
    pub fn sync(&self) -> Result<()> {
        let files = self.large_files().flat_map(|(_, large)| &large.files);
        files.into_iter().try_for_each(|layer| files::sync(&layer.file, &layer.path))
    }

    /// Compares guest RAM and disks with their digests. May run on another thread while the image is used.
    ///
    /// # Errors
    /// [`Error::Digest`] names the first file and chunk that differ; [`Error::Cancelled`], [`Error::Io`].
    pub fn verify(&self, progress: &Progress) -> Result<()> {
        let all = || std::iter::once(&self.memory.0).chain(self.disks.values());
        progress.begin(Phase::Verify, all().map(|file| file.map.file_bytes()).sum());
        all().try_for_each(|file| file.verify(progress))
    }
}

/// The files of an image as its manifest lists them.
struct Files<'a> {
    directory: &'a Path,
    manifest: &'a Manifest,
}

impl Files<'_> {
    fn entry(&self, name: &str) -> Result<FileEntry> {
        self.manifest.files.get(name).copied().ok_or_else(|| Error::Damaged {
            path: self.directory.join(names::MANIFEST),
            why: format!("it does not list `{name}`"),
        })
    }

    /// Reads a small file, compares it with size and digest, and only then decodes it.
    fn small<T>(&self, name: &str, limit: u64, parse: impl FnOnce(&[u8]) -> Result<T, Flaw>) -> Result<T> {
        let path = self.directory.join(name);
        let entry = self.entry(name)?;
        let bytes = files::read_bounded(&path, limit).map_err(|error| missing(error, &path))?;
        if bytes.len() as u64 != entry.bytes {
            return Err(Error::Size { path, expected: entry.bytes, found: bytes.len() as u64 });
        }
        if entry.digest != FileDigest::Whole(Digest::of(&bytes)) {
            return Err(Error::Digest { path, offset: 0, bytes: entry.bytes });
        }
        parse(&bytes).map_err(|flaw| flaw.at(&path))
    }

    /// Opens a large file with its layers, checks their lengths, and reads map and table.
    fn large(&self, name: &str) -> Result<LargeFile> {
        let entry = self.entry(name)?;
        let map = self.small(&names::map_of(name), CHUNK_MAP_BYTES_MAX, ChunkMap::parse)?;
        if map.file_bytes() != entry.bytes {
            let why = format!("it is of a file of {} bytes, `{name}` has {}", map.file_bytes(), entry.bytes);
            return Err(Error::Damaged { path: self.directory.join(names::map_of(name)), why });
        }
        let table = names::layers_of(name);
        let layers = match self.manifest.files.contains_key(&table) {
            true => self.small(&table, Layers::bytes_max(entry.bytes), |bytes| Layers::parse(bytes, entry.bytes))?,
            false => Layers::single(),
        };
        let names = std::iter::once(name.to_owned()).chain(layers.ids().iter().map(|id| names::layer(name, *id)));
        let files = names.map(|name| self.layer(&name)).collect::<Result<_>>()?;
        Ok(LargeFile { map, layers, files })
    }

    fn layer(&self, name: &str) -> Result<LayerFile> {
        let path = self.directory.join(name);
        let expected = self.entry(name)?.bytes;
        let (file, found) = files::open(&path).map_err(|error| missing(error, &path))?;
        if found != expected {
            return Err(Error::Size { path, expected, found });
        }
        Ok(LayerFile { file, path })
    }
}

/// A file that the manifest lists and that is not there is damage, not a wrong name.
fn missing(error: Error, path: &Path) -> Error {
    if !error.is_not_found() {
        return error;
    }
    Error::Damaged { path: path.to_path_buf(), why: "it is missing".to_owned() }
}
