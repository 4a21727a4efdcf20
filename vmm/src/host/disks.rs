//! Which file holds each disk: the one that is named, or a working copy in the state directory.
//!
//! ```text
//! disks/root.raw    the working copy: what the guest writes
//! disks/root.base   what it was made from: path, bytes, time of the last change of each file
//! ```
//!
//! Invariants: a working copy has its name only when it is whole and the note beside it is its own, and nothing here
//! ever replaces one that somebody did not ask to be replaced. The name is durable before the guest runs: what it
//! flushes is found under it after a power loss, and not under a name that is swept. It is raw whatever it was made
//! from, and never looked into to see what it is. A restore makes all copies anew; those of a guest that does not come
//! to be go again, while the state directory is locked.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use ckvmm_snapshot::{Image, LiveDisk, NotedCopy, rename_durably};
use uuid::Uuid;

use super::{
    base::{Base, field, lock, open},
    state_dir::StateDir,
};
use crate::{
    config::{ConfigError, DiskConfig, DiskFormat, DiskMode, VmConfig},
    error::{Error, Result},
    machine::board::DiskBackend,
};

/// A disk and the file that holds it.
#[derive(Debug)]
pub struct Disk {
    /// Id in the configuration.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    working_copy: bool,
    mode: DiskMode,
    captured: bool,
    /// The checkpoint that it was made from, and its length in bytes.
    made_from: Option<(Uuid, u64)>,
    /// Opened once: a checkpoint may capture it across a reset of the guest.
    live: OnceLock<Arc<LiveDisk>>,
    /// Its file, if it was made for a restore.
    new: Option<NewCopy>,
}

/// A copy that is made for a guest that is not there yet. Unless it is kept it goes with this, and what there is of it.
#[derive(Debug)]
struct NewCopy {
    path: PathBuf,
    kept: bool,
}

impl Drop for NewCopy {
    fn drop(&mut self) {
        if !self.kept {
            // One that stays is named by the next restore.
            let _ = [&self.path, &note(&self.path), &unfinished(&self.path)].map(fs::remove_file);
        }
    }
}

impl Disk {
    fn new(config: &DiskConfig, path: PathBuf) -> Self {
        Disk {
            id: config.id.to_string(),
            working_copy: path != config.path,
            path,
            mode: config.mode,
            captured: config.is_captured(),
            made_from: None,
            live: OnceLock::new(),
            new: None,
        }
    }

    /// The guest is there: its disk stays, however it ends.
    pub fn keep(&mut self) {
        self.new.iter_mut().for_each(|copy| copy.kept = true);
    }

    /// True if the file was made by ckvmm and outlives the VM.
    pub fn is_working_copy(&self) -> bool {
        self.working_copy
    }

    /// Opens the file for as long as this lives, under a lock: one writer, or many readers.
    ///
    /// # Errors
    /// If it cannot be used, or another VM uses it.
    pub fn open(&self) -> Result<DiskBackend> {
        let read_only = self.mode == DiskMode::ReadOnly;
        let disk = match self.live.get() {
            Some(live) => Arc::clone(live),
            None => {
                let file = open(&field(&self.id), &self.path, !read_only)?;
                lock(&self.id, &self.path, &file, read_only)?;
                let live = LiveDisk::new(file);
                if let Some((id, bytes)) = self.made_from {
                    live.is_as_in(id, bytes);
                }
                Arc::clone(self.live.get_or_init(|| Arc::new(live)))
            }
        };
        Ok(DiskBackend { id: self.id.clone(), disk, read_only, captured: self.captured })
    }
}

/// The disks of a VM that boots. A private disk and one in a qcow2 file get a working copy unless they have one;
/// `fresh` makes it anew.
///
/// # Errors
/// If a file cannot be used, a copy cannot be made, or what a copy was made from has changed since.
pub fn for_boot(config: &VmConfig, state: &StateDir, fresh: bool) -> Result<Vec<Disk>> {
    config.disks.iter().map(|disk| as_it_is(disk, state, fresh)).collect()
}

/// A disk with the contents that its file has now.
fn as_it_is(disk: &DiskConfig, state: &StateDir, fresh: bool) -> Result<Disk> {
    let base = Base::open(disk)?;
    let path = if needs_copy(disk) { working_copy(disk, &base, state, fresh)? } else { disk.path.clone() };
    Ok(Disk::new(disk, path))
}

/// Whether the guest does not use the file itself.
fn needs_copy(disk: &DiskConfig) -> bool {
    disk.mode == DiskMode::Private || disk.format == Some(DiskFormat::Qcow2)
}

/// The disks of a VM that is restored: copies of what `image` captured, so that the image stays as it is, and new ones of
/// other disks that need one. Each copy goes with its [`Disk`] until that is [kept](Disk::keep).
///
/// # Errors
/// If a copy cannot be made, or one is there already.
pub fn for_restore(config: &VmConfig, state: &StateDir, image: &Image) -> Result<Vec<Disk>> {
    let is_captured = |disk: &DiskConfig| image.disk_ids().any(|id| id == &*disk.id);
    let copy = |disk: &DiskConfig| (is_captured(disk) || needs_copy(disk)).then(|| state.disk(&disk.id));
    if let Some(path) = config.disks.iter().filter_map(copy).find(|path| path.symlink_metadata().is_ok()) {
        let what = format!("there is a guest's disk already, {}", path.display());
        return Err(ConfigError::field("--work", what, "give another directory, or move that disk away").into());
    }
    let disks = config.disks.iter().map(|disk| {
        let new = copy(disk).map(|path| NewCopy { path, kept: false });
        let made = if is_captured(disk) { as_it_was(disk, state, image) } else { as_it_is(disk, state, false) };
        Ok(Disk { new, ..made? })
    });
    disks.collect()
}

/// A disk with the contents that `image` captured.
fn as_it_was(disk: &DiskConfig, state: &StateDir, image: &Image) -> Result<Disk> {
    state.make_disks()?;
    let path = state.disk(&disk.id);
    let unfinished = unfinished(&path);
    remove_if_there(&unfinished)?;
    image.materialise_disk(&disk.id, &unfinished)?;
    rename_durably(&unfinished, &path)?;
    // Its file is the guest's own now, to be written if it was.
    let mode = if disk.mode == DiskMode::ReadOnly { DiskMode::ReadOnly } else { DiskMode::Private };
    let made_from = image.disk_bytes(&disk.id).map(|bytes| (image.manifest().id, bytes));
    Ok(Disk { mode, made_from, ..Disk::new(disk, path) })
}

fn working_copy(disk: &DiskConfig, base: &Base, state: &StateDir, fresh: bool) -> Result<PathBuf> {
    let path = state.disk(&disk.id);
    let note = note(&path);
    let origin = base.describe().map_err(Error::os("measuring a disk"))?;
    if !fresh && path.try_exists().map_err(Error::os("looking for a working copy"))? {
        let unchanged = fs::read_to_string(&note).is_ok_and(|noted| noted == origin);
        return if unchanged { Ok(path) } else { Err(changed(disk, &path).into()) };
    }
    base.lock(&disk.id)?;
    state.make_disks()?;
    let copy = NotedCopy { path: &path, unfinished: &unfinished(&path), note: &note };
    copy.make(|unfinished| base.write_out(unfinished), &origin)?;
    Ok(path)
}

/// What a working copy was made from.
fn note(path: &Path) -> PathBuf {
    path.with_extension("base")
}

/// What a disk is called until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("raw.tmp")
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(Error::Io { path: path.into(), what: "what a crash left cannot be removed", source })
        }
        _ => Ok(()),
    }
}

fn changed(disk: &DiskConfig, copy: &Path) -> ConfigError {
    let what =
        format!("{} has changed since the working copy {} was made from it", disk.path.display(), copy.display());
    let mend = "boot with --fresh to begin with the new one (the old copy is lost), or move the copy away";
    ConfigError::field(field(&disk.id), what, mend)
}
