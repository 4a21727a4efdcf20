//! A committed image, open for reading.
//!
//! Invariant: bytes become an [`Image`] only after manifest, state and chunk maps agree with their digests and every
//! file has the length that was saved. Bulk contents are compared by [`Image::verify`], which may run while the image
//! is in use. Nothing here writes to the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::chunk_map::ChunkMap;
use crate::copy;
use crate::digest::{Digest, FileDigest};
use crate::error::{Error, Flaw, Result};
use crate::files;
use crate::limits::{CHUNK_MAP_BYTES_MAX, STATE_BYTES_MAX};
use crate::manifest::{FileEntry, Manifest};
use crate::memory::MemoryImage;
use crate::names;
use crate::progress::{Phase, Progress};
use crate::saved::StateMap;
use crate::sparse::{ChunkReader, CopyMethod, Named};

/// A checkpoint whose manifest, state and maps are verified.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    manifest: Manifest,
    state: Option<StateMap>,
    memory: MemoryImage,
    disks: BTreeMap<String, Disk>,
}

#[derive(Debug)]
struct Disk {
    file: File,
    path: PathBuf,
    map: ChunkMap,
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
        let (file, map) = files.large(names::MEMORY)?;
        let memory = MemoryImage { file, path: path.join(names::MEMORY), map };
        if memory.regions().is_empty() || memory.bytes() != manifest.memory_bytes {
            let why = "its regions are not the memory that the manifest states".to_owned();
            return Err(Error::Damaged { path: path.join(names::map_of(names::MEMORY)), why });
        }
        let mut disks = BTreeMap::new();
        for (name, id) in manifest.files.keys().filter_map(|name| Some((name, names::disk_id(name)?))) {
            let (file, map) = files.large(name)?;
            if !map.regions().is_empty() {
                let why = "it has regions of memory".to_owned();
                return Err(Error::Damaged { path: path.join(names::map_of(name)), why });
            }
            disks.insert(id.to_owned(), Disk { file, path: path.join(name), map });
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
        let disk = self.disks.get(id).ok_or_else(missing)?;
        copy::make_copy(Named { file: &disk.file, path: &disk.path }, disk.map.file_bytes(), dst)
    }

    /// Compares guest RAM and disks with their digests. May run on another thread while the image is used.
    ///
    /// # Errors
    /// [`Error::Digest`] names the first file and chunk that differ; [`Error::Cancelled`], [`Error::Io`].
    pub fn verify(&self, progress: &Progress) -> Result<()> {
        let disks = self.disks.values().map(|disk| (&disk.file, disk.path.as_path(), &disk.map));
        let all =
            || std::iter::once((&self.memory.file, self.memory.path.as_path(), &self.memory.map)).chain(disks.clone());
        progress.begin(Phase::Verify, all().map(|(_, _, map)| map.file_bytes()).sum());
        all().try_for_each(|(file, path, map)| verify_file(Named { file, path }, map, progress))
    }
}

fn verify_file(from: Named<'_>, map: &ChunkMap, progress: &Progress) -> Result<()> {
    check_length(from.file, from.path, map.file_bytes())?;
    let mut reader = ChunkReader::new(from, map.file_bytes());
    for (range, expected) in map.chunks() {
        let (offset, bytes) = (range.start, range.end - range.start);
        if reader.read(range)? != expected {
            return Err(Error::Digest { path: from.path.to_path_buf(), offset, bytes });
        }
        progress.advance(bytes)?;
    }
    Ok(())
}

fn check_length(file: &File, path: &Path, expected: u64) -> Result<()> {
    let found = file.metadata().map_err(|source| Error::io(path, "find its length", source))?.len();
    if found == expected { Ok(()) } else { Err(Error::Size { path: path.to_path_buf(), expected, found }) }
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

    /// Opens a large file, checks its length, and reads its map.
    fn large(&self, name: &str) -> Result<(File, ChunkMap)> {
        let path = self.directory.join(name);
        let entry = self.entry(name)?;
        let map = self.small(&names::map_of(name), CHUNK_MAP_BYTES_MAX, ChunkMap::parse)?;
        if map.file_bytes() != entry.bytes {
            let why = format!("it is of a file of {} bytes, `{name}` has {}", map.file_bytes(), entry.bytes);
            return Err(Error::Damaged { path: self.directory.join(names::map_of(name)), why });
        }
        let (file, found) = files::open(&path).map_err(|error| missing(error, &path))?;
        if found != entry.bytes {
            return Err(Error::Size { path, expected: entry.bytes, found });
        }
        Ok((file, map))
    }
}

/// A file that the manifest lists and that is not there is damage, not a wrong name.
fn missing(error: Error, path: &Path) -> Error {
    if !error.is_not_found() {
        return error;
    }
    Error::Damaged { path: path.to_path_buf(), why: "it is missing".to_owned() }
}
