//! A virtio device in a checkpoint: drain, save, restore, kick.
//!
//! ```text
//! drain ─▶ save ─▶ undrain          the guest goes on, here
//!            └───▶ restore ─▶ kick  and there
//! ```
//!
//! Invariant: a state that `save` returns has nothing in flight, and `restore` believes none that has.

use std::time::Duration;

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_FEATURES_OK;

use super::interrupt::STATUS_BITS;
use super::mmio::{Inner, VirtioMmio};
use super::queue::Positions;
use super::registers::{QueueRegisters, Registers};
use super::state::{QueueState, VirtioMmioState};
use crate::sync::lock;
use crate::{Error, Result};

/// How long [`VirtioMmio::drain`] waits for requests in flight.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);

impl VirtioMmio {
    /// Takes nothing new and waits, at most [`DRAIN_LIMIT`], until all that is in flight is in the used rings and
    /// announced. vCPUs and the I/O thread may run or not. Afterwards the device can be saved.
    ///
    /// # Errors
    /// Requests do not end; the device then goes on as if it had not been drained.
    pub fn drain(&self) -> Result<()> {
        self.drain_within(DRAIN_LIMIT)
    }

    pub(super) fn drain_within(&self, limit: Duration) -> Result<()> {
        let in_flight = {
            let mut inner = lock(&self.inner);
            inner.drained = true;
            inner.device.in_flight()
        };
        if in_flight.wait_for(limit) {
            return Ok(());
        }
        self.undrain();
        Err(Error::DrainTimeout { device: self.name.clone(), limit })
    }

    /// Ends a drain: what was held back goes on.
    pub fn undrain(&self) {
        lock(&self.inner).drained = false;
        self.notify_all();
    }

    /// After a restore: notifies every queue and sends the interrupt again that the driver has not acknowledged, since
    /// neither an eventfd's count nor an edge is state.
    pub fn kick(&self) {
        self.notify_all();
        self.interrupt.kick();
    }

    /// The state of transport and device.
    ///
    /// # Errors
    /// The device is at work and not drained.
    pub fn save(&self) -> Result<VirtioMmioState> {
        let inner = lock(&self.inner);
        if inner.active && !inner.drained || inner.device.in_flight().count() > 0 {
            return Err(Error::NotDrained { device: self.name.clone() });
        }
        let Registers {
            offered: _, // follows from the device
            status,
            device_features_sel,
            driver_features_sel,
            driver_features,
            queue_sel,
            queues,
        } = &inner.registers;
        let needs_reset = self.interrupt.needs_reset();
        let positions = |index: usize| {
            // A device that waits for its reset uses no queue any more.
            let queue = inner.queues.get(index).and_then(Option::as_ref).filter(|_| !needs_reset);
            queue.map(|queue| queue.positions()).unwrap_or_default()
        };
        let queues = queues.iter().enumerate();
        let queues: Vec<_> = queues.map(|(index, queue)| save_queue(queue, positions(index))).collect();
        // Not the same as nothing in flight if a thread of the device has died on the way.
        if queues.iter().any(|queue| queue.next_avail != queue.next_used) {
            return Err(Error::NotDrained { device: self.name.clone() });
        }
        Ok(VirtioMmioState {
            kind: self.kind,
            status: *status,
            needs_reset,
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
            driver_features: *driver_features,
            queue_sel: *queue_sel,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            queues,
            device: inner.device.save()?,
        })
    }

    /// Takes on a saved state, and is at work again if the device was; a drain stays in force. Guest RAM must be the
    /// saved one before anything runs; [`VirtioMmio::kick`] is to follow.
    ///
    /// # Errors
    /// The state is that of a device of another shape, or of none. The device is then in reset.
    pub fn restore(&self, state: VirtioMmioState) -> Result<()> {
        self.reset();
        let mut inner = lock(&self.inner);
        let restored = self.restore_into(&mut inner, state);
        if restored.is_err() {
            inner.deactivate();
            inner.registers.reset();
            self.interrupt.reset();
        }
        restored
    }

    fn restore_into(&self, inner: &mut Inner, state: VirtioMmioState) -> Result<()> {
        let (registers, positions) = self.check(inner, &state)?;
        let at_work = registers.driver_ok() && !state.needs_reset;
        let queues = at_work.then(|| self.make_queues(&inner.ram, &registers, &positions)).transpose();
        let queues = queues.map_err(|error| self.corrupt(error.to_string()))?;
        inner.device.restore(state.device)?;
        inner.registers = registers;
        self.interrupt.restore(state.interrupt_status, state.needs_reset, state.config_generation);
        if let Some(queues) = queues {
            self.activate(inner, queues)?;
        }
        Ok(())
    }

    /// The registers of a saved state and the positions of its queues, if they can be those of this device.
    fn check(&self, inner: &Inner, state: &VirtioMmioState) -> Result<(Registers, Vec<Positions>)> {
        let mut registers = inner.registers.clone();
        self.check_shape(inner, state)?;
        if !Registers::is_status(state.status) {
            return Err(self.corrupt(format!("status {:#x}", state.status)));
        }
        if state.interrupt_status & !STATUS_BITS != 0 {
            return Err(self.corrupt(format!("interrupt status {:#x}", state.interrupt_status)));
        }
        registers.status = state.status;
        registers.device_features_sel = state.device_features_sel;
        registers.driver_features_sel = state.driver_features_sel;
        registers.driver_features = state.driver_features;
        registers.queue_sel = state.queue_sel;
        let mut positions = Vec::new();
        for (index, (saved, queue)) in state.queues.iter().zip(&mut registers.queues).enumerate() {
            let &QueueState { size, ready, descriptors, available, used, next_avail, next_used } = saved;
            if next_avail != next_used {
                return Err(self.corrupt(format!("queue {index} has chains in flight")));
            }
            (queue.size, queue.ready) = (size, ready);
            (queue.descriptors, queue.available, queue.used) = (descriptors, available, used);
            positions.push(Positions { next_avail, next_used });
        }
        Ok((registers, positions))
    }

    /// Whether a state is that of this kind of device, offering as much as the driver has accepted.
    fn check_shape(&self, inner: &Inner, state: &VirtioMmioState) -> Result<()> {
        let (queues, features) = (inner.registers.queues.len(), state.driver_features);
        let acceptable = inner.registers.may_accept(features) && inner.device.accepts(features);
        if state.kind != self.kind {
            return Err(self.mismatch("device type", state.kind, self.kind));
        }
        if state.queues.len() != queues {
            return Err(self.mismatch("number of queues", state.queues.len(), queues));
        }
        if state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !acceptable {
            let offered = format!("{:#x} at most", inner.registers.offered);
            return Err(self.mismatch("feature set", format!("{features:#x}"), offered));
        }
        Ok(())
    }

    fn mismatch(&self, field: &'static str, saved: impl ToString, here: impl ToString) -> Error {
        Error::mismatch(&self.name, field, saved, here)
    }

    fn corrupt(&self, what: String) -> Error {
        Error::corrupt(&self.name, what)
    }
}

fn save_queue(registers: &QueueRegisters, positions: Positions) -> QueueState {
    let &QueueRegisters { max_size: _, size, ready, descriptors, available, used } = registers;
    let Positions { next_avail, next_used } = positions;
    QueueState { size, ready, descriptors, available, used, next_avail, next_used }
}
