//! Frames for the guest: from the link into the buffers of the receive queue (virtio 1.2 §5.1.6.4).
//!
//! Invariants: a frame goes into one chain, or, with mergeable buffers, into as many as it needs, all filled but the
//! last and all used by one step; what the guest has not agreed to (missing checksums, unsegmented TCP) it does not
//! get.

use std::io;
use std::sync::atomic::Ordering;

use ckvmm_net::Link;
use ckvmm_net::link::{FRAME_BYTES_MAX, HEADER_BYTES};
use virtio_bindings::virtio_net::*;

use super::{FRAMES_PER_EVENT, NetCounters, RECEIVE};
use crate::GuestRam;
use crate::virtio::Active;
use crate::virtio::chain::Chain;
use crate::virtio::queue::{QueueError, VirtQueue};

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// The receiving half of a card.
pub(super) struct Receiver {
    buffer: Box<[u8]>,
    /// Length of the frame in `buffer` that waits for the guest; 0 if there is none.
    waiting: usize,
    /// It was said that the guest's driver does not take what comes: once, however often it begins anew.
    is_said: bool,
}

impl Default for Receiver {
    fn default() -> Self {
        Self { buffer: vec![0; FRAME_BYTES_MAX].into(), waiting: 0, is_said: false }
    }
}

/// Where a frame has got to.
enum Delivery {
    Done,
    /// It can never be: the guest's buffers are too small for it.
    Impossible,
    /// The guest will notify of more buffers.
    NoBuffers,
}

impl Receiver {
    /// Moves frames until the guest has no buffers, the link no frames, or the event had its share; returns whether it
    /// is the last.
    pub(super) fn run(
        &mut self,
        active: &Active,
        link: &dyn Link,
        cable_up: bool,
        counters: &NetCounters,
    ) -> Result<bool, QueueError> {
        let Some(queue) = active.queue(RECEIVE) else { return Ok(false) };
        for _ in 0..FRAMES_PER_EVENT {
            if self.waiting == 0 && (!queue.has_available()? || !self.read(link)) {
                return Ok(false);
            }
            let fit = is_fit(&self.buffer[..self.waiting], active.features);
            if cable_up && !fit && !std::mem::replace(&mut self.is_said, true) {
                let mend = "if that is a network of VMs, give its net.json \"offloads\": false";
                tracing::warn!("link {}: frames come that the guest's driver does not take; {mend}", link.name());
            }
            let delivery = if fit && cable_up { self.deliver(active, queue)? } else { Delivery::Impossible };
            match delivery {
                Delivery::Done => {
                    let bytes = (self.waiting - HEADER_BYTES) as u64;
                    counters.received_frames.fetch_add(1, Ordering::Relaxed);
                    counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
                }
                Delivery::Impossible => {
                    counters.receive_drops.fetch_add(1, Ordering::Relaxed);
                }
                Delivery::NoBuffers => return Ok(false),
            }
            self.waiting = 0;
        }
        Ok(true)
    }

    /// The frame that waits for the guest, with its header; empty if there is none.
    pub(super) fn waiting(&self) -> &[u8] {
        &self.buffer[..self.waiting]
    }

    /// Puts back a frame that [`Receiver::waiting`] has returned.
    pub(super) fn put_back(&mut self, frame: &[u8]) -> Result<(), String> {
        if frame.len() > FRAME_BYTES_MAX || (1..HEADER_BYTES).contains(&frame.len()) {
            return Err(format!("a frame of {} bytes", frame.len()));
        }
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.waiting = frame.len();
        Ok(())
    }

    /// Forgets the frame that waits: the driver that it was for is gone.
    pub(super) fn forget(&mut self) {
        self.waiting = 0;
    }

    /// Reads a frame, whatever it is worth; `false` if there is none.
    fn read(&mut self, link: &dyn Link) -> bool {
        match link.read(&mut self.buffer) {
            Ok(bytes) => {
                self.waiting = bytes;
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The descriptor is watched edge-triggered: this is said once per edge, and a link that is gone has one.
            Err(error) => tracing::warn!("link {}: cannot read: {error}", link.name()),
        }
        false
    }

    fn deliver(&mut self, active: &Active, queue: &VirtQueue) -> Result<Delivery, QueueError> {
        let frame = &mut self.buffer[..self.waiting];
        let most = if active.has(VIRTIO_NET_F_MRG_RXBUF) { queue.size() } else { 1 };
        let mut chains = Vec::new();
        let mut room = 0;
        while room < frame.len() as u64 {
            if chains.len() == usize::from(most) {
                queue.give_back(most);
                return Ok(Delivery::Impossible);
            }
            let Some(chain) = pop(queue, chains.len())? else { return Ok(Delivery::NoBuffers) };
            room += chain.writable.bytes();
            chains.push(chain);
        }
        // §5.1.6.4.1: 1 without mergeable buffers, too.
        frame[NUM_BUFFERS..HEADER_BYTES].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        let used = scatter(&active.ram, frame, &chains)?;
        queue.complete(&used)?;
        Ok(Delivery::Done)
    }
}

/// Takes a chain; without one, or with a broken one, the `taken` ones before it are given back.
fn pop(queue: &VirtQueue, taken: usize) -> Result<Option<Chain>, QueueError> {
    let chain = queue.pop();
    if !matches!(chain, Ok(Some(_))) {
        queue.give_back(taken as u16);
    }
    chain
}

/// Fills chains with a frame, one after the other; returns what is to be used.
fn scatter(ram: &GuestRam, frame: &[u8], chains: &[Chain]) -> Result<Vec<(u16, u32)>, QueueError> {
    let mut rest = frame;
    let used = chains.iter().map(|chain| {
        let written = chain.writable.write(ram, rest)?;
        rest = &rest[written..];
        Ok((chain.head, written as u32))
    });
    used.collect()
}

/// Whether a frame is one, and asks nothing of the guest that it has not agreed to.
fn is_fit(frame: &[u8], features: u64) -> bool {
    let has = |feature: u32| features & 1 << feature != 0;
    let Some(&[flags, segmentation]) = frame.get(..2) else { return false };
    let checksummed = u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || has(VIRTIO_NET_F_GUEST_CSUM);
    let segmented = match u32::from(segmentation) {
        VIRTIO_NET_HDR_GSO_NONE => true,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_GUEST_TSO4),
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_GUEST_TSO6),
        _ => false,
    };
    frame.len() > HEADER_BYTES && checksummed && segmented
}
