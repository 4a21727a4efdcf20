//! A disk in a qcow2 file and its backing files, for reading: what is on it is written out as a raw file.
//!
//! ```text
//! top.qcow2 ──backing file──▶ mid.qcow2 ──▶ base.raw      each opened here, by the name that the one before has
//!     └──────────── imago: which file has this cluster, and where ────────────┘
//! ```
//!
//! Invariants: only a file of which somebody has said that it is qcow2 is taken for one, be it in `vm.json` or in the
//! file that builds on it. No content decides: a guest could write the header of a qcow2 file into its raw disk, and
//! would be given whichever file of the host's it names as its backing file. All files are open for reading only.

mod header;
mod source;

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping};

pub(super) use self::header::MAGIC;
use self::header::{HEADER_MAX, Header};
use self::source::Source;
use super::base::{self, DISK_MAX, SECTOR_BYTES};
use super::terminal::say;
use crate::config::{ConfigError, DiskFormat, InputFile};
use crate::error::{Error, Result};

/// Most files in a chain.
const FILES_MAX: usize = 32;
/// Bytes that are read at once.
const PIECE_BYTES: u64 = 1 << 20;
/// How often somebody who waits is told how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// One file of a chain.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// `None`: it is raw, and the last.
    header: Option<Header>,
}

/// A file and all that it builds on, the top first.
#[derive(Debug)]
pub(super) struct Chain {
    /// The field that names it.
    field: String,
    pub(super) layers: Vec<Layer>,
}

impl Chain {
    /// Opens the qcow2 file that a field names, and its backing files.
    ///
    /// # Errors
    /// If one cannot be opened, is none that can be read here, or the chain does not end.
    pub(super) fn open(field: &str, path: &Path) -> Result<Self> {
        let mut chain = Chain { field: field.to_owned(), layers: Vec::new() };
        let mut next = Some((path.to_owned(), DiskFormat::Qcow2));
        while let Some((path, format)) = next {
            if chain.layers.len() == FILES_MAX {
                let what = format!("builds on more than {FILES_MAX} files");
                let mend = format!("make one of them all: qemu-img convert -O qcow2 {} FILE", chain.top().display());
                return Err(chain.error(chain.top(), what, mend).into());
            }
            let layer = chain.open_layer(path, format).map_err(|error| chain.because(error))?;
            let backing = layer.header.as_ref().and_then(|header| header.backing.as_ref());
            // What is relative is so to the directory of the file that says it.
            next = backing.map(|backing| (layer.path.with_file_name(&backing.name), backing.format));
            chain.layers.push(layer);
        }
        let bytes = chain.disk_bytes();
        if bytes == 0 || bytes > DISK_MAX || !bytes.is_multiple_of(SECTOR_BYTES) {
            let what = format!("has a disk of {bytes} bytes");
            let mend = format!("resize it (qemu-img resize) to 8 TiB at most and a multiple of {SECTOR_BYTES} bytes");
            return Err(chain.error(path, what, mend).into());
        }
        Ok(chain)
    }

    fn open_layer(&self, path: PathBuf, format: DiskFormat) -> Result<Layer, ConfigError> {
        let input = InputFile { field: &self.field, path: &path, max: DISK_MAX, block_device: true, write: false };
        let file = input.open()?;
        let header = match format {
            DiskFormat::Raw => None,
            DiskFormat::Qcow2 => {
                let mut first = Vec::new();
                (&file).take(HEADER_MAX).read_to_end(&mut first).map_err(|error| input.cannot_open(&error))?;
                Some(header::parse(&first).map_err(|unfit| self.error(&path, unfit.to_string(), unfit.mend(&path)))?)
            }
        };
        if self.layers.iter().any(|layer| id(&layer.file).is_some_and(|there| Some(there) == id(&file))) {
            let mend = format!("name another one in it: qemu-img rebase -u -b FILE -F FORMAT {}", path.display());
            return Err(self.error(&path, "is a backing file of itself".into(), mend));
        }
        Ok(Layer { path, file, header })
    }

    fn top(&self) -> &Path {
        self.layers.first().map_or(Path::new(""), |layer| &layer.path)
    }

    fn disk_bytes(&self) -> u64 {
        self.layers.first().and_then(|top| top.header.as_ref()).map_or(0, |header| header.disk_bytes)
    }

    /// Makes the raw file `to` with what is on the disk. What reads as zeros becomes a hole.
    ///
    /// # Errors
    /// If the chain is damaged or cannot be read, or `to` cannot be written.
    pub(super) fn write_out(&self, to: &Path) -> Result<()> {
        let bytes = self.disk_bytes();
        let image = self.image()?;
        ckvmm_snapshot::write_file(to, bytes, |put| {
            let mut buffer = vec![0; PIECE_BYTES as usize];
            let (mut at, mut said) = (0, Instant::now());
            while at < bytes {
                let (mapping, run) = image.get_mapping(at, bytes - at).map_err(|error| self.unreadable(&error))?;
                let end = match mapping {
                    Mapping::Zero { .. } | Mapping::Eof { .. } => at + run,
                    _ => {
                        let count = run.min(PIECE_BYTES);
                        let piece = &mut buffer[..count as usize];
                        image.read(&mut *piece, at).map_err(|error| self.unreadable(&error))?;
                        put(piece, at)?;
                        at + count
                    }
                };
                if end == at {
                    return Err(self.unreadable(&ErrorKind::UnexpectedEof.into()));
                }
                at = end;
                if said.elapsed() >= SAY_EVERY {
                    said = Instant::now();
                    say(&format!("{}: {}% is copied to {}", self.field, at * 100 / bytes, to.display()));
                }
            }
            Ok(())
        })
    }

    /// The chain as imago sees it, built from its end.
    fn image(&self) -> Result<FormatAccess<Source>> {
        let mut image = None;
        for layer in self.layers.iter().rev() {
            let opened = layer.source().and_then(|source| match layer.header {
                None => Ok(FormatAccess::new(Raw::open_image(source, false)?)),
                Some(_) => {
                    let mut qcow2 = Qcow2::<Source>::open_image(source, false)?;
                    qcow2.set_backing(image.take());
                    Ok(FormatAccess::new(qcow2))
                }
            });
            image = Some(opened.map_err(|error| self.unreadable(&error))?);
        }
        Ok(image.expect("a chain has a top"))
    }

    fn unreadable(&self, error: &std::io::Error) -> Error {
        let mend = format!("see what is wrong with it: qemu-img check {}", self.top().display());
        self.error(self.top(), format!("cannot be read: {error}"), mend).into()
    }

    fn error(&self, path: &Path, what: String, mend: String) -> ConfigError {
        ConfigError::field(&self.field, format!("{} {what}", path.display()), mend)
    }

    /// An error about the next file, which nobody has named but the one before.
    fn because(&self, mut error: ConfigError) -> ConfigError {
        if let (Some(layer), ConfigError::Field { what, .. }) = (self.layers.last(), &mut error) {
            what.push_str(&format!(" (the backing file of {})", layer.path.display()));
        }
        error
    }
}

impl Layer {
    fn source(&self) -> std::io::Result<Source> {
        let file = self.file.try_clone()?;
        let cluster_bytes = self.header.as_ref().map_or(1, |header| header.cluster_bytes);
        let bytes = base::length(&file)?;
        Ok(Source { file, path: self.path.clone(), bytes, cluster_bytes, helper: Default::default() })
    }
}

/// What tells a file from all others.
fn id(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests;
