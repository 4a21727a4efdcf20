//! The commit: how a staged image becomes a checkpoint.
//!
//! ```text
//! 1  fsync every file, then disks/ and network/, then the directory
//! 2  .manifest.json.tmp, fsync, rename to manifest.json, fsync the directory
//! 3  rename the directory to STORE/000042 unless that exists, fsync STORE
//! 4  STORE/latest, a hint
//! ```
//!
//! Invariants: a directory that has a `manifest.json` is whole and durable, whatever it is called, since 2 begins after
//! 1 is on the disk. A checkpoint exists under its name from the one atomic step of 3 on and not before, with its
//! manifest: what a crash leaves is called `.STAGING-…`. Nothing is overwritten.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::files;
use crate::limits::NAME_TRIES_MAX;
use crate::manifest::{Manifest, ManifestHead};
use crate::names;
use crate::staged::{StagedImage, Target, write_all};
use crate::store::Store;

impl StagedImage {
    /// Makes it a checkpoint: durable, under its name, all at once. Returns where it is.
    ///
    /// # Errors
    /// [`Error::Incomplete`] if a part was not written, [`Error::Exists`] if the name was taken meanwhile,
    /// [`Error::NoSpace`], [`Error::Io`]; then nothing of it is left.
    pub fn commit(mut self, head: ManifestHead) -> Result<PathBuf> {
        self.check_complete()?;
        self.unlink_what_was_not_captured()?;
        self.sync_contents()?;
        self.write_manifest(head)?;
        let path = self.publish()?;
        self.committed = true;
        self.disks.values_mut().for_each(|disk| disk.committed = true);
        if names::is_numbered(&path) {
            // Only a hint: a checkpoint that is durable has not failed for want of it.
            let _ = Store::new(&self.parent).point_latest_at(&path);
        }
        Ok(path)
    }

    fn check_complete(&self) -> Result<()> {
        let always = [names::STATE, names::MEMORY];
        let mut wanted = always.into_iter().chain(self.wanted_disks.iter().map(String::as_str));
        match wanted.find(|name| !self.written.contains_key(*name)) {
            Some(name) => Err(Error::Incomplete { what: name.to_owned() }),
            None => Ok(()),
        }
    }

    fn sync_contents(&self) -> Result<()> {
        for (name, written) in &self.written {
            files::sync(&written.file, &self.directory.join(name))?;
        }
        for inner in [names::DISKS, names::NETWORK].map(|name| self.directory.join(name)) {
            if inner.symlink_metadata().is_ok() {
                files::sync_dir(&inner)?;
            }
        }
        files::sync_dir(&self.directory)
    }

    fn write_manifest(&self, head: ManifestHead) -> Result<()> {
        let ManifestHead { name, lineage, parent, created, mode, config, host, pause_us, started } = head;
        let files = self.entries();
        let manifest = Manifest {
            format_version: Manifest::format_version(&files),
            ckvmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            id: self.id,
            lineage,
            parent,
            name,
            created,
            mode,
            config,
            host,
            memory_bytes: self.memory_bytes,
            pause_us,
            duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            files,
        };
        let temporary = self.directory.join(names::MANIFEST_TEMPORARY);
        let bytes = manifest.encode()?;
        let file = files::create(&temporary)?;
        write_all(&file, &temporary, &bytes)?;
        files::sync(&file, &temporary)?;
        files::rename(&temporary, &self.directory.join(names::MANIFEST))?;
        files::sync_dir(&self.directory)
    }

    /// The step in which the checkpoint comes to exist.
    fn publish(&mut self) -> Result<PathBuf> {
        let path = self.rename_to_target()?;
        if let Err(error) = files::sync_dir(&self.parent) {
            // Said to have failed, it must not be found later: back to the name that is swept.
            let _ = files::rename(&path, &self.directory);
            return Err(error);
        }
        self.directory.clone_from(&path);
        Ok(path)
    }

    fn rename_to_target(&self) -> Result<PathBuf> {
        let store = Store::new(&self.parent);
        for _ in 0..NAME_TRIES_MAX {
            let path = match &self.target {
                Target::Named(path) => path.clone(),
                Target::NextNumber => self.parent.join(store.next_name()?),
            };
            match (files::rename_new(&self.directory, &path), &self.target) {
                (Ok(()), _) => return Ok(path),
                // Another VM committed to the same store in this moment.
                (Err(Error::Exists { .. }), Target::NextNumber) => {}
                (Err(error), _) => return Err(error),
            }
        }
        Err(Error::Exists { path: self.parent.join(store.next_name()?) })
    }
}
