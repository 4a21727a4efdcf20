//! A virtqueue in use (split ring, virtio 1.2 §2.7): chains come out of it, used buffers go back into it.
//!
//! Taking chains is virtio-queue's. The used ring is written here, for three things that virtio-queue does not do: all
//! buffers of one packet become used by one step of the index (§5.1.6.4.1: a driver that sees the first must see
//! all), the driver's VRING_AVAIL_F_NO_INTERRUPT is honoured, and between calls no half of a decision is left over
//! that a checkpoint would have to save (its `num_added`).
//!
//! Invariants: outside of this file's lock every used buffer has been announced or found not to need it. The number of
//! chains taken and not yet used is `next_avail - next_used`; when it is zero, the two positions are all there is to
//! save.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::chain::Chain;
use super::interrupt::Interrupt;
use crate::GuestRam;
use crate::sync::lock;

/// Bytes in front of a ring's entries: flags and index.
const RING_HEADER_BYTES: u64 = 4;
/// Bytes of an entry of the available ring.
const AVAIL_BYTES: u64 = 2;
/// Bytes of an entry of the used ring.
const USED_BYTES: u64 = 8;
/// Offset of the index in a ring.
const INDEX_OFFSET: u64 = 2;

/// Where a queue lies in guest RAM, as the driver set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) max_size: u16,
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    pub(crate) event_idx: bool,
}

/// How far a queue has come: what of it is not in guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
}

/// One virtqueue between a device (its threads too) and its driver.
pub struct VirtQueue {
    ram: GuestRam,
    interrupt: Arc<Interrupt>,
    ring: Mutex<Ring>,
}

struct Ring {
    /// virtio-queue's half: the available ring and `next_avail`.
    queue: Queue,
    next_used: Wrapping<u16>,
    /// The driver has disabled the queue (QueueReady = 0): it is not touched any more.
    stopped: bool,
}

impl VirtQueue {
    /// A queue at work, if what the driver says of it can be.
    pub(crate) fn new(
        ram: GuestRam,
        interrupt: Arc<Interrupt>,
        layout: Layout,
        at: Positions,
    ) -> Result<Self, QueueError> {
        let Layout { max_size, size, descriptors, available, used, event_idx } = layout;
        let mut queue = Queue::new(max_size)?;
        queue.try_set_size(size)?;
        queue.try_set_desc_table_address(GuestAddress(descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(available))?;
        queue.try_set_used_ring_address(GuestAddress(used))?;
        queue.set_event_idx(event_idx);
        queue.set_next_avail(at.next_avail);
        queue.set_ready(true);
        // virtio-queue takes an available ring at 0 for one that was never set up.
        if available == 0 || !queue.is_valid(&ram) {
            return Err(QueueError::NotInRam { descriptors, available, used });
        }
        let ring = Ring { queue, next_used: Wrapping(at.next_used), stopped: false };
        Ok(Self { ram, interrupt, ring: Mutex::new(ring) })
    }

    /// Takes the next chain. `None`: there is none now, and the driver will notify of the next.
    pub(crate) fn pop(&self) -> Result<Option<Chain>, QueueError> {
        let mut ring = lock(&self.ring);
        if ring.stopped || !ring.has_available(&self.ram)? {
            return Ok(None);
        }
        let size = ring.queue.size();
        if ring.in_flight() >= size {
            return Err(QueueError::TooMany { size });
        }
        let Some(chain) = ring.queue.iter(&self.ram)?.next() else { return Ok(None) };
        let chain = Chain::read(&self.ram, chain, size);
        if chain.is_err() {
            // A broken chain was never taken: positions stay those of a drained queue.
            ring.queue.go_to_previous_position();
        }
        chain.map(Some)
    }

    /// Gives the last `count` chains taken back, as if they had not been. Only for a queue with one user.
    pub(crate) fn give_back(&self, count: u16) {
        let mut ring = lock(&self.ring);
        for _ in 0..count.min(ring.in_flight()) {
            ring.queue.go_to_previous_position();
        }
    }

    /// Whether there is a chain to take. If not, the driver will notify of the next.
    pub(crate) fn has_available(&self) -> Result<bool, QueueError> {
        let mut ring = lock(&self.ring);
        Ok(!ring.stopped && ring.has_available(&self.ram)?)
    }

    /// The queue's size in entries, as the driver has chosen it.
    pub(crate) fn size(&self) -> u16 {
        lock(&self.ring).queue.size()
    }

    /// Puts buffers into the used ring, all visible by one step, and interrupts the driver if it wants to hear of it.
    /// Each is the head of a chain and the number of bytes known to be written from its front.
    pub(crate) fn complete(&self, used: &[(u16, u32)]) -> Result<(), QueueError> {
        let mut ring = lock(&self.ring);
        if ring.stopped {
            return Ok(());
        }
        let wanted = ring.publish(&self.ram, used)?;
        drop(ring);
        if wanted {
            self.interrupt.used_buffer();
        }
        Ok(())
    }

    /// A device's own thread has found the queue unusable: the driver is asked for a reset.
    pub(crate) fn broken(&self, error: &QueueError) {
        if !self.interrupt.needs_reset() {
            tracing::warn!("a queue needs a reset by the guest: {error}");
        }
        self.interrupt.request_reset();
    }

    /// Never touches the rings again: the driver has taken the queue back.
    pub(crate) fn stop(&self) {
        lock(&self.ring).stopped = true;
    }

    /// How far the queue has come. The positions are equal if and only if nothing is in flight.
    pub(crate) fn positions(&self) -> Positions {
        let ring = lock(&self.ring);
        Positions { next_avail: ring.queue.next_avail(), next_used: ring.next_used.0 }
    }
}

impl Ring {
    fn in_flight(&self) -> u16 {
        (Wrapping(self.queue.next_avail()) - self.next_used).0
    }

    fn has_available(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let available = |queue: &Queue| queue.avail_idx(ram, Ordering::Acquire);
        if available(&self.queue)?.0 != self.queue.next_avail() {
            return Ok(true);
        }
        // Ask for a notification first and look again: one that came in between has not been notified.
        Ok(self.queue.enable_notification(ram)?)
    }

    /// Writes used elements, then the index. Returns whether the driver wants an interrupt.
    fn publish(&mut self, ram: &GuestRam, used: &[(u16, u32)]) -> Result<bool, QueueError> {
        let size = self.queue.size();
        let base = self.queue.used_ring();
        let before = self.next_used;
        for (position, &(head, written)) in used.iter().enumerate() {
            let slot = (before + Wrapping(position as u16)).0 % size;
            let element = u64::from(head) | u64::from(written) << 32;
            let at = base + RING_HEADER_BYTES + u64::from(slot) * USED_BYTES;
            ram.write_obj(element.to_le(), GuestAddress(at))?;
        }
        self.next_used = before + Wrapping(used.len() as u16);
        ram.store(self.next_used.0.to_le(), GuestAddress(base + INDEX_OFFSET), Ordering::Release)?;
        // The driver writes used_event and then looks at the index; we wrote the index and now look at used_event.
        fence(Ordering::SeqCst);
        self.wants_interrupt(ram, before)
    }

    /// §2.7.7.2: whether the step from `before` to here passes what the driver waits for.
    fn wants_interrupt(&self, ram: &GuestRam, before: Wrapping<u16>) -> Result<bool, QueueError> {
        let available = self.queue.avail_ring();
        if !self.queue.event_idx_enabled() {
            let flags = u16::from_le(ram.load(GuestAddress(available), Ordering::Relaxed)?);
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let at = available + RING_HEADER_BYTES + AVAIL_BYTES * u64::from(self.queue.size());
        let event = Wrapping(u16::from_le(ram.load(GuestAddress(at), Ordering::Relaxed)?));
        Ok(self.next_used - event - Wrapping(1) < self.next_used - before)
    }
}

/// Why a queue makes no sense. It is the driver's fault: the device asks for a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings are not all in RAM.
    #[error("descriptor table {descriptors:#x}, available ring {available:#x} or used ring {used:#x} is not in RAM")]
    NotInRam {
        /// Address of the descriptor table.
        descriptors: u64,
        /// Address of the available ring.
        available: u64,
        /// Address of the used ring.
        used: u64,
    },
    /// More chains are in flight than the queue has descriptors.
    #[error("more than {size} chains are in flight")]
    TooMany {
        /// The queue's size.
        size: u16,
    },
    /// The available ring names a descriptor that is none.
    #[error("chain {head} does not begin in a table of {size}")]
    Head {
        /// The chain's head.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain is longer than the queue.
    #[error("chain {head} has more than {size} descriptors")]
    TooLong {
        /// The chain's head.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain does not come to its end.
    #[error("chain {head} does not end")]
    Cut {
        /// The chain's head.
        head: u16,
    },
    /// A readable descriptor follows a writable one.
    #[error("chain {head} has a readable descriptor after a writable one")]
    Order {
        /// The chain's head.
        head: u16,
    },
    /// A buffer is not in RAM.
    #[error("chain {head} has {bytes} bytes at {address:#x}, which is not RAM")]
    OutsideRam {
        /// The chain's head.
        head: u16,
        /// The buffer's guest address.
        address: u64,
        /// Its length.
        bytes: usize,
    },
    /// A chain lacks what every request of this device has.
    #[error("chain {head} has no room for {what}")]
    NoRoom {
        /// The chain's head.
        head: u16,
        /// What is missing.
        what: &'static str,
    },
    /// virtio-queue's own checks.
    #[error(transparent)]
    Ring(#[from] virtio_queue::Error),
    /// An access to guest RAM.
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
}

#[cfg(test)]
mod tests;
