//! The header of a qcow2 file, as far as it decides whether the file can be a disk, and on which file it builds. Pure.
//!
//! Big-endian (QEMU's docs/interop/qcow2.rst):
//!
//! ```text
//!  0  4  "QFI\xfb"                      36  4  L1 entries, each for 1/8 cluster of clusters
//!  4  4  version, 2 or 3                72  8  features that must be known   (version 3)
//!  8  8  offset of the backing file's  100  4  length of the header          (version 3; 72 in version 2)
//! 16  4  name, or 0; its length
//! 20  4  log2 of the cluster            then extensions: type (4), length (4), data, 0 to 7 bytes;
//! 24  8  length of the disk             until type 0 or the end of the first cluster, and at most
//! 32  4  encryption                     up to the backing file's name in version 2
//! ```
//!
//! imago reads the tables and clusters. It is shown a file only if its header has passed here, because it takes what is
//! encrypted for data and what lies behind the L1 table for zeros, sees no extensions of version 2, and panics if a
//! feature name table ends in half an entry.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::config::DiskFormat;

/// How a qcow2 file begins.
pub(in crate::host) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Most bytes that a header has: it lies in the first cluster.
pub(super) const HEADER_MAX: u64 = 2 << 20;
/// log2 of the smallest and of the largest cluster (that QEMU makes).
const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;
/// Longest name of a backing file, in bytes.
const NAME_MAX: usize = 1023;

const HEADER_BYTES_V2: usize = 72;
const HEADER_BYTES_V3: usize = 104;

const BACKING_FORMAT: u32 = 0xe279_2aca;
const FEATURE_NAMES: u32 = 0x6803_f857;
/// Bytes of an entry in a feature name table.
const FEATURE_NAME_BYTES: usize = 48;

/// The features that must be known, by their bit.
const FEATURES: [Unfit; 5] = [
    Unfit::Unclean,
    Unfit::Corrupt,
    Unfit::Uses("an external data file"),
    Unfit::Uses("a compression other than zlib"),
    Unfit::Uses("extended L2 entries"),
];

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the disk.
    pub(super) disk_bytes: u64,
    /// Length of a cluster.
    pub(super) cluster_bytes: u64,
    /// What the file builds on.
    pub(super) backing: Option<Backing>,
}

/// A backing file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Backing {
    /// As the file names it: perhaps relative to its own directory.
    pub(super) name: String,
    pub(super) format: DiskFormat,
}

/// Why a file cannot be used, completing "FILE …".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("is no qcow2 file")]
    NoQcow2,
    #[error("is of qcow2 version {0}")]
    Version(u32),
    #[error("is encrypted")]
    Encrypted,
    #[error("uses {0}")]
    Uses(&'static str),
    #[error("was not closed by the program that wrote it")]
    Unclean,
    #[error("is marked as corrupt")]
    Corrupt,
    #[error("is damaged: {0}")]
    Damaged(&'static str),
    #[error("does not say what format its backing file {0:?} has")]
    NoFormat(String),
    #[error("has a backing file {0:?} of the format {1:?}")]
    Format(String, String),
    #[error("has a backing file {0:?}, which is no path")]
    NoPath(String),
}

impl Unfit {
    /// What to do.
    pub(super) fn mend(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Unfit::NoQcow2 => "leave \"format\" out if it is a raw image, else give the right file".into(),
            Unfit::Version(_) | Unfit::Encrypted | Unfit::Uses(_) => {
                format!("give what becomes of it: qemu-img convert -O raw {path} FILE")
            }
            Unfit::Unclean | Unfit::Corrupt => format!("mend it: qemu-img check -r all {path}"),
            Unfit::Damaged(_) => "fetch it again, or make it again".into(),
            Unfit::NoFormat(_) | Unfit::Format(..) | Unfit::NoPath(_) => {
                format!("say so in it: qemu-img rebase -u -b FILE -F raw (or qcow2) {path}")
            }
        }
    }
}

type Parsed<T> = Result<T, Unfit>;

/// Reads the header in the first bytes of a file, all or [`HEADER_MAX`].
pub(super) fn parse(first: &[u8]) -> Parsed<Header> {
    if !first.starts_with(&MAGIC) {
        return Err(Unfit::NoQcow2);
    }
    let version = u32_at(first, 4)?;
    if !(2..=3).contains(&version) {
        return Err(Unfit::Version(version));
    }
    let cluster_bits = u32_at(first, 20)?;
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err(Unfit::Damaged("its clusters have no length that there is"));
    }
    let cluster_bytes = 1u64 << cluster_bits;
    let first = &first[..first.len().min(cluster_bytes as usize)];
    if u32_at(first, 32)? != 0 {
        return Err(Unfit::Encrypted);
    }
    let mut header_bytes = HEADER_BYTES_V2;
    if version == 3 {
        features(u64_at(first, 72)?)?;
        header_bytes = u32_at(first, 100)? as usize;
        if header_bytes < HEADER_BYTES_V3 {
            return Err(Unfit::Damaged("its header is too short"));
        }
    }
    let disk_bytes = u64_at(first, 24)?;
    let reach = u128::from(u32_at(first, 36)?) << (2 * cluster_bits - 3);
    if reach < disk_bytes.into() {
        return Err(Unfit::Damaged("its L1 table is too short for its disk"));
    }
    let name = backing_name(first)?;
    let extensions_end = match &name {
        // Where there are none, nothing says so.
        Some((offset, _)) if version == 2 => *offset,
        _ => first.len(),
    };
    let format = backing_format(first, header_bytes, extensions_end)?;
    let backing = name.map(|(_, name)| backing(name, format)).transpose()?;
    Ok(Header { disk_bytes, cluster_bytes, backing })
}

fn features(bits: u64) -> Parsed<()> {
    match bits.trailing_zeros() as usize {
        64 => Ok(()),
        bit => Err(FEATURES.get(bit).cloned().unwrap_or(Unfit::Uses("what only a newer QEMU knows"))),
    }
}

/// Where the backing file's name is, and the name.
fn backing_name(first: &[u8]) -> Parsed<Option<(usize, String)>> {
    let outside = || Unfit::Damaged("the name of its backing file is not in its header");
    let (offset, length) = (u64_at(first, 8)?, u32_at(first, 16)? as usize);
    if offset == 0 {
        return Ok(None);
    }
    let offset = usize::try_from(offset).map_err(|_| outside())?;
    let end = offset.checked_add(length).filter(|_| length <= NAME_MAX).ok_or_else(outside)?;
    let name = first.get(offset..end).ok_or_else(outside)?;
    let name = str::from_utf8(name).map_err(|_| Unfit::Damaged("the name of its backing file is no text"))?;
    Ok(Some((offset, name.to_owned())))
}

/// What the extensions say of the backing file.
fn backing_format(first: &[u8], mut at: usize, end: usize) -> Parsed<Option<String>> {
    let too_long = Unfit::Damaged("its header extensions do not end");
    let mut format = None;
    while at + 8 <= end {
        let (kind, length) = (u32_at(first, at)?, u32_at(first, at + 4)? as usize);
        at += 8;
        let Some(data) = first.get(at..at + length) else { return Err(too_long) };
        match kind {
            0 => return Ok(format),
            BACKING_FORMAT => format = Some(String::from_utf8_lossy(data).into_owned()),
            FEATURE_NAMES if !length.is_multiple_of(FEATURE_NAME_BYTES) => {
                return Err(Unfit::Damaged("its feature name table ends in half an entry"));
            }
            _ => {}
        }
        at += length.next_multiple_of(8);
    }
    Ok(format)
}

fn backing(name: String, format: Option<String>) -> Parsed<Backing> {
    // QEMU would take what stands before such a colon for a protocol.
    let protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    if name.is_empty() || protocol || name.contains(char::is_control) {
        return Err(Unfit::NoPath(name));
    }
    match format.as_deref() {
        Some("raw") => Ok(Backing { name, format: DiskFormat::Raw }),
        Some("qcow2") => Ok(Backing { name, format: DiskFormat::Qcow2 }),
        Some(other) => Err(Unfit::Format(name, other.to_owned())),
        None => Err(Unfit::NoFormat(name)),
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Parsed<[u8; N]> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.copied().ok_or(Unfit::Damaged("it ends within its header"))
}

fn u32_at(bytes: &[u8], at: usize) -> Parsed<u32> {
    array_at(bytes, at).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Parsed<u64> {
    array_at(bytes, at).map(u64::from_be_bytes)
}
