//! What `job=disks` writes to its two disks, and in which order: one description for the guest and for whoever checks
//! its disks, as model.rs is for its memory.
//!
//! ```text
//! n:   a step in RAM ──► record n on disk 0, and it is done ──► the same on disk 1 ──► n + 1
//! ```
//!
//! Invariants:
//! - So at any instant, if RAM is at n: disk 0 has n - 1 or n as its newest record, disk 1 too, and disk 1 has n only if
//!   disk 0 has.
//! - Record n lies in the sector that `sector` says, and in no other: from the newest n follows what every sector holds.
//! - RAM is at FIRST plus its steps since the fill: a guest that boots goes on where its disks are.

use crate::model::{HEADER_ADDRESS, value};

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Words of a record, which is a sector: n first, and then what follows from n, the seed and the disk.
pub const WORDS: usize = SECTOR_BYTES / 8;
/// Guest physical address of the n that both disks had when the guest booted: in the header's page.
pub const FIRST_ADDRESS: u64 = HEADER_ADDRESS + 0x800;
/// Sectors between two records: an odd number, and more than a checkpoint captures at once, so that all of a disk is
/// written to in turn, and the next record lies elsewhere.
const STRIDE: u64 = 131;

/// Where record `n` lies on a disk of `sectors` sectors, a power of two.
pub fn sector(n: u64, sectors: u64) -> u64 {
    n.wrapping_mul(STRIDE) % sectors
}

/// Record `n` of a disk.
pub fn record(seed: u64, disk: u64, n: u64) -> [u64; WORDS] {
    core::array::from_fn(|word| match word {
        0 => n,
        _ => value(seed ^ (disk + 1) << 56, n * WORDS as u64 + word as u64),
    })
}
