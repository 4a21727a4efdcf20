//! The register machine of virtio-mmio (virtio 1.2 §4.2.2, version 2): what a driver reads and what its writes mean.
//! Pure: a write changes registers and returns what the transport is to do.
//!
//! ```text
//! 0x000 magic, version, device, vendor          0x050 QueueNotify       0x080..0x0a8 queue addresses
//! 0x010 features: device 0x10/14, driver 0x20/24   0x060 InterruptStatus   0x0b0..0x0c0 shared memory: none
//! 0x030 QueueSel, QueueSizeMax, QueueSize, QueueReady   0x070 Status      0x0fc ConfigGeneration, 0x100 config
//! ```
//!
//! Status rules (§2.1, §3.1.1), each kept whatever the driver writes:
//! - bits come in the order ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK; one whose forerunner is missing is not taken;
//! - no bit goes but by a reset (writing 0);
//! - FEATURES_OK is taken only if the accepted features were offered, go together and include VERSION_1;
//! - features change only between DRIVER and FEATURES_OK, queues only between FEATURES_OK and DRIVER_OK, except that a
//!   queue may be disabled at any time.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::queue::Layout;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Neither legacy nor a draft.
const VERSION: u32 = 2;
/// "CKVM", little-endian.
const VENDOR: u32 = 0x4d56_4b43;
/// What a driver may set, in the order in which it must.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
/// The length of a shared memory region that is not there (§4.2.2.1); its base is the same.
const NO_REGION: u32 = u32::MAX;

/// Features of the transport and of the ring, offered by every device.
const COMMON_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The registers of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    /// All that is offered: the device's own and [`COMMON_FEATURES`].
    pub(crate) offered: u64,
    pub(crate) status: u32,
    pub(crate) device_features_sel: u32,
    pub(crate) driver_features_sel: u32,
    pub(crate) driver_features: u64,
    pub(crate) queue_sel: u32,
    pub(crate) queues: Vec<QueueRegisters>,
}

/// The registers of one queue. They hold what was written; whether it makes sense is seen when the queue comes to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueRegisters {
    pub(crate) max_size: u16,
    pub(crate) size: u16,
    pub(crate) ready: bool,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// What a write asks the transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing more.
    None,
    /// Reset the device, then the registers.
    Reset,
    /// The driver is ready.
    Activate,
    /// A queue in use is disabled.
    StopQueue(usize),
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, ready: false, descriptors: 0, available: 0, used: 0 }
    }

    pub(crate) fn layout(&self, event_idx: bool) -> Layout {
        let &Self { max_size, size, ready: _, descriptors, available, used } = self;
        Layout { max_size, size, descriptors, available, used, event_idx }
    }
}

impl Registers {
    /// The registers after a reset.
    pub(crate) fn new(device_features: u64, queue_sizes: &[u16]) -> Self {
        Self {
            offered: device_features | COMMON_FEATURES,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: queue_sizes.iter().copied().map(QueueRegisters::new).collect(),
        }
    }

    /// What a device reset does.
    pub(crate) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(self.offered, &sizes);
    }

    pub(crate) fn has(&self, status: u32) -> bool {
        self.status & status == status
    }

    pub(crate) fn driver_ok(&self) -> bool {
        self.has(DRIVER_OK)
    }

    pub(crate) fn event_idx(&self) -> bool {
        self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0
    }

    /// Whether a status can come about by the rules above.
    pub(crate) fn is_status(status: u32) -> bool {
        let steps = status & !FAILED;
        (0..=STEPS.len()).any(|taken| steps == STEPS[..taken].iter().sum::<u32>())
    }

    /// Whether a driver may accept these features, as far as the transport knows.
    pub(crate) fn may_accept(&self, features: u64) -> bool {
        features & !self.offered == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    /// Reads a register that is neither the interrupt's nor the configuration's.
    pub(crate) fn read(&self, kind: u32, offset: u32) -> u32 {
        let queue = self.queues.get(self.queue_sel as usize);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => kind,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, self.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size.into()),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            reg::VIRTIO_MMIO_STATUS => self.status,
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            _ => 0,
        }
    }

    /// Writes a register that is neither the interrupt's nor the configuration's. `accepts` is the device's own word on
    /// a set of features.
    pub(crate) fn write(&mut self, offset: u32, value: u32, accepts: impl Fn(u64) -> bool) -> Effect {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES if self.has(DRIVER) && !self.has(FEATURES_OK) => {
                if self.driver_features_sel < 2 {
                    set_half(&mut self.driver_features, self.driver_features_sel, value);
                }
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_STATUS => return self.write_status(value, accepts),
            reg::VIRTIO_MMIO_QUEUE_READY if value == 0 => return self.disable_queue(),
            _ => self.write_queue(offset, value),
        }
        Effect::None
    }

    fn write_status(&mut self, value: u32, accepts: impl Fn(u64) -> bool) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let before = self.status;
        self.status |= value & FAILED;
        for (position, &step) in STEPS.iter().enumerate() {
            let forerunner = position.checked_sub(1).map_or(0, |position| STEPS[position]);
            let features = self.driver_features;
            let taken = value & step != 0
                && self.has(forerunner)
                && (step != FEATURES_OK || self.may_accept(features) && accepts(features));
            if taken {
                self.status |= step;
            }
        }
        if self.status & !before & DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    fn disable_queue(&mut self) -> Effect {
        let (index, driver_ok) = (self.queue_sel as usize, self.driver_ok());
        match self.queues.get_mut(index) {
            Some(queue) if queue.ready => {
                queue.ready = false;
                if driver_ok { Effect::StopQueue(index) } else { Effect::None }
            }
            _ => Effect::None,
        }
    }

    fn write_queue(&mut self, offset: u32, value: u32) {
        if !self.has(FEATURES_OK) || self.driver_ok() {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else { return };
        if queue.ready {
            return;
        }
        match offset {
            // A size that does not fit becomes one that is none, and is refused with the queue.
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.ready = value == 1,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.available, 0, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.available, 1, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used, 0, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used, 1, value),
            _ => {}
        }
    }
}

/// The 32-bit half of `value` that `select` names: 0 the low one, 1 the high one; others are zero.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(target: &mut u64, select: u32, value: u32) {
    let shift = 32 * select;
    *target = *target & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
}

#[cfg(test)]
mod tests;
