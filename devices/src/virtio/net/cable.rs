//! A card's cable: plugged or not, from any thread, and what the driver sees as the state of its link (virtio 1.2
//! §5.1.4, VIRTIO_NET_F_STATUS).
//!
//! Invariant: a change is seen in the configuration space before the driver is told of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::virtio::interrupt::Interrupt;

/// The cable between a card and its link. Clones are the same cable.
#[derive(Clone)]
pub struct Cable(Arc<Ends>);

struct Ends {
    plugged: AtomicBool,
    /// The driver's ear, while there is a driver.
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

impl Cable {
    /// A plugged cable.
    pub(super) fn new() -> Self {
        Self(Arc::new(Ends { plugged: AtomicBool::new(true), interrupt: Mutex::new(None) }))
    }

    /// Whether the link is up.
    pub fn is_plugged(&self) -> bool {
        self.0.plugged.load(Ordering::SeqCst)
    }

    /// Plugs the cable in or pulls it out and, if that is a change, tells the driver. While it is out, frames are
    /// dropped both ways.
    pub fn plug(&self, plugged: bool) {
        let interrupt = lock(&self.0.interrupt);
        if self.0.plugged.swap(plugged, Ordering::SeqCst) != plugged
            && let Some(interrupt) = &*interrupt
        {
            interrupt.config_changed();
        }
    }

    /// Sets who is told of changes.
    pub(super) fn attach(&self, interrupt: Option<Arc<Interrupt>>) {
        *lock(&self.0.interrupt) = interrupt;
    }
}
