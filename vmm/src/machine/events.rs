//! What a running machine tells the VMM's main loop.

use std::sync::{Arc, mpsc};

use ckvmm_devices::PowerEvent;

/// An event of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest used a power register, the reset line, or the panic device.
    Power(PowerEvent),
    /// A vCPU triple-faulted and has stopped.
    TripleFault {
        /// Its number.
        vcpu: u32,
    },
    /// A vCPU left the guest for a reason that ckvmm cannot handle, and has stopped.
    GuestError {
        /// Its number.
        vcpu: u32,
        /// The exit and the registers.
        reason: String,
    },
}

/// Where events go. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Notify(Arc<dyn Fn(MachineEvent) + Send + Sync>);

impl Notify {
    /// Events go to `receive`, on the thread on which they happen.
    pub fn new(receive: impl Fn(MachineEvent) + Send + Sync + 'static) -> Self {
        Notify(Arc::new(receive))
    }

    /// Events go into a channel.
    pub fn channel<T: From<MachineEvent> + Send + 'static>(sender: mpsc::Sender<T>) -> Self {
        // A main loop that has gone needs no events.
        Notify::new(move |event| drop(sender.send(event.into())))
    }

    /// Tells it.
    pub fn send(&self, event: MachineEvent) {
        (self.0)(event);
    }
}

impl std::fmt::Debug for Notify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Notify")
    }
}
