//! The crate's one error type: each variant names the device and what to do about it.

use std::io;
use std::time::Duration;

/// What can go wrong with a device on the host's side. What a guest does wrong is no error of ours: it is answered in
/// the guest's own terms.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two devices want the same addresses.
    #[error("bus: the device at {base:#x} ({bytes} bytes) overlaps the one at {other:#x}; give it another address")]
    BusOverlap {
        /// Where the new device was to be.
        base: u64,
        /// How long it is.
        bytes: u64,
        /// The device that is there.
        other: u64,
    },
    /// A range that no device can have.
    #[error("bus: {bytes} bytes at {base:#x} are no range of addresses; give the device at least one, below 2^64")]
    BusRange {
        /// Where the new device was to be.
        base: u64,
        /// How long it is.
        bytes: u64,
    },
    /// A disk's file cannot be used.
    #[error("disk {id}: cannot {what}: {source}; check that it is a readable file or block device")]
    Disk {
        /// The disk's id.
        id: String,
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// A disk's file is not made of whole sectors.
    #[error(
        "disk {id}: its size of {bytes} bytes is not a multiple of 512 (and at least 512); \
         round it up with: truncate --size=%512 FILE"
    )]
    DiskSize {
        /// The disk's id.
        id: String,
        /// The file's size.
        bytes: u64,
    },
    /// No thread for a device's work.
    #[error("{device}: cannot start a thread: {source}; raise the limit of processes (ulimit -u)")]
    Thread {
        /// The device.
        device: String,
        /// The host's answer.
        source: io::Error,
    },
    /// No eventfd for a queue.
    #[error("{device}: cannot make an eventfd: {source}; raise the limit of open files (ulimit -n)")]
    EventFd {
        /// The device.
        device: String,
        /// The host's answer.
        source: io::Error,
    },
    /// A device's queues cannot be those of virtio. Our own mistake, not a guest's.
    #[error("{device}: queue sizes {sizes:?} are not powers of two up to 32768; correct the device's queue_sizes()")]
    QueueSizes {
        /// The device.
        device: String,
        /// The sizes it gave.
        sizes: Vec<u16>,
    },
    /// The requests that a device has in flight do not end.
    #[error("{device}: requests are still in flight after {limit:?}; check the storage under it and try again")]
    DrainTimeout {
        /// The device.
        device: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// A device was to be saved while it works.
    #[error("{device}: it is not drained, so its state would not match the memory; drain it before saving")]
    NotDrained {
        /// The device.
        device: String,
    },
    /// A saved state is that of a device of another shape.
    #[error("{device}: its saved {field} is {saved}, this machine's is {here}; restore with the one of the checkpoint")]
    StateMismatch {
        /// The device.
        device: String,
        /// What differs.
        field: &'static str,
        /// As it was saved.
        saved: String,
        /// As this machine has it.
        here: String,
    },
    /// A saved state cannot have come from a device.
    #[error("{device}: its saved state is corrupt: {what}; use another checkpoint")]
    StateCorrupt {
        /// The device.
        device: String,
        /// What cannot be.
        what: String,
    },
    /// The host gives no random numbers.
    #[error("random numbers: the host gives none: {source}; allow getrandom(2)")]
    Entropy {
        /// The host's answer.
        source: io::Error,
    },
    /// The VM generation identifier has no place.
    #[error("vmgenid: {address:#x} is not in guest RAM: {source}; give the guest more memory")]
    VmGenId {
        /// The guest physical address.
        address: u64,
        /// What RAM says.
        source: vm_memory::GuestMemoryError,
    },
    /// The link to the host's network.
    #[error(transparent)]
    Net(#[from] ckvmm_net::Error),
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn mismatch(
        device: impl Into<String>,
        field: &'static str,
        saved: impl ToString,
        here: impl ToString,
    ) -> Self {
        Self::StateMismatch { device: device.into(), field, saved: saved.to_string(), here: here.to_string() }
    }

    pub(crate) fn corrupt(device: impl Into<String>, what: impl Into<String>) -> Self {
        Self::StateCorrupt { device: device.into(), what: what.into() }
    }
}
