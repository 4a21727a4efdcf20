//! A driver for tests: it sets a device up through its registers and puts chains into its queues, as a guest would.

mod driver_queue;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::mmio::VirtioMmio;
use super::{DeviceEvent, VirtioDevice};
use crate::{BusDevice, GuestRam, InterruptLine};
use driver_queue::{AVAILABLE, DriverQueue, RINGS_STRIDE, USED};

/// RAM of the test machine: two regions that touch, then a hole.
pub(crate) const RAM_REGIONS: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), REGION_BYTES), (GuestAddress(REGION_BYTES as u64), REGION_BYTES)];
pub(crate) const REGION_BYTES: usize = 1 << 20;
/// Where tests may put buffers.
pub(crate) const DATA: u64 = 0x8_0000;
/// What RAM is filled with, so that a write into it shows.
pub(crate) const FILL: u8 = 0xa5;

/// What the Status register reads after each step of the initialisation.
pub(crate) const READY_STEPS: [u32; 4] = [1, 3, 11, 15];
const PATIENCE: Duration = Duration::from_secs(30);

/// A piece of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    /// The device may read it: address, length.
    Out(u64, u32),
    /// The device may write it.
    In(u64, u32),
}

/// An interrupt line that counts its edges.
#[derive(Default)]
pub(crate) struct Edges(AtomicUsize);

impl InterruptLine for Edges {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Edges {
    /// Edges since the last call.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, Ordering::SeqCst)
    }
}

/// A machine of one device and its driver.
pub(crate) struct Rig {
    pub(crate) ram: GuestRam,
    pub(crate) edges: Arc<Edges>,
    pub(crate) mmio: Arc<VirtioMmio>,
    queues: Vec<DriverQueue>,
}

/// What a checkpoint has in RAM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Memory {
    ram: Vec<u8>,
    queues: Vec<DriverQueue>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Memory").field("queues", &self.queues).finish_non_exhaustive()
    }
}

pub(crate) fn new_ram() -> GuestRam {
    let ram = GuestRam::from_ranges(&RAM_REGIONS).unwrap();
    for (start, bytes) in RAM_REGIONS {
        ram.write_slice(&vec![FILL; bytes], start).unwrap();
    }
    ram
}

/// All of RAM, to be compared or put back.
pub(crate) fn copy_ram(ram: &GuestRam) -> Vec<u8> {
    let mut copy = vec![0; RAM_REGIONS.iter().map(|&(_, bytes)| bytes).sum()];
    ram.read_slice(&mut copy, GuestAddress(0)).unwrap();
    assert_eq!(ram.iter().map(|region| region.len() as usize).sum::<usize>(), copy.len());
    copy
}

impl Rig {
    pub(crate) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_ram(device, new_ram())
    }

    pub(crate) fn with_ram(device: Box<dyn VirtioDevice>, ram: GuestRam) -> Self {
        let edges = Arc::new(Edges::default());
        let sizes = device.queue_sizes();
        let mmio = VirtioMmio::new(ram.clone(), device, edges.clone()).unwrap();
        let queues = sizes.iter().zip(0..).map(|(&size, index)| DriverQueue::new(size, index)).collect();
        Self { ram, edges, mmio, queues }
    }

    pub(crate) fn read(&self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.mmio.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write(&self, offset: u32, value: u32) {
        self.mmio.write(offset.into(), &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    pub(crate) fn offered(&self) -> u64 {
        let half = |select| {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Up to FEATURES_OK.
    pub(crate) fn negotiate(&self, features: u64) {
        self.write(VIRTIO_MMIO_STATUS, READY_STEPS[0]);
        self.write(VIRTIO_MMIO_STATUS, READY_STEPS[1]);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.write(VIRTIO_MMIO_STATUS, READY_STEPS[2]);
    }

    /// Sets a queue up, with zeroed rings, but for DRIVER_OK.
    pub(crate) fn set_up_queue(&mut self, index: usize, size: u16) {
        let queue = DriverQueue::new(size, index as u64);
        self.ram.write_slice(&[0; RINGS_STRIDE as usize], GuestAddress(queue.base)).unwrap();
        self.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        self.write(VIRTIO_MMIO_QUEUE_NUM, size.into());
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, queue.base as u32);
        self.write(VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, (queue.base + AVAILABLE) as u32);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, (queue.base + USED) as u32);
        self.write(VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        self.queues[index] = queue;
    }

    /// All of the initialisation (virtio 1.2 §3.1.1) with these features and whole queues.
    pub(crate) fn start(&mut self, features: u64) {
        self.negotiate(features);
        assert_eq!(self.status(), READY_STEPS[2], "features refused");
        self.set_up_queues_and_go();
    }

    pub(crate) fn set_up_queues_and_go(&mut self) {
        for index in 0..self.queues.len() {
            let size = self.queue_size_max(index);
            self.set_up_queue(index, size);
        }
        self.write(VIRTIO_MMIO_STATUS, READY_STEPS[3]);
        assert_eq!(self.status(), READY_STEPS[3], "not ready");
    }

    pub(crate) fn start_with_all(&mut self) {
        self.start(self.offered());
    }

    pub(crate) fn queue_size_max(&self, index: usize) -> u16 {
        self.write(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        self.read(VIRTIO_MMIO_QUEUE_NUM_MAX) as u16
    }

    pub(crate) fn reset(&self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
    }

    /// Makes a chain available, without a notification. Returns its head.
    pub(crate) fn offer(&mut self, queue: usize, pieces: &[Piece]) -> u16 {
        self.queues[queue].offer(&self.ram, pieces)
    }

    /// Notifies a queue and lets the device do all that it can on this thread.
    pub(crate) fn kick(&self, queue: usize) {
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
        self.run();
    }

    /// What the I/O thread does until no notification is left.
    pub(crate) fn run(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let notified = self.mmio.queue_events().iter().map(|event| event.read().is_ok());
            let notified: Vec<bool> = notified.collect();
            if !notified.contains(&true) {
                return;
            }
            assert!(Instant::now() < deadline, "the device notifies itself for ever");
            for (queue, _) in notified.iter().enumerate().filter(|&(_, &notified)| notified) {
                self.mmio.process(DeviceEvent::Queue(queue));
            }
        }
    }

    /// What the I/O thread does when a descriptor of the device becomes ready.
    pub(crate) fn wake(&self) {
        for index in 0..self.mmio.own_fds().len() {
            self.mmio.process(DeviceEvent::Own(index));
        }
        self.run();
    }

    /// Takes what has been used since: heads and lengths. Their descriptors are free again.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        self.queues[queue].take_used(&self.ram)
    }

    /// Waits until `count` more chains are used, and takes them.
    pub(crate) fn wait_used(&mut self, queue: usize, count: usize) -> Vec<(u16, u32)> {
        let deadline = Instant::now() + PATIENCE;
        let mut used = Vec::new();
        while used.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} used", used.len());
            used.extend(self.used(queue));
            std::thread::yield_now();
        }
        used
    }

    /// The driver asks to be interrupted at the next used buffer (event index), or never before `0x8000` more.
    pub(crate) fn want_interrupt(&self, queue: usize, wanted: bool) {
        let queue = &self.queues[queue];
        let event = if wanted { queue.next_used } else { queue.next_used.wrapping_add(0x8000) };
        let at = queue.base + AVAILABLE + 4 + 2 * u64::from(queue.size);
        self.ram.write_obj(event.to_le(), GuestAddress(at)).unwrap();
    }

    /// Moves the available index without entries to go with it.
    pub(crate) fn corrupt_available_index(&self, queue: usize, index: u16) {
        self.ram.write_obj(index.to_le(), GuestAddress(self.queues[queue].base + AVAILABLE + 2)).unwrap();
    }

    /// How many buffers the device has used, all in all.
    pub(crate) fn used_index(&self, queue: usize) -> u16 {
        self.ram.read_obj::<u16>(GuestAddress(self.queues[queue].base + USED + 2)).unwrap()
    }

    /// Where a queue's descriptor table, available ring and used ring are.
    pub(crate) fn rings(&self, queue: usize) -> (u64, u64, u64) {
        let base = self.queues[queue].base;
        (base, base + AVAILABLE, base + USED)
    }

    pub(crate) fn bytes(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.ram.read_slice(&mut read, GuestAddress(address)).unwrap();
        read
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.ram.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// RAM, and the driver's memory of its queues, which in a real guest is in RAM too.
    pub(crate) fn memory(&self) -> Memory {
        Memory { ram: copy_ram(&self.ram), queues: self.queues.clone() }
    }

    pub(crate) fn set_memory(&mut self, memory: Memory) {
        self.ram.write_slice(&memory.ram, GuestAddress(0)).unwrap();
        self.queues = memory.queues;
    }
}
