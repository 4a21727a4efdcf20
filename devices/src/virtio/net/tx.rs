//! Frames of the guest: from the chains of the transmit queue to the link (virtio 1.2 §5.1.6.2).
//!
//! Invariant: every chain is used, whether its frame was sent or dropped; a network may lose frames, a queue no
//! buffers. A frame for which the link has no room stays in the queue.

use std::sync::atomic::Ordering;

use ckvmm_net::Link;
use ckvmm_net::link::{FRAME_BYTES_MAX, HEADER_BYTES};

use super::{FRAMES_PER_EVENT, NetCounters, TRANSMIT};
use crate::virtio::Active;
use crate::virtio::queue::QueueError;

/// Length of an Ethernet header: what is shorter is no frame.
const ETHERNET_HEADER_BYTES: usize = 14;

/// The transmitting half of a card.
pub(super) struct Transmitter {
    buffer: Box<[u8]>,
    /// The guest may have more, and nobody will say so again.
    waits: bool,
}

impl Default for Transmitter {
    fn default() -> Self {
        Self { buffer: vec![0; FRAME_BYTES_MAX].into(), waits: false }
    }
}

impl Transmitter {
    /// Whether it has stopped before the guest had no more frames.
    pub(super) fn waits(&self) -> bool {
        self.waits
    }

    /// Moves frames until the guest has no more, the link no room, or the event had its share; returns whether it is
    /// the last.
    pub(super) fn run(
        &mut self,
        active: &Active,
        link: &dyn Link,
        cable_up: bool,
        counters: &NetCounters,
    ) -> Result<bool, QueueError> {
        self.waits = false;
        let Some(queue) = active.queue(TRANSMIT) else { return Ok(false) };
        for _ in 0..FRAMES_PER_EVENT {
            if !link.may_write() {
                self.waits = true;
                return Ok(false);
            }
            let Some(chain) = queue.pop()? else { return Ok(false) };
            let bytes = chain.readable.bytes();
            let length = chain.readable.read(&active.ram, &mut self.buffer)?;
            let is_frame = bytes == length as u64 && length >= HEADER_BYTES + ETHERNET_HEADER_BYTES;
            // A TAP checks the header against the frame. One that it does not take now is lost, as on a wire.
            if cable_up && is_frame && link.write(&self.buffer[..length]).is_ok() {
                counters.transmitted_frames.fetch_add(1, Ordering::Relaxed);
                counters.transmitted_bytes.fetch_add((length - HEADER_BYTES) as u64, Ordering::Relaxed);
            } else {
                counters.transmit_drops.fetch_add(1, Ordering::Relaxed);
            }
            queue.complete(&[(chain.head, 0)])?;
        }
        self.waits = true;
        Ok(true)
    }
}
