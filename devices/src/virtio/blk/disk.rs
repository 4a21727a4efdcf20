//! A disk at work: one request from its list to its used buffer, on a worker's thread.
//!
//! Invariant: the status byte is written after the data and before the used buffer, and the ticket is returned after
//! the used buffer is announced.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::Bytes;

use super::BlkCounters;
use super::request::{Action, Request, Status};
use super::space::{Geometry, serial_number};
use super::storage::Storage;
use crate::GuestRam;
use crate::virtio::in_flight::Ticket;
use crate::virtio::queue::{QueueError, VirtQueue};

/// What a disk is, whether the guest uses it or not.
pub(super) struct Disk {
    pub(super) id: String,
    pub(super) geometry: Geometry,
    pub(super) storage: Box<dyn Storage>,
    pub(super) counters: Arc<BlkCounters>,
}

/// What a disk in use works with.
pub(super) struct Attachment {
    pub(super) ram: GuestRam,
    pub(super) queue: Arc<VirtQueue>,
    pub(super) features: u64,
}

/// A request on its way to a worker.
pub(super) struct Job {
    pub(super) ticket: Ticket,
    pub(super) attachment: Arc<Attachment>,
    pub(super) request: Request,
}

impl Disk {
    /// Carries out a request on a worker's thread and reports it to the guest.
    pub(super) fn serve(&self, job: Job) {
        // Bound first, so that it is returned when all else is done.
        let Job { ticket: _ticket, attachment, request } = job;
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
        let mut result: io::Result<()> = match action {
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
            Action::Id(data) => {
                let result = data.write(ram, &serial_number(&self.id));
                result.map(|bytes| written = bytes as u64).map_err(io::Error::other)
            }
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
