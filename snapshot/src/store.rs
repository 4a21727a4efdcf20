//! A directory of checkpoints.
//!
//! ```text
//! STORE/000041/  STORE/000042/     numbered by ckvmm
//! STORE/before-upgrade/            named by a user
//! STORE/latest -> 000042           a hint: what is newest is found by looking
//! STORE/.STAGING-UUID/             being written (locked), being removed (locked), or left by a crash
//! ```
//!
//! Invariant: a staging directory is removed only under its lock, and whoever makes one holds its lock for as long as
//! it is wanted. A checkpoint is removed by giving it a staging name first, so it is whole or gone; then its manifest
//! goes, so that what is called so is whole too for as long as it has one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::files;
use crate::limits::STORE_ENTRIES_MAX;
use crate::manifest::Manifest;
use crate::names;
use crate::staged::StagedImage;
use crate::staging_dir;

/// A directory of checkpoints. It need not exist until something is put into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store(PathBuf);

/// A directory in a store that has a manifest.
#[derive(Debug)]
pub struct Entry {
    /// Where it is.
    pub path: PathBuf,
    /// Its number, if the store named it.
    pub number: Option<u64>,
    /// What it says about itself, or why it cannot be restored.
    pub manifest: Result<Manifest>,
}

impl Store {
    /// The store at `path`; looks at nothing.
    pub fn new(path: impl Into<PathBuf>) -> Store {
        Store(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All checkpoints, oldest first: those that users named by their time, then those with numbers by number.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read; a checkpoint that cannot be is an [`Entry`] with its error.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = self.names()?.into_iter().filter_map(|name| self.entry(&name)).collect();
        entries.sort_by_cached_key(|entry| {
            (entry.number, entry.manifest.as_ref().ok().map(|manifest| manifest.created), entry.path.clone())
        });
        Ok(entries)
    }

    /// The newest checkpoint: the one with the highest number, else the youngest of those that users named. It is not
    /// passed over for an older one if it is damaged. `None` in a store that is empty or does not exist.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub fn latest(&self) -> Result<Option<Entry>> {
        let names = match self.names() {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other?,
        };
        let mut numbers: Vec<u64> = numbers(&names).collect();
        numbers.sort_unstable();
        let newest = numbers.iter().rev().find_map(|number| self.entry(&OsString::from(names::numbered(*number))));
        match newest {
            Some(entry) => Ok(Some(entry)),
            None => Ok(self.list()?.pop()),
        }
    }

    /// The name for the next checkpoint: one more than the highest number in use, `000001` in an empty store.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub fn next_name(&self) -> Result<String> {
        let names = match self.names() {
            Err(error) if error.is_not_found() => Vec::new(),
            other => other?,
        };
        let highest = numbers(&names).max().unwrap_or(0);
        Ok(names::numbered(highest + 1))
    }

    /// Begins a checkpoint that gets the next number when it is committed, however many others are being made.
    ///
    /// # Errors
    /// As [`StagedImage::create`].
    pub fn stage(&self) -> Result<StagedImage> {
        StagedImage::create_in_store(&self.0)
    }

    /// Removes what crashes left, and returns the paths. What is in use is left alone.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Denied`], [`Error::ReadOnly`] at the first that cannot be removed.
    pub fn sweep_staging(&self) -> Result<Vec<PathBuf>> {
        let names = match self.names() {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        let mut removed = Vec::new();
        for name in names.iter().filter_map(|name| name.to_str()) {
            let path = self.0.join(name);
            let gone = if names::is_staging(name) && is_directory(&path) {
                sweep_directory(&path)
            } else if names::is_latest_temporary(name) && path.is_symlink() {
                files::remove(&path).map(|()| true)
            } else {
                Ok(false)
            };
            match gone {
                Ok(true) => removed.push(path),
                Ok(false) => {}
                // Another sweep, or its owner, was faster.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Removes the checkpoint called `name`. A VM that runs on it keeps its files until it ends.
    ///
    /// # Errors
    /// [`Error::NotACheckpoint`] if it has no manifest, [`Error::Io`], [`Error::Denied`], [`Error::ReadOnly`].
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.0.join(name);
        let plain = Path::new(name).file_name().is_some_and(|file_name| file_name == name);
        if !plain || path.is_symlink() || path.join(names::MANIFEST).symlink_metadata().is_err() {
            let mend = "name a checkpoint in this directory".to_owned();
            return Err(Error::NotACheckpoint { path, why: "it has no manifest.json".to_owned(), mend });
        }
        let doomed = self.0.join(names::staging(Uuid::new_v4()));
        let _lock = files::try_lock_dir(&path)?;
        files::rename_new(&path, &doomed)?;
        files::sync_dir(&self.0)?;
        staging_dir::remove(&doomed)
    }

    /// Of the numbered checkpoints that `is_meant` removes all but the newest `keep`, and returns where they were. Those
    /// that users named stay, and those that cannot be read, which count for nothing. What the others have of those that
    /// go stays with them.
    ///
    /// # Errors
    /// As [`Store::remove`], at the first that cannot be removed.
    pub fn prune(&self, keep: usize, is_meant: impl Fn(&Manifest) -> bool) -> Result<Vec<PathBuf>> {
        let counts = |entry: &Entry| entry.number.is_some() && entry.manifest.as_ref().is_ok_and(&is_meant);
        let mut old: Vec<PathBuf> = self.list()?.into_iter().filter(counts).map(|entry| entry.path).collect();
        old.truncate(old.len().saturating_sub(keep));
        for path in &old {
            self.remove(&path.file_name().unwrap_or_default().to_string_lossy())?;
        }
        Ok(old)
    }

    /// Replaces the link `latest`, unless something that is not a link has that name.
    pub(crate) fn point_latest_at(&self, checkpoint: &Path) -> Result<()> {
        let link = self.0.join(names::LATEST);
        let Some(target) = checkpoint.file_name() else {
            return Ok(());
        };
        if link.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink()) {
            return Ok(());
        }
        let temporary = self.0.join(names::latest_temporary());
        files::symlink(Path::new(target), &temporary)?;
        files::rename(&temporary, &link).inspect_err(|_| drop(files::remove(&temporary)))
    }

    /// The names of all that is in the directory.
    fn names(&self) -> Result<Vec<OsString>> {
        let failed = |source| Error::io(&self.0, "list the directory", source);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0).map_err(failed)?.take(STORE_ENTRIES_MAX) {
            names.push(entry.map_err(failed)?.file_name());
        }
        Ok(names)
    }

    /// The checkpoint called `name`; `None` if that is none.
    fn entry(&self, name: &OsString) -> Option<Entry> {
        let path = self.0.join(name);
        let visible = !name.to_string_lossy().starts_with('.') && !path.is_symlink();
        if !visible || path.join(names::MANIFEST).symlink_metadata().is_err() {
            return None;
        }
        let number = name.to_str().and_then(names::number);
        let manifest = Manifest::load(&path);
        Some(Entry { path, number, manifest })
    }
}

fn numbers(names: &[OsString]) -> impl Iterator<Item = u64> {
    names.iter().filter_map(|name| name.to_str().and_then(names::number))
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Removes a staging directory unless it is in use.
fn sweep_directory(path: &Path) -> Result<bool> {
    match files::try_lock_dir(path)? {
        Some(lock) if files::is_at(&lock, path) => staging_dir::remove(path).map(|()| true),
        _ => Ok(false),
    }
}
