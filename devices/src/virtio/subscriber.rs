//! A device's ear on the I/O thread: notifications of its queues (level-triggered eventfds, emptied here) and its own
//! descriptors (edge-triggered, so that a guest without receive buffers does not make the loop spin).

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::DeviceEvent;
use super::mmio::VirtioMmio;

/// Event data of the device's own descriptors: this bit and the descriptor's number.
const OWN: u32 = 1 << 31;

/// Forwards events to one transport.
pub struct VirtioSubscriber {
    transport: Arc<VirtioMmio>,
}

impl VirtioSubscriber {
    pub(crate) fn new(transport: Arc<VirtioMmio>) -> Self {
        Self { transport }
    }
}

impl MutEventSubscriber for VirtioSubscriber {
    fn init(&mut self, ops: &mut EventOps) {
        let queues = self.transport.queue_events().iter().zip(0..);
        let queues = queues.map(|(event, index)| (event.as_raw_fd(), index, EventSet::IN));
        let own = self.transport.own_fds().into_iter().zip(OWN..);
        let own = own.map(|(fd, data)| (fd, data, EventSet::IN | EventSet::EDGE_TRIGGERED));
        for (fd, data, set) in queues.chain(own) {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, set)) {
                tracing::error!("{}: its event {data:#x} is not watched: {error}", self.transport.name());
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            data if data & OWN != 0 => self.transport.process(DeviceEvent::Own((data & !OWN) as usize)),
            data => self.transport.process_notified(data as usize),
        }
    }
}
