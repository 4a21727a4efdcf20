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
//! - A request is in flight until its used buffer is announced. So when [`InFlight`] is zero and nothing is popped, queue
//!   and file are at rest.
//! - What a flush has acknowledged is on stable storage; without the flush feature, what any write has acknowledged.

mod pool;
mod request;
mod space;
mod storage;
mod vectored;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use super::in_flight::{InFlight, Ticket};
use super::queue::{QueueError, VirtQueue};
use super::state::{self, DeviceState};
use super::{Active, DeviceEvent, Progress, VirtioDevice, read_space};
use crate::{Error, GuestRam, Result};
use pool::Pool;
use request::{Action, Request, Status};
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
    pub file: File,
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

/// What a disk is, whether the guest uses it or not.
struct Disk {
    id: String,
    geometry: Geometry,
    storage: Box<dyn Storage>,
    counters: Arc<BlkCounters>,
}

/// What a disk in use works with.
struct Attachment {
    ram: GuestRam,
    queue: Arc<VirtQueue>,
    features: u64,
}

/// A request on its way through the pool.
struct Job {
    attachment: Arc<Attachment>,
    request: Request,
    /// Last, so that it is returned when all else is done.
    _ticket: Ticket,
}

impl Blk {
    /// An idle disk, with its threads.
    ///
    /// # Errors
    /// The file's size cannot be had or is not a multiple of 512; no threads.
    pub fn new(config: BlkConfig) -> Result<Self> {
        let BlkConfig { id, mut file, read_only } = config;
        let failed = |what| move |id: &str, source| Error::Disk { id: id.to_owned(), what, source };
        let kind = file.metadata().map_err(|source| failed("examine it")(&id, source))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let source = std::io::Error::other("it is neither a file nor a block device");
            return Err(failed("use it")(&id, source));
        }
        // A block device says its size only so.
        let bytes = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0));
        let bytes = bytes.map_err(|source| failed("learn its size")(&id, source))?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::DiskSize { id, bytes });
        }
        let geometry = Geometry { sectors: bytes / SECTOR_BYTES, read_only };
        Self::with_storage(id, geometry, Box::new(FileStorage::new(file)))
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
            let (attachment, _ticket) = (attachment.clone(), self.in_flight.ticket());
            self.pool.push(Job { attachment, request, _ticket });
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

impl Disk {
    /// Carries out a request on a worker's thread and reports it to the guest.
    fn serve(&self, job: Job) {
        let Job { attachment, request, _ticket } = job;
        let Request { head, status_at, room, action } = request;
        let (status, written) = match action {
            Ok(action) => self.perform(&attachment, action),
            Err(status) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                (status, 0)
            }
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let reported = attachment.ram.write_obj(status as u8, status_at).map_err(QueueError::from);
        // §2.7.8.2: as many bytes as are known to be written from the front. The status byte is the last of all.
        let written = if written == room { written + 1 } else { written };
        let used = (head, u32::try_from(written).unwrap_or(u32::MAX));
        if let Err(error) = reported.and_then(|()| attachment.queue.complete(&[used])) {
            attachment.queue.broken(&error);
        }
    }

    /// Returns the status and how much was written to the guest.
    fn perform(&self, attachment: &Attachment, action: Action) -> (Status, u64) {
        let Attachment { ram, queue: _, features } = attachment;
        let changes = matches!(action, Action::Write { .. } | Action::Discard(_) | Action::WriteZeroes(_));
        let mut written = 0;
        let mut result = match action {
            Action::Read { offset, data } => {
                let (read, result) = self.storage.read(ram, &data, offset);
                self.counters.read_bytes.fetch_add(read, Ordering::Relaxed);
                written = read;
                result
            }
            Action::Write { offset, data } => {
                let (taken, result) = self.storage.write(ram, &data, offset);
                self.counters.written_bytes.fetch_add(taken, Ordering::Relaxed);
                result
            }
            Action::Flush => self.storage.flush(),
            Action::Discard(ranges) => ranges.into_iter().try_for_each(|range| self.storage.discard(range)),
            Action::WriteZeroes(ranges) => {
                ranges.into_iter().try_for_each(|(range, unmap)| self.storage.write_zeroes(range, unmap))
            }
            Action::Id(data) => match data.write(ram, &space::serial_number(&self.id)) {
                Ok(bytes) => {
                    written = bytes as u64;
                    Ok(())
                }
                Err(error) => Err(std::io::Error::other(error)),
            },
        };
        // §5.2.6.2: a driver that knows no flush takes every write for durable.
        if changes && features & 1 << VIRTIO_BLK_F_FLUSH == 0 {
            result = result.and_then(|()| self.storage.flush());
        }
        match result {
            Ok(()) => (Status::Ok, written),
            Err(error) => {
                let errors = self.counters.host_errors.fetch_add(1, Ordering::Relaxed) + 1;
                if errors.is_power_of_two() {
                    tracing::warn!("disk {}: the host failed {errors} requests: {error}", self.id);
                }
                (Status::IoError, written)
            }
        }
    }
}

#[cfg(test)]
mod tests;
