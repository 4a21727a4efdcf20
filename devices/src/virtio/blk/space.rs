//! What a disk tells its driver: features, configuration space (virtio 1.2 §5.2.4), and the limits that it sets.

use virtio_bindings::virtio_blk::*;

/// The unit of addresses and lengths, in bytes. Always this, whatever the block size (§5.2.4).
pub(super) const SECTOR_BYTES: u64 = 512;
/// How many data segments a request may have: two less than half a queue, so that two requests fit it even without
/// indirect descriptors.
pub(super) const SEGMENTS_MAX: u32 = 126;
/// How long a data segment may be, in bytes.
pub(super) const SEGMENT_BYTES_MAX: u32 = 1 << 20;
/// How long a request's data may be, in bytes: what follows from the two above.
pub(super) const DATA_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// How many ranges a discard or write-zeroes request may have.
pub(super) const RANGES_MAX: u32 = 16;
/// How long a range to discard may be: 1 GiB. The host only drops extents.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// How long a range to zero may be: 64 MiB. The host may have to write it.
pub(super) const ZEROES_SECTORS_MAX: u32 = 1 << 17;
/// What discards had better be aligned to: the block of most host file systems, 4 KiB.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;
/// Length of the serial number that the guest reads (§5.2.6, VIRTIO_BLK_T_GET_ID).
const SERIAL_BYTES: usize = 20;
/// Length of `struct virtio_blk_config` up to and with its write-zeroes fields.
const SPACE_BYTES: usize = 60;

/// What of a disk never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
}

impl Geometry {
    pub(super) fn features(self) -> u64 {
        let always = [VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH];
        let by_mode: &[u32] = match self.read_only {
            true => &[VIRTIO_BLK_F_RO],
            false => &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES],
        };
        always.iter().chain(by_mode).map(|&bit| 1 << bit).sum()
    }

    /// `struct virtio_blk_config`; fields of features that are not offered are zero.
    pub(super) fn space(self) -> [u8; SPACE_BYTES] {
        let mut space = [0; SPACE_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        if !self.read_only {
            put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
            put(40, &RANGES_MAX.to_le_bytes());
            put(44, &DISCARD_ALIGNMENT_SECTORS.to_le_bytes());
            put(48, &ZEROES_SECTORS_MAX.to_le_bytes());
            put(52, &RANGES_MAX.to_le_bytes());
            put(56, &[1]); // write_zeroes_may_unmap
        }
        space
    }

    /// The place in the file of `sectors` from `sector` on, in bytes, if the disk has them.
    pub(super) fn offset(self, sector: u64, sectors: u64) -> Option<u64> {
        let end = sector.checked_add(sectors)?;
        (end <= self.sectors).then(|| sector * SECTOR_BYTES)
    }
}

/// A disk's id as its serial number: as much as there is room for, then zeroes.
pub(super) fn serial_number(id: &str) -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    serial.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
    serial
}
