//! What a disk is made from: the files that `vm.json` names for it, and what they are.
//!
//! Invariant: what they are is what somebody has said. A raw disk that looks like a qcow2 file is neither until he has.

use std::{
    fs::{File, TryLockError},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use ckvmm_snapshot::copy_file;

use super::qcow2::{self, Chain};
use crate::{
    config::{ConfigError, DiskConfig, DiskFormat, InputFile},
    error::{Error, Result},
};

/// Largest disk: 8 TiB, far from where byte offsets end.
pub(super) const DISK_MAX: u64 = 8 << 40;
/// A disk is made of sectors (virtio 1.2 §5.2).
pub(super) const SECTOR_BYTES: u64 = 512;

/// What a disk is made from, open for reading.
#[derive(Debug)]
pub(super) enum Base {
    /// A raw image or a block device.
    Raw(PathBuf, File),
    /// A qcow2 file with its backing files.
    Qcow2(Chain),
}

impl Base {
    /// Opens what a disk names.
    ///
    /// # Errors
    /// If a file cannot be used, or nobody has said what it is and it may be a qcow2 file.
    pub(super) fn open(disk: &DiskConfig) -> Result<Self> {
        let field = field(&disk.id);
        if disk.format == Some(DiskFormat::Qcow2) {
            return Chain::open(&field, &disk.path).map(Base::Qcow2);
        }
        let file = any(&field, &disk.path, false)?;
        if disk.format.is_none() {
            sure_to_be_raw(disk, &file)?;
        }
        whole_sectors(&field, &disk.path, &file)?;
        Ok(Base::Raw(disk.path.clone(), file))
    }

    /// The files, each with what tells it from others that have its name at another time.
    pub(super) fn describe(&self) -> io::Result<String> {
        match self {
            Base::Raw(path, file) => Ok(described(path, file)? + "\n"),
            Base::Qcow2(chain) => {
                let layers = chain.layers.iter();
                layers.map(|layer| Ok(described(&layer.path, &layer.file)? + ", of a qcow2 chain\n")).collect()
            }
        }
    }

    /// Sees that no VM writes to a file for as long as this lives.
    pub(super) fn lock(&self, id: &str) -> Result<()> {
        match self {
            Base::Raw(path, file) => lock(id, path, file, true),
            Base::Qcow2(chain) => chain.layers.iter().try_for_each(|layer| lock(id, &layer.path, &layer.file, true)),
        }
    }

    /// Makes the raw file `to` with what is on the disk.
    pub(super) fn write_out(&self, to: &Path) -> Result<()> {
        match self {
            Base::Raw(path, file) => Ok(copy_file(file, path, to).map(drop)?),
            Base::Qcow2(chain) => chain.write_out(to),
        }
    }
}

fn described(path: &Path, file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let (bytes, seconds, nanoseconds) = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    Ok(format!("{}\n{bytes} bytes, changed {seconds}.{nanoseconds:09}", path.display()))
}

fn sure_to_be_raw(disk: &DiskConfig, file: &File) -> Result<()> {
    let mut magic = [0; qcow2::MAGIC.len()];
    file.read_at(&mut magic, 0).map_err(Error::os("reading a disk"))?;
    if magic != qcow2::MAGIC {
        return Ok(());
    }
    let what = format!("{} begins as a qcow2 file does, and nothing says that it is one", disk.path.display());
    let mend = "add \"format\": \"qcow2\" if it was made as one, \"raw\" if a guest wrote that to its disk";
    Err(ConfigError::field(field(&disk.id), what, mend).into())
}

/// Opens a raw disk.
pub(super) fn open(field: &str, path: &Path, write: bool) -> Result<File> {
    let file = any(field, path, write)?;
    whole_sectors(field, path, &file)?;
    Ok(file)
}

fn any(field: &str, path: &Path, write: bool) -> Result<File, ConfigError> {
    InputFile { field, path, max: DISK_MAX, block_device: true, write }.open()
}

fn whole_sectors(field: &str, path: &Path, file: &File) -> Result<()> {
    let bytes = file.metadata().map_err(Error::os("measuring a disk"))?.len();
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        let what = format!("{} is {bytes} bytes long, not a multiple of {SECTOR_BYTES}", path.display());
        let mend = format!("fetch it again if it is cut off, else: truncate --size=%{SECTOR_BYTES} {}", path.display());
        return Err(ConfigError::field(field, what, mend).into());
    }
    Ok(())
}

/// Length of a file or block device.
pub(super) fn length(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Locks a disk for as long as the file is open: for one writer, or for many readers.
pub(super) fn lock(id: &str, path: &Path, file: &File, shared: bool) -> Result<()> {
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let what = format!("{} is in use by another VM", path.display());
            Err(ConfigError::field(field(id), what, "stop that one, or use \"mode\": \"private\"").into())
        }
        Err(TryLockError::Error(source)) => Err(Error::Io { path: path.into(), what: "cannot be locked", source }),
    }
}

/// The field that names a disk's file.
pub(super) fn field(id: &str) -> String {
    format!("disks.{id}.path")
}
