//! virtio-net (virtio 1.2 §5.1): a network card with one pair of queues, and a cable to a [`Link`].
//!
//! ```text
//! receive:   link ─ read ─▶ frame ─▶ buffers of queue 0      [rx]
//! transmit:  chain of queue 1 ─▶ frame ─ write ─▶ link      [tx]
//! ```
//!
//! Invariants:
//! - All work is done within `process`: nothing is ever in flight.
//! - A frame is read from the link only when the guest has a buffer, and stays the card's until it is in one: a frame
//!   that needs more buffers than there are is part of the saved state, not lost.
//! - A frame is copied out of guest RAM before anything looks at it, so what is checked is what is sent.

mod cable;
mod rx;
mod space;
mod tx;

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ckvmm_net::{Link, Offloads};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

use super::queue::QueueError;
use super::state::{self, DeviceState};
use super::{Active, DeviceEvent, Progress, VirtioDevice, read_space};
use crate::{Error, Result};
pub use cable::Cable;
use rx::Receiver;
use space::Space;
use tx::Transmitter;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZES: &[u16] = &[256, 256];
/// How many frames one event moves, each way, before other devices have their turn.
const FRAMES_PER_EVENT: usize = 256;

/// What a network card is made of.
pub struct NetConfig {
    /// What its cable leads to.
    pub link: Box<dyn Link>,
    /// The card's address.
    pub mac: [u8; 6],
}

/// What a card has done since it was made. Not part of a checkpoint.
#[derive(Debug, Default)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub received_frames: AtomicU64,
    /// Bytes given to the guest, without headers.
    pub received_bytes: AtomicU64,
    /// Frames for the guest that it could not be given: link down, buffers too small, offloads it knows nothing of.
    pub receive_drops: AtomicU64,
    /// Frames given to the link.
    pub transmitted_frames: AtomicU64,
    /// Bytes given to the link, without headers.
    pub transmitted_bytes: AtomicU64,
    /// Frames of the guest that the link did not take: link down, malformed, too much at once.
    pub transmit_drops: AtomicU64,
}

/// A saved network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Its address.
    pub mac: [u8; 6],
    /// The MTU that the driver was told.
    pub mtu: u16,
    /// Whether the link is up.
    pub link_up: bool,
    /// A frame with its header that was read from the link and waits for buffers; empty if there is none.
    #[serde(with = "serde_bytes")]
    pub frame: Vec<u8>,
}

/// A network card.
pub struct Net {
    link: Box<dyn Link>,
    mac: [u8; 6],
    mtu: u16,
    cable: Cable,
    receiver: Receiver,
    transmitter: Transmitter,
    counters: Arc<NetCounters>,
    active: Option<Active>,
}

impl Net {
    /// An idle card, its link up.
    ///
    /// # Errors
    /// The link does not say its MTU.
    pub fn new(config: NetConfig) -> Result<Self> {
        let NetConfig { link, mac } = config;
        let mtu = link.mtu()?;
        Ok(Self {
            link,
            mac,
            mtu,
            cable: Cable::new(),
            receiver: Receiver::default(),
            transmitter: Transmitter::default(),
            counters: Arc::default(),
            active: None,
        })
    }

    /// What the card has done: to be kept by whoever shows it.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.counters.clone()
    }

    /// The card's cable: to be kept by whoever plugs it.
    pub fn cable(&self) -> Cable {
        self.cable.clone()
    }

    fn space(&self) -> Space {
        Space { mac: self.mac, mtu: self.mtu, link_up: self.cable.is_plugged() }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> String {
        format!("network card on {}", self.link.name())
    }

    fn features(&self) -> u64 {
        space::features(self.link.offers_offloads())
    }

    fn accepts(&self, features: u64) -> bool {
        space::go_together(features)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.space().bytes(), offset, data);
    }

    fn activate(&mut self, active: Active) -> Result<()> {
        self.link.set_offloads(Offloads {
            checksum: active.has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: active.has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: active.has(VIRTIO_NET_F_GUEST_TSO6),
        })?;
        self.cable.attach(Some(active.interrupt.clone()));
        self.active = Some(active);
        Ok(())
    }

    fn deactivate(&mut self) {
        self.active = None;
        self.cable.attach(None);
        self.receiver.forget();
        // It can fail only if the interface is gone, and then no frame comes with an offload or without.
        let _ = self.link.set_offloads(Offloads::default());
    }

    fn process(&mut self, event: DeviceEvent) -> Result<Progress, QueueError> {
        let Some(active) = &self.active else { return Ok(Progress::Idle) };
        let (link, plugged, counters) = (&*self.link, self.cable.is_plugged(), &*self.counters);
        // What made the link ready may as well be that it has room again.
        let transmits = event == DeviceEvent::Queue(TRANSMIT) || self.transmitter.waits();
        let more_to_send = transmits && self.transmitter.run(active, link, plugged, counters)?;
        let receives = event != DeviceEvent::Queue(TRANSMIT);
        let more_to_receive = receives && self.receiver.run(active, link, plugged, counters)?;
        Ok(match (more_to_receive, more_to_send) {
            // The next event of this queue sends what waits, too.
            (true, _) => Progress::Again(RECEIVE),
            (false, true) => Progress::Again(TRANSMIT),
            (false, false) => Progress::Idle,
        })
    }

    fn event_fds(&self) -> Vec<RawFd> {
        vec![self.link.as_raw_fd()]
    }

    fn save(&self) -> Result<DeviceState> {
        let Self { link: _, mac, mtu, cable, receiver, transmitter: _, counters: _, active: _ } = self;
        Ok(DeviceState::Net(NetState {
            mac: *mac,
            mtu: *mtu,
            link_up: cable.is_plugged(),
            frame: receiver.waiting().to_vec(),
        }))
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState::Net(NetState { mac, mtu, link_up, frame }) = state else {
            return Err(state.not_of(self.name(), state::NET));
        };
        if mac != self.mac {
            // The driver has read it once and for all.
            let words = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
            return Err(Error::mismatch(self.name(), "MAC address", words(mac), words(self.mac)));
        }
        if mtu != self.mtu {
            tracing::warn!("{}: its MTU is {}, the guest knows {mtu}", self.name(), self.mtu);
        }
        self.receiver.put_back(&frame).map_err(|what| Error::corrupt(self.name(), what))?;
        self.mtu = mtu;
        self.cable.plug(link_up);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
