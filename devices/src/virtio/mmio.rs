//! The virtio-mmio transport: registers, queues and life cycle of one device (virtio 1.2 §4.2).
//!
//! Threads: vCPUs come through [`BusDevice`], the I/O thread through the subscriber, whoever checkpoints through
//! `drain`, `save`, `restore`. InterruptStatus, ConfigGeneration and QueueNotify are served without the lock; all else,
//! and all of the device, is under it. Nobody waits for requests in flight with the lock held; a vCPU that resets a
//! device or disables a queue does wait for them, as it would for hardware.
//!
//! Invariants:
//! - The device is active if and only if DRIVER_OK is set and its queues could be used.
//! - The device processes events only while it is active, not drained, not being stopped and not in need of a reset.
//!   An event that comes otherwise is dropped; `undrain`, `kick` and activation notify all queues, so nothing is lost.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::interrupt::Interrupt;
use super::queue::{Positions, QueueError, VirtQueue};
use super::registers::{Effect, Registers};
use super::subscriber::VirtioSubscriber;
use super::{Active, DeviceEvent, Progress, VirtioDevice};
use crate::sync::lock;
use crate::{BusDevice, Error, GuestRam, InterruptLine, Result};

/// The length of a transport's registers in guest memory, in bytes.
pub const MMIO_BYTES: u64 = 0x1000;

/// Where the QueueNotify register is: the place of the ioeventfds, with the queue's index as their data.
pub const NOTIFY_OFFSET: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Where the device's configuration space begins.
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// The queues in use, by their index; `None` for one that the driver has not enabled.
type Queues = Vec<Option<Arc<VirtQueue>>>;

/// A virtio device in guest memory.
pub struct VirtioMmio {
    pub(super) kind: u32,
    pub(super) name: String,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) inner: Mutex<Inner>,
    queue_events: Vec<EventFd>,
    breakages: AtomicU64,
}

pub(super) struct Inner {
    pub(super) ram: GuestRam,
    pub(super) registers: Registers,
    pub(super) device: Box<dyn VirtioDevice>,
    /// Empty while the device is idle.
    pub(super) queues: Queues,
    pub(super) active: bool,
    /// A checkpoint is being taken.
    pub(super) drained: bool,
    /// How many threads wait for requests in flight in order to reset the device or to stop a queue.
    stopping: usize,
}

impl VirtioMmio {
    /// A transport in reset, in front of `device`.
    ///
    /// # Errors
    /// No eventfds, or a device whose queues cannot be.
    pub fn new(ram: GuestRam, device: Box<dyn VirtioDevice>, line: Arc<dyn InterruptLine>) -> Result<Arc<Self>> {
        let (kind, name, sizes) = (device.kind(), device.name(), device.queue_sizes());
        if !sizes.iter().all(|size| size.is_power_of_two()) {
            return Err(Error::QueueSizes { device: name, sizes: sizes.to_vec() });
        }
        let queue_events = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<std::io::Result<_>>();
        let queue_events = queue_events.map_err(|source| Error::EventFd { device: name.clone(), source })?;
        let registers = Registers::new(device.features(), sizes);
        let inner = Inner { ram, registers, device, queues: Vec::new(), active: false, drained: false, stopping: 0 };
        let interrupt = Arc::new(Interrupt::new(line));
        Ok(Arc::new(Self {
            kind,
            name,
            interrupt,
            inner: Mutex::new(inner),
            queue_events,
            breakages: AtomicU64::new(0),
        }))
    }

    /// The device's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The eventfds that a notification of queue `i` writes: to be registered as ioeventfds at [`NOTIFY_OFFSET`] with
    /// data `i`. A QueueNotify that comes as a register write does the same.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// What the I/O thread's event manager is given.
    pub fn subscriber(self: &Arc<Self>) -> VirtioSubscriber {
        VirtioSubscriber::new(self.clone())
    }

    /// Lets the device process an event, if it may.
    pub(crate) fn process(&self, event: DeviceEvent) {
        let mut inner = lock(&self.inner);
        if !inner.active || inner.drained || inner.stopping > 0 || self.interrupt.needs_reset() {
            return;
        }
        match inner.device.process(event) {
            Ok(Progress::Idle) => {}
            Ok(Progress::Again(queue)) => self.notify(queue),
            Err(error) => self.broken(&error),
        }
    }

    /// Processes a notification that has arrived at a queue's eventfd.
    pub(crate) fn process_notified(&self, queue: usize) {
        if let Some(event) = self.queue_events.get(queue) {
            // Empty only if another has read it, who then has seen to it as well.
            let _ = event.read();
            self.process(DeviceEvent::Queue(queue));
        }
    }

    /// The device's own descriptors.
    pub(crate) fn own_fds(&self) -> Vec<RawFd> {
        lock(&self.inner).device.event_fds()
    }

    /// Notifies a queue as the driver would.
    pub(super) fn notify(&self, queue: usize) {
        if let Some(event) = self.queue_events.get(queue) {
            // It fails only when the count is at its end, and then the queue is notified already.
            let _ = event.write(1);
        }
    }

    pub(super) fn notify_all(&self) {
        (0..self.queue_events.len()).for_each(|queue| self.notify(queue));
    }

    /// Puts device and registers into reset. Requests in flight end first.
    pub(super) fn reset(&self) {
        let mut inner = self.quiesce();
        inner.deactivate();
        inner.registers.reset();
        self.interrupt.reset();
    }

    /// Waits without the lock until nothing is in flight; returns with the lock, and nothing was taken meanwhile.
    fn quiesce(&self) -> MutexGuard<'_, Inner> {
        let in_flight = {
            let mut inner = lock(&self.inner);
            inner.stopping += 1;
            inner.device.in_flight()
        };
        in_flight.wait();
        let mut inner = lock(&self.inner);
        inner.stopping -= 1;
        inner
    }

    /// Whether somebody waits for requests in flight, to reset the device or to stop a queue.
    #[cfg(test)]
    pub(crate) fn is_stopping(&self) -> bool {
        lock(&self.inner).stopping > 0
    }

    fn stop_queue(&self, index: usize) {
        let mut inner = self.quiesce();
        // The driver may have reset the device meanwhile and set the queue up anew: then it is not the same one.
        if !inner.registers.queues[index].ready
            && let Some(queue) = inner.queues.get_mut(index).and_then(Option::take)
        {
            queue.stop();
        }
        drop(inner);
        self.notify_all();
    }

    /// DRIVER_OK has just been set.
    fn driver_ready(&self, inner: &mut Inner) {
        let positions = vec![Positions::default(); inner.registers.queues.len()];
        let queues = match self.make_queues(&inner.ram, &inner.registers, &positions) {
            Ok(queues) => queues,
            Err(error) => return self.broken(&error),
        };
        match self.activate(inner, queues) {
            // A notification that came too early is made up for.
            Ok(()) => self.notify_all(),
            Err(error) => self.broken(&error),
        }
    }

    pub(super) fn activate(&self, inner: &mut Inner, queues: Queues) -> Result<()> {
        inner.device.activate(Active {
            ram: inner.ram.clone(),
            queues: queues.clone(),
            features: inner.registers.driver_features,
            interrupt: self.interrupt.clone(),
        })?;
        inner.queues = queues;
        inner.active = true;
        Ok(())
    }

    /// The queues that the registers describe; those that the driver has not enabled are absent.
    pub(super) fn make_queues(
        &self,
        ram: &GuestRam,
        registers: &Registers,
        positions: &[Positions],
    ) -> Result<Queues, QueueError> {
        let event_idx = registers.event_idx();
        let queues = registers.queues.iter().zip(positions);
        let queues = queues.map(|(queue, &at)| {
            let make = || VirtQueue::new(ram.clone(), self.interrupt.clone(), queue.layout(event_idx), at);
            queue.ready.then(make).transpose().map(|queue| queue.map(Arc::new))
        });
        queues.collect()
    }

    /// The driver has made the device unusable. It is told so, and our log, which it cannot flood.
    fn broken(&self, error: &dyn std::error::Error) {
        let times = self.breakages.fetch_add(1, Ordering::Relaxed) + 1;
        if times.is_power_of_two() {
            tracing::warn!("{}: needs a reset by the guest ({times}): {error}", self.name);
        }
        self.interrupt.request_reset();
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => return self.interrupt.status(),
            reg::VIRTIO_MMIO_CONFIG_GENERATION => return self.interrupt.generation(),
            _ => {}
        }
        let value = lock(&self.inner).registers.read(self.kind, offset);
        let needs_reset = offset == reg::VIRTIO_MMIO_STATUS && self.interrupt.needs_reset();
        if needs_reset { value | VIRTIO_CONFIG_S_NEEDS_RESET } else { value }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notify(value as usize),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            _ => {}
        }
        let mut guard = lock(&self.inner);
        let inner = &mut *guard;
        match inner.registers.write(offset, value, |features| inner.device.accepts(features)) {
            Effect::None => {}
            Effect::Activate => self.driver_ready(inner),
            Effect::Reset => {
                drop(guard);
                self.reset();
            }
            Effect::StopQueue(index) => {
                drop(guard);
                self.stop_queue(index);
            }
        }
    }
}

impl Inner {
    pub(super) fn deactivate(&mut self) {
        self.device.deactivate();
        self.queues.clear();
        self.active = false;
    }
}

impl BusDevice for VirtioMmio {
    /// Registers are 32 bits wide and aligned (§4.2.2.2); any other access to them reads as zero. The configuration
    /// space takes any.
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.inner).device.read_config(offset, data);
        } else if let (true, Ok(data)) = (offset.is_multiple_of(4), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.inner).device.write_config(offset, data);
        } else if let (true, Ok(data)) = (offset.is_multiple_of(4), <[u8; 4]>::try_from(data)) {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests;
