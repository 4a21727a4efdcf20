//! How a device interrupts its driver: the InterruptStatus register (virtio 1.2 §4.2.2), the request for a reset and
//! the generation of the configuration space. All of it is atomic: worker threads, the I/O thread and vCPUs meet here.
//!
//! Invariant: a bit of the status is set before the edge that announces it, so that a driver which acknowledges and
//! then looks at its rings misses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::InterruptLine;

/// All bits that the status can have.
pub(crate) const STATUS_BITS: u32 = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;

/// One device's interrupt.
pub struct Interrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    generation: AtomicU32,
    line: Arc<dyn InterruptLine>,
}

impl Interrupt {
    pub(crate) fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { status: AtomicU32::new(0), needs_reset: AtomicBool::new(false), generation: AtomicU32::new(0), line }
    }

    /// A buffer was used, and the driver wants to hear of it.
    pub fn used_buffer(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration space has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device cannot go on before a reset (DEVICE_NEEDS_RESET, §2.1.2). It is said once.
    pub fn request_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Whether the device waits for a reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// What a device reset does. The generation goes on: a driver may have read half a field.
    pub(crate) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    pub(crate) fn restore(&self, status: u32, needs_reset: bool, generation: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        self.generation.store(generation, Ordering::SeqCst);
    }

    /// Sends the edge again if the driver has not acknowledged everything: an edge is no state.
    pub(crate) fn kick(&self) {
        if self.status() != 0 {
            self.line.raise();
        }
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        self.line.raise();
    }
}
