//! `manifest.json`: what the image is, and the sizes and digests of all its files.
//!
//! ```text
//! {
//!   "format_version": 1,
//!   …
//!   "files": { "memory": { "bytes": 134217728, "digest": "blake3-chunks:HEX" }, … },
//!   "seal": "blake3:HEX"
//! }
//! ```
//!
//! Invariants: a changed byte anywhere in the manifest is seen by its seal, and through it one in any other file. The format
//! version is read
//! before the seal is, so that a manifest of another version says so. Members that this build does not know are
//! ignored; one that changes what an old reader would do raises [`FORMAT_VERSION`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::digest::FileDigest;
use crate::error::{Error, Flaw, Result, Versions};
use crate::files;
use crate::limits::{IMAGE_FILE_BYTES_MAX, MANIFEST_BYTES_MAX, MANIFEST_FILES_MAX};
use crate::names;
use crate::seal::{is_sealed, sealed};

/// Versions of the image format that this build reads. It writes the first that has what the image needs: 1, 2 if it
/// builds on other checkpoints, 3 if it has frames of a network.
pub const FORMAT_VERSIONS: Versions = Versions { oldest: 1, newest: 3 };

/// What a committed image says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// One of [`FORMAT_VERSIONS`].
    pub format_version: u32,
    /// Version of the ckvmm that wrote it.
    pub ckvmm_version: String,
    /// This checkpoint.
    pub id: Uuid,
    /// The VM's life: the same for all checkpoints that descend from one boot.
    pub lineage: Uuid,
    /// The checkpoint that the VM was restored from or last made, if any.
    pub parent: Option<Uuid>,
    /// The VM's name.
    pub name: String,
    /// The instant of the cut.
    pub created: Timestamp,
    /// How it was made, for example `stop`.
    pub mode: String,
    /// The VM's configuration, with absolute paths.
    pub config: serde_json::Value,
    /// The host's CPU, as the VMM describes it.
    pub host: serde_json::Value,
    /// Guest RAM, bytes.
    pub memory_bytes: u64,
    /// How long the guest stood still, microseconds.
    pub pause_us: u64,
    /// From the trigger to the writing of this manifest, microseconds.
    pub duration_us: u64,
    /// Every file of the image but this one, by its path relative to the directory.
    pub files: BTreeMap<String, FileEntry>,
}

/// Size and digest of a file in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its length in bytes; holes count.
    pub bytes: u64,
    /// Its digest.
    pub digest: FileDigest,
}

/// What the VMM knows about a checkpoint; [`StagedImage::commit`](crate::StagedImage::commit) adds the rest.
#[derive(Debug, Clone)]
pub struct ManifestHead {
    /// The VM's name.
    pub name: String,
    /// The VM's life: the same for all checkpoints that descend from one boot.
    pub lineage: Uuid,
    /// The checkpoint that the VM was restored from or last made, if any.
    pub parent: Option<Uuid>,
    /// The instant of the cut.
    pub created: Timestamp,
    /// How it was made, for example `stop`.
    pub mode: String,
    /// The VM's configuration, with absolute paths.
    pub config: serde_json::Value,
    /// The host's CPU.
    pub host: serde_json::Value,
    /// How long the guest stood still, microseconds.
    pub pause_us: u64,
    /// When the checkpoint was asked for; the manifest's `duration_us` counts from here.
    pub started: Instant,
}

/// Read before all else, whatever the rest of the file looks like.
#[derive(Deserialize)]
struct VersionOnly {
    format_version: u64,
}

impl Manifest {
    /// Reads and verifies the manifest of the checkpoint directory `dir`; no other file is looked at.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] without a manifest, [`Error::FormatVersion`], [`Error::Damaged`], [`Error::TooLarge`].
    pub fn load(dir: &Path) -> Result<Manifest> {
        let path = dir.join(names::MANIFEST);
        let bytes = match files::read_bounded(&path, MANIFEST_BYTES_MAX) {
            Err(error) if error.is_not_found() || !dir.is_dir() => return Err(not_a_checkpoint(dir)),
            other => other?,
        };
        Manifest::parse(&bytes).map_err(|flaw| flaw.at(&path))
    }

    /// The bytes of `manifest.json`, seal included.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond [`MANIFEST_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let path = Path::new(names::MANIFEST);
        let json = serde_json::to_string_pretty(self)
            .map_err(|source| Error::Damaged { path: path.to_path_buf(), why: source.to_string() })?;
        let out = sealed(&json);
        match out.len() as u64 {
            bytes if bytes > MANIFEST_BYTES_MAX => {
                Err(Error::TooLarge { path: path.to_path_buf(), bytes, limit: MANIFEST_BYTES_MAX })
            }
            _ => Ok(out.into_bytes()),
        }
    }

    /// Reads what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::FormatVersion`] and [`Error::Damaged`], which name the file `manifest.json`.
    pub fn decode(bytes: &[u8]) -> Result<Manifest> {
        Manifest::parse(bytes).map_err(|flaw| flaw.at(Path::new(names::MANIFEST)))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Manifest, Flaw> {
        let version: VersionOnly = serde_json::from_slice(bytes)
            .map_err(|source| Flaw::broken(format!("it is not a ckvmm manifest ({source})")))?;
        let found = version.format_version;
        if !(u64::from(FORMAT_VERSIONS.oldest)..=u64::from(FORMAT_VERSIONS.newest)).contains(&found) {
            return Err(Flaw::Version { found, reads: FORMAT_VERSIONS });
        }
        if !is_sealed(bytes) {
            return Err(Flaw::broken("its seal does not match: it was changed after it was written"));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|source| Flaw::broken(source.to_string()))?;
        manifest.check_files()?;
        Ok(manifest)
    }

    /// The version that an image with these files has.
    pub(crate) fn format_version(files: &BTreeMap<String, FileEntry>) -> u32 {
        if files.keys().any(|name| names::network_id(name).is_some()) {
            return 3;
        }
        if files.keys().any(|name| Manifest::is_shared(name)) { 2 } else { 1 }
    }

    /// True for the name of a file that another checkpoint wrote.
    pub fn is_shared(name: &str) -> bool {
        names::classify(name) == Some(names::FileKind::Layer)
    }

    /// True if it builds on what other checkpoints wrote.
    pub fn is_incremental(&self) -> bool {
        self.files.keys().any(|name| Manifest::is_shared(name))
    }

    /// What needs no other file to be known: names, bounds, and that everything large has its map.
    fn check_files(&self) -> Result<(), Flaw> {
        if self.files.len() > MANIFEST_FILES_MAX {
            return Err(Flaw::broken(format!("it lists {} files", self.files.len())));
        }
        if self.format_version < Manifest::format_version(&self.files) {
            return Err(Flaw::broken("it lists files that its format version does not have"));
        }
        for required in [names::STATE, names::MEMORY] {
            if !self.files.contains_key(required) {
                return Err(Flaw::broken(format!("it does not list `{required}`")));
            }
        }
        for (name, entry) in &self.files {
            let kind =
                names::classify(name).ok_or_else(|| Flaw::broken(format!("it lists the unknown file {name:?}")))?;
            if entry.bytes > IMAGE_FILE_BYTES_MAX {
                return Err(Flaw::broken(format!("it lists `{name}` with {} bytes", entry.bytes)));
            }
            let fits = match (kind, entry.digest) {
                (names::FileKind::Large, FileDigest::Chunks(digest)) => {
                    let map = self.files.get(&names::map_of(name));
                    map.is_some_and(|map| map.digest == FileDigest::Whole(digest))
                }
                (names::FileKind::Layer, digest @ FileDigest::Chunks(_)) => {
                    let of = names::layer_of(name).and_then(|large| self.files.get(large));
                    of.is_some_and(|large| large.digest == digest && large.bytes == entry.bytes)
                }
                (names::FileKind::Small, FileDigest::Whole(_)) => true,
                _ => false,
            };
            if !fits {
                return Err(Flaw::broken(format!("its digest of `{name}` is not of the kind that this file has")));
            }
        }
        Ok(())
    }
}

/// Why there is no manifest in `dir`, and what the user probably meant.
fn not_a_checkpoint(dir: &Path) -> Error {
    let (why, mend) = match std::fs::metadata(dir) {
        Err(_) => ("it does not exist", "name a checkpoint directory".to_owned()),
        Ok(metadata) if !metadata.is_dir() => ("it is not a directory", "name a checkpoint directory".to_owned()),
        Ok(_) => match crate::store::Store::new(dir).latest() {
            Ok(Some(latest)) => {
                ("it is a directory of them", format!("name one, for example {}", latest.path.display()))
            }
            _ => ("it has no manifest.json", "name a directory that ckvmm committed".to_owned()),
        },
    };
    Error::NotACheckpoint { path: dir.to_path_buf(), why: why.to_owned(), mend }
}

#[cfg(test)]
mod tests;
