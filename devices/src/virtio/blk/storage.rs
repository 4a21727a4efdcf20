//! Where a disk's bytes are: a trait, so that a layer can stand between the disk and its file, and the plain file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ckvmm_snapshot::LiveDisk;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::request::ByteRange;
use super::vectored;
use crate::GuestRam;
use crate::virtio::chain::Segments;

/// How much is written at once where the file system cannot zero a range itself, in bytes.
const ZEROES_AT_ONCE: usize = 1 << 18;
static ZEROES: [u8; ZEROES_AT_ONCE] = [0; ZEROES_AT_ONCE];

/// A disk's contents. Several threads call at once; ranges are whole sectors within the disk.
pub(super) trait Storage: Send + Sync {
    /// Reads into guest RAM. Returns how much was read from the front, and why not all.
    fn read(&self, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>);
    /// Writes from guest RAM. Returns how much was written from the front, and why not all.
    fn write(&self, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>);
    /// Returns when all that was written before is on stable storage.
    fn flush(&self) -> io::Result<()>;
    /// The guest needs this range no more: it may read anything there, or what it did before.
    fn discard(&self, range: ByteRange) -> io::Result<()>;
    /// The guest is to read zeroes in this range, and `unmap` says that it may lose its blocks.
    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()>;
}

/// A raw file or a block device, which a checkpoint may be capturing: every change is announced before it is made.
pub(super) struct FileStorage {
    disk: Arc<LiveDisk>,
}

impl FileStorage {
    pub(super) fn new(disk: Arc<LiveDisk>) -> Self {
        Self { disk }
    }

    /// `false`: neither the file system nor the device can do it.
    fn allocate(&self, flags: FallocateFlags, range: ByteRange) -> io::Result<bool> {
        let ByteRange { offset, bytes } = range;
        if bytes == 0 {
            return Ok(true);
        }
        loop {
            match fallocate(self.disk.file(), flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset as i64, bytes as i64)
            {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Storage for FileStorage {
    fn read(&self, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>) {
        vectored::read(self.disk.file(), ram, data, offset)
    }

    fn write(&self, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>) {
        self.disk.before_change(offset..offset + data.bytes());
        vectored::write(self.disk.file(), ram, data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.file().sync_data()
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.disk.before_change(range.offset..range.offset + range.bytes);
        // Where there are no holes, to keep the old data is a discard too.
        self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, range).map(|_| ())
    }

    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        self.disk.before_change(range.offset..range.offset + range.bytes);
        if unmap && self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, range)? {
            return Ok(());
        }
        if self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, range)? {
            return Ok(());
        }
        write_zeroes_by_hand(self.disk.file(), range)
    }
}

pub(super) fn write_zeroes_by_hand(file: &File, range: ByteRange) -> io::Result<()> {
    let ByteRange { mut offset, bytes } = range;
    let end = offset + bytes;
    while offset < end {
        let now = (end - offset).min(ZEROES_AT_ONCE as u64);
        file.write_all_at(&ZEROES[..now as usize], offset)?;
        offset += now;
    }
    Ok(())
}
