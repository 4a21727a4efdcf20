//! Virtio devices (virtio 1.2): what they have in common, and the life cycle that all of them follow.
//!
//! ```text
//!            activate (DRIVER_OK, or restore)
//!   idle ───────────────────────────────────────▶ active ──── process(event) ────┐
//!     ◀──────────────────────────────────────────   ▲                            │
//!            deactivate (reset), the exact inverse  └────────────────────────────┘
//! ```

pub(crate) mod blk;
pub(crate) mod chain;
pub(crate) mod checkpoint;
#[cfg(test)]
mod hostile;
pub(crate) mod in_flight;
pub(crate) mod interrupt;
pub(crate) mod mmio;
pub(crate) mod net;
pub(crate) mod queue;
pub(crate) mod registers;
pub(crate) mod rng;
#[cfg(test)]
pub(crate) mod specimen;
pub(crate) mod state;
pub(crate) mod subscriber;
#[cfg(test)]
pub(crate) mod testing;

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::{GuestRam, Result};
use in_flight::InFlight;
use interrupt::Interrupt;
use queue::{QueueError, VirtQueue};
use state::DeviceState;

/// What makes a device a disk, a network card or a source of random numbers, behind a transport that knows none of
/// these.
///
/// Contract: all calls come under the transport's lock, so none is concurrent with another. A device may have threads
/// of its own; they use the queues that [`Active`] gave them, for as long as a request of
/// [`VirtioDevice::in_flight`] lasts and no longer.
pub trait VirtioDevice: Send {
    /// The device's type (virtio 1.2 §5).
    fn kind(&self) -> u32;

    /// What it is called in messages, by what tells it from its like.
    fn name(&self) -> String;

    /// The features of its type that it offers. Those of the ring and of the transport are not its own.
    fn features(&self) -> u64;

    /// Whether a driver may accept just these of the offered features: some need others.
    fn accepts(&self, _features: u64) -> bool {
        true
    }

    /// The largest size of each of its queues, a power of two.
    fn queue_sizes(&self) -> &'static [u16];

    /// Reads its configuration space. Bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes its configuration space. Most have nothing there that a driver may write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts work: the driver is ready, or was when this state was saved.
    ///
    /// # Errors
    /// Its host side cannot do what the driver was promised; it is then still idle.
    fn activate(&mut self, active: Active) -> Result<()>;

    /// Ends work and forgets the queues: the exact inverse of `activate`. Requests in flight are waited for. An idle
    /// device stays idle.
    fn deactivate(&mut self);

    /// Does what an event asks for, bounded by what was in the queue when it came.
    ///
    /// # Errors
    /// The queue makes no sense; the transport asks the driver for a reset and calls no more until it comes.
    fn process(&mut self, event: DeviceEvent) -> Result<Progress, QueueError>;

    /// Descriptors of its own that wake it, watched edge-triggered; the position is the event's number.
    fn event_fds(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The requests that its own threads have not completed.
    fn in_flight(&self) -> InFlight {
        InFlight::default()
    }

    /// Its state, apart from transport and queues. It is idle or drained.
    ///
    /// # Errors
    /// It cannot be saved now.
    fn save(&self) -> Result<DeviceState>;

    /// Takes on a saved state. It is idle; if the state says that the driver was ready, `activate` follows.
    ///
    /// # Errors
    /// The state is that of a device of another shape, or of none; it is then as it was.
    fn restore(&mut self, state: DeviceState) -> Result<()>;
}

/// What a device works with from its activation on.
pub struct Active {
    /// Guest RAM.
    pub ram: GuestRam,
    /// Its queues; one that the driver has not set up is absent.
    pub queues: Vec<Option<Arc<VirtQueue>>>,
    /// The features that the driver has accepted.
    pub features: u64,
    /// How it interrupts the driver.
    pub interrupt: Arc<Interrupt>,
}

impl Active {
    /// Whether the driver has accepted a feature, by its bit number.
    pub fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// A queue, if the driver has set it up.
    pub fn queue(&self, index: usize) -> Option<&Arc<VirtQueue>> {
        self.queues.get(index).and_then(Option::as_ref)
    }
}

/// Why a device is asked to process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The driver has notified this queue.
    Queue(usize),
    /// This one of its own descriptors is ready.
    Own(usize),
}

/// How far a device came with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for the next.
    Idle,
    /// It has done its share and wants to be asked again, as if this queue were notified, after others had their turn.
    Again(usize),
}

/// Copies what lies at `offset` of a configuration space; what lies beyond it is zero.
pub(crate) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)) else { return };
    let bytes = rest.len().min(data.len());
    data[..bytes].copy_from_slice(&rest[..bytes]);
}
