//! virtio-blk (virtio 1.2 §5.2): a disk with one queue, kept in a raw file.
//!
//! ```text
//! I/O thread:  queue ─ pop ─▶ Request::parse ─▶ pool
//! worker:      storage (file ⇄ guest RAM) ─▶ status byte ─▶ used ring ─▶ interrupt ─▶ ticket returned
//! ```
//!
//! Invariants:
//! - Every chain taken becomes one request, and every request one used buffer: a refusal is a status in the guest's
//!   memory, not an absence.
//! - A request is in flight until its used buffer is announced. So when [`InFlight`] is zero and nothing is popped,
//!   queue and file are at rest.
//! - What a flush has acknowledged is on stable storage; without the flush feature, what any write has acknowledged.

mod disk;
mod pool;
mod request;
mod space;
mod storage;
mod vectored;

use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ckvmm_snapshot::LiveDisk;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::in_flight::InFlight;
use super::queue::QueueError;
use super::state::{self, DeviceState};
use super::{Active, DeviceEvent, Progress, VirtioDevice, read_space};
use crate::{Error, Result};
use disk::{Attachment, Disk, Job};
use pool::Pool;
use request::Request;
use space::{Geometry, SECTOR_BYTES};
use storage::{FileStorage, Storage};

const REQUESTS: usize = 0;
const QUEUE_SIZE: u16 = 256;
/// How many requests one event takes before other devices have their turn.
const REQUESTS_PER_EVENT: usize = QUEUE_SIZE as usize;
/// Threads of a disk: how many requests it works on at once.
const WORKERS: usize = 8;

/// What a disk is made of.
#[derive(Debug)]
pub struct BlkConfig {
    /// Names the disk in messages; its first 20 bytes are the serial number that the guest sees.
    pub id: String,
    /// A raw image, or a block device. Its size is that of the disk for good.
    pub disk: Arc<LiveDisk>,
    /// The guest may not write.
    pub read_only: bool,
}

/// What a disk has done since it was made. Not part of a checkpoint.
#[derive(Debug, Default)]
pub struct BlkCounters {
    /// Requests completed, refused ones included.
    pub requests: AtomicU64,
    /// Bytes read from the file.
    pub read_bytes: AtomicU64,
    /// Bytes written to the file.
    pub written_bytes: AtomicU64,
    /// Requests that the host could not carry out: the guest was told VIRTIO_BLK_S_IOERR.
    pub host_errors: AtomicU64,
    /// Requests that no disk could carry out: the guest was told VIRTIO_BLK_S_IOERR or VIRTIO_BLK_S_UNSUPP.
    pub refused: AtomicU64,
}

/// A saved disk. Its contents are the image's; this is its shape, to be met again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// The disk's id.
    pub id: String,
    /// Its size in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest was refused to write.
    pub read_only: bool,
}

/// A disk.
pub struct Blk {
    disk: Arc<Disk>,
    in_flight: InFlight,
    pool: Pool<Job>,
    active: Option<Arc<Attachment>>,
}

impl Blk {
    /// An idle disk, with its threads.
    ///
    /// # Errors
    /// The file's size cannot be had or is not a multiple of 512; no threads.
    pub fn new(config: BlkConfig) -> Result<Self> {
        let BlkConfig { id, disk, read_only } = config;
        let mut file = disk.file();
        let failed = |what, source| Error::Disk { id: id.clone(), what, source };
        let kind = file.metadata().map_err(|source| failed("examine it", source))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed("use it", io::Error::other("it is neither a file nor a block device")));
        }
        // A block device says its size only so.
        let bytes = file.seek(SeekFrom::End(0)).map_err(|source| failed("learn its size", source))?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::DiskSize { id, bytes });
        }
        let geometry = Geometry { sectors: bytes / SECTOR_BYTES, read_only };
        Self::with_storage(id, geometry, Box::new(FileStorage::new(disk)))
    }

    fn with_storage(id: String, geometry: Geometry, storage: Box<dyn Storage>) -> Result<Self> {
        let disk = Arc::new(Disk { id, geometry, storage, counters: Arc::default() });
        let worker = {
            let disk = disk.clone();
            move |job| disk.serve(job)
        };
        let pool = Pool::new(&format!("disk {}", disk.id.replace('\0', "")), WORKERS, worker)?;
        Ok(Self { disk, in_flight: InFlight::default(), pool, active: None })
    }

    /// What the disk has done: to be kept by whoever shows it.
    pub fn counters(&self) -> Arc<BlkCounters> {
        self.disk.counters.clone()
    }
}

impl VirtioDevice for Blk {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> String {
        format!("disk {}", self.disk.id)
    }

    fn features(&self) -> u64 {
        self.disk.geometry.features()
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.disk.geometry.space(), offset, data);
    }

    fn activate(&mut self, active: Active) -> Result<()> {
        let Some(queue) = active.queue(REQUESTS).cloned() else { return Ok(()) };
        self.active = Some(Arc::new(Attachment { ram: active.ram, queue, features: active.features }));
        Ok(())
    }

    fn deactivate(&mut self) {
        self.in_flight.wait();
        self.active = None;
    }

    fn process(&mut self, _event: DeviceEvent) -> Result<Progress, QueueError> {
        let Some(attachment) = &self.active else { return Ok(Progress::Idle) };
        for _ in 0..REQUESTS_PER_EVENT {
            let Some(chain) = attachment.queue.pop()? else { return Ok(Progress::Idle) };
            let request = Request::parse(&attachment.ram, chain, self.disk.geometry, attachment.features)?;
            let (ticket, attachment) = (self.in_flight.ticket(), attachment.clone());
            self.pool.push(Job { ticket, attachment, request });
        }
        Ok(Progress::Again(REQUESTS))
    }

    fn in_flight(&self) -> InFlight {
        self.in_flight.clone()
    }

    fn save(&self) -> Result<DeviceState> {
        let Self { disk, in_flight, pool: _, active: _ } = self;
        if in_flight.count() > 0 {
            return Err(Error::NotDrained { device: self.name() });
        }
        let Disk { id, geometry, storage: _, counters: _ } = &**disk;
        let &Geometry { sectors, read_only } = geometry;
        Ok(DeviceState::Blk(BlkState { id: id.clone(), sectors, read_only }))
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState::Blk(BlkState { id, sectors, read_only }) = state else {
            return Err(state.not_of(self.name(), state::BLK));
        };
        let Geometry { sectors: here, read_only: here_read_only } = self.disk.geometry;
        let mismatch = |field, saved: &dyn ToString, here: &dyn ToString| {
            Err(Error::mismatch(self.name(), field, saved.to_string(), here.to_string()))
        };
        if id != self.disk.id {
            return mismatch("id", &id, &self.disk.id);
        }
        if sectors != here {
            return mismatch("size in sectors", &sectors, &here);
        }
        if read_only != here_read_only {
            return mismatch("read-only mode", &read_only, &here_read_only);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
