//! A request as the driver writes it (virtio 1.2 §5.2.6), checked and understood before anything is done.
//!
//! ```text
//! readable:  type u32 | reserved u32 | sector u64 | data of a write, or ranges
//! writable:  data of a read, or the serial number | status u8
//! ranges:    sector u64 | sectors u32 | flags u32, as many as there are
//! ```
//!
//! How these bytes are cut into descriptors is the driver's affair (§2.7.4.4).
//!
//! Invariants of a [`Request`]: its status byte is in guest RAM; the offset and length of an action are whole sectors
//! within the disk and within the limits that the disk has announced; a read-only disk has no action that changes it.

use virtio_bindings::virtio_blk::*;
use vm_memory::GuestAddress;

use super::space::{DATA_BYTES_MAX, DISCARD_SECTORS_MAX, Geometry, RANGES_MAX, SECTOR_BYTES, ZEROES_SECTORS_MAX};
use crate::GuestRam;
use crate::virtio::chain::{Chain, Segments};
use crate::virtio::queue::QueueError;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
/// The one flag of a range, of write-zeroes only.
const FLAG_UNMAP: u32 = 1;

/// What the guest reads in the status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// Bytes of the disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteRange {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Read {
        offset: u64,
        data: Segments,
    },
    Write {
        offset: u64,
        data: Segments,
    },
    Flush,
    Discard(Vec<ByteRange>),
    /// Each with whether it may be unmapped.
    WriteZeroes(Vec<(ByteRange, bool)>),
    Id(Segments),
}

/// A request that is understood, or whose refusal is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) head: u16,
    pub(super) status_at: GuestAddress,
    /// Writable bytes in front of the status byte.
    pub(super) room: u64,
    pub(super) action: Result<Action, Status>,
}

impl Request {
    /// Understands a chain. `features` are those that the driver has accepted.
    ///
    /// # Errors
    /// There is no place for the status: then nothing can be answered.
    pub(super) fn parse(ram: &GuestRam, chain: Chain, geometry: Geometry, features: u64) -> Result<Self, QueueError> {
        let Chain { head, readable, mut writable } = chain;
        let Some(room) = writable.bytes().checked_sub(1) else {
            return Err(QueueError::NoRoom { head, what: "the status byte" });
        };
        let Some(status) = writable.split_off(room).iter().next() else {
            return Err(QueueError::NoRoom { head, what: "the status byte" });
        };
        let action = parse_action(ram, readable, writable, geometry, features)?;
        Ok(Self { head, status_at: status.address, room, action })
    }
}

fn parse_action(
    ram: &GuestRam,
    mut readable: Segments,
    writable: Segments,
    geometry: Geometry,
    features: u64,
) -> Result<Result<Action, Status>, QueueError> {
    let mut header = [0; HEADER_BYTES];
    if readable.read(ram, &mut header)? < HEADER_BYTES {
        return Ok(Err(Status::IoError));
    }
    let data = readable.split_off(HEADER_BYTES as u64);
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    let has = |feature: u32| features & 1 << feature != 0;
    Ok(match kind {
        VIRTIO_BLK_T_IN => {
            whole_sectors(geometry, sector, &writable).map(|offset| Action::Read { offset, data: writable })
        }
        VIRTIO_BLK_T_OUT => writable_disk(geometry)
            .and_then(|()| whole_sectors(geometry, sector, &data))
            .map(|offset| Action::Write { offset, data }),
        VIRTIO_BLK_T_FLUSH => Ok(Action::Flush),
        VIRTIO_BLK_T_GET_ID => Ok(Action::Id(writable)),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if geometry.read_only => Err(Status::IoError),
        VIRTIO_BLK_T_DISCARD if has(VIRTIO_BLK_F_DISCARD) => {
            let ranges = ranges(ram, geometry, &data, DISCARD_SECTORS_MAX, 0)?;
            ranges.map(|ranges| Action::Discard(ranges.into_iter().map(|(range, _)| range).collect()))
        }
        VIRTIO_BLK_T_WRITE_ZEROES if has(VIRTIO_BLK_F_WRITE_ZEROES) => {
            ranges(ram, geometry, &data, ZEROES_SECTORS_MAX, FLAG_UNMAP)?.map(Action::WriteZeroes)
        }
        _ => Err(Status::Unsupported),
    })
}

fn writable_disk(geometry: Geometry) -> Result<(), Status> {
    if geometry.read_only { Err(Status::IoError) } else { Ok(()) }
}

/// The place in the file of data that are to be whole sectors of the disk.
fn whole_sectors(geometry: Geometry, sector: u64, data: &Segments) -> Result<u64, Status> {
    let bytes = data.bytes();
    if !bytes.is_multiple_of(SECTOR_BYTES) || bytes > DATA_BYTES_MAX {
        return Err(Status::IoError);
    }
    geometry.offset(sector, bytes / SECTOR_BYTES).ok_or(Status::IoError)
}

/// The ranges of a discard or write-zeroes request, each with its unmap flag; all good, or none.
type Ranges = Result<Vec<(ByteRange, bool)>, Status>;

fn ranges(
    ram: &GuestRam,
    geometry: Geometry,
    data: &Segments,
    sectors_max: u32,
    flags_allowed: u32,
) -> Result<Ranges, QueueError> {
    let mut bytes = [0; RANGES_MAX as usize * RANGE_BYTES];
    let fits = data.bytes() <= bytes.len() as u64 && data.bytes().is_multiple_of(RANGE_BYTES as u64);
    if !fits || data.bytes() == 0 {
        return Ok(Err(Status::IoError));
    }
    let length = data.read(ram, &mut bytes)?;
    let ranges = bytes[..length].chunks_exact(RANGE_BYTES).map(|range| {
        let (sector, sectors, flags) = (u64_at(range, 0), u32_at(range, 8), u32_at(range, 12));
        if flags & !flags_allowed != 0 {
            return Err(Status::Unsupported);
        }
        let offset = geometry.offset(sector, sectors.into()).filter(|_| sectors <= sectors_max);
        let offset = offset.ok_or(Status::IoError)?;
        Ok((ByteRange { offset, bytes: u64::from(sectors) * SECTOR_BYTES }, flags & FLAG_UNMAP != 0))
    });
    Ok(ranges.collect())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(bytes, offset)) | u64::from(u32_at(bytes, offset + 4)) << 32
}

#[cfg(test)]
mod tests;
