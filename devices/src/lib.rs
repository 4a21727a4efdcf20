//! The devices of the machine: what a guest finds on its buses, and how each is saved and restored.
//!
//! ```text
//! vCPU thread ── Bus ──┬─ Serial, I8042, PowerPort, PvPanic        ports
//!                      └─ VirtioMmio ── VirtioDevice: Blk, Net, Rng   memory
//!                            │  ▲
//! guest's queue ── eventfd ──┘  └── InterruptLine ── the guest's interrupt controller
//! ```
//!
//! Invariants:
//! - No KVM here: an interrupt is the [`InterruptLine`] trait, a notification an eventfd, an exit a call to a
//!   [`BusDevice`].
//! - Nothing that a guest writes, into a register or into memory, panics, reaches outside guest RAM or costs unbounded
//!   work. A device whose queue makes no sense asks for its reset (virtio 1.2 §2.1.2).
//! - Nothing that a saved state contains panics either: it is checked as a whole before it is believed.
//!
//! Lock order: the transport's lock ([`VirtioMmio`]), then a queue's ring or a cable's end. Interrupt status is an
//! atomic; raising a line takes no lock.

mod bus;
pub mod entropy;
mod error;
#[cfg(test)]
mod laws;
mod power;
mod serial;
mod sync;
mod virtio;
mod vmgenid;

pub use bus::{Bus, BusDevice};
pub use error::{Error, Result};
pub use power::{I8042, PowerEvent, PowerPort, PowerSink, PvPanic};
pub use serial::{Serial, SerialState};
pub use virtio::blk::{Blk, BlkConfig, BlkCounters, BlkState};
pub use virtio::checkpoint::DRAIN_LIMIT;
pub use virtio::in_flight::InFlight;
pub use virtio::interrupt::Interrupt;
pub use virtio::mmio::{MMIO_BYTES, NOTIFY_OFFSET, VirtioMmio};
pub use virtio::net::{Cable, Net, NetConfig, NetCounters, NetState};
pub use virtio::queue::{QueueError, VirtQueue};
pub use virtio::rng::{Rng, RngState};
pub use virtio::state::{DeviceState, QueueState, VirtioMmioState};
pub use virtio::subscriber::VirtioSubscriber;
pub use virtio::{Active, DeviceEvent, Progress, VirtioDevice};
pub use vmgenid::VmGenId;

/// Guest RAM, as all of the machine names it.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;

/// One wire to the guest's interrupt controller.
pub trait InterruptLine: Send + Sync {
    /// Sends one edge. It is called from any thread, may not block and cannot fail: a line that is gone belongs to a
    /// machine that is gone.
    fn raise(&self);
}
