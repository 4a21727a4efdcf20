//! What a checkpoint keeps of a virtio device. These types are of the image, not of the running device: they carry a
//! version, and runtime types may change without them.
//!
//! Invariant: nothing is in flight. So a queue is its registers and two equal positions; and what the driver has put
//! into the rings is in guest RAM, where the image has it already.

use ckvmm_snapshot::Saved;
use serde::{Deserialize, Serialize};

use super::blk::BlkState;
use super::net::NetState;
use super::rng::RngState;
use crate::Error;

/// What the states of devices are called in messages.
pub(crate) const BLK: &str = "virtio-blk";
pub(crate) const NET: &str = "virtio-net";
pub(crate) const RNG: &str = "virtio-rng";

/// A saved virtio-mmio transport with its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioMmioState {
    /// The device's type (virtio 1.2 §5).
    pub kind: u32,
    /// The Status register, without DEVICE_NEEDS_RESET.
    pub status: u32,
    /// Whether the device waits for a reset.
    pub needs_reset: bool,
    /// Which half of the device's features is selected.
    pub device_features_sel: u32,
    /// Which half of the driver's features is selected.
    pub driver_features_sel: u32,
    /// What the driver has accepted, or is about to.
    pub driver_features: u64,
    /// Which queue is selected.
    pub queue_sel: u32,
    /// The InterruptStatus register.
    pub interrupt_status: u32,
    /// The ConfigGeneration register.
    pub config_generation: u32,
    /// The queues, all that the device has.
    pub queues: Vec<QueueState>,
    /// The device behind the transport.
    pub device: DeviceState,
}

impl Saved for VirtioMmioState {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u16 = 1;
}

/// A saved virtqueue. Whether it uses event indices follows from the accepted features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Its size in entries.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
    /// The next entry of the available ring to take.
    pub next_avail: u16,
    /// The next entry of the used ring to fill.
    pub next_used: u16,
}

/// The state of one kind of device. The name of the variant is in the image: a state meets the device it belongs to, or
/// an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// A disk.
    Blk(BlkState),
    /// A network card.
    Net(NetState),
    /// A source of random numbers.
    Rng(RngState),
}

impl DeviceState {
    /// What kind of device it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Blk(_) => BLK,
            Self::Net(_) => NET,
            Self::Rng(_) => RNG,
        }
    }

    /// The error of a `device` that was given a state which is not its own.
    pub(crate) fn not_of(&self, device: String, kind: &'static str) -> Error {
        Error::mismatch(device, "kind of device", self.kind(), kind)
    }
}
