//! A driver for virtio disks (virtio 1.2 §5.2): one request at a time, polled.

use core::ptr::addr_of_mut;
use core::sync::atomic::{Ordering, fence};

use crate::fail;
use crate::virtio::{Descriptor, Device, NEXT, Queue, Ring, WRITE};

/// Disks that there may be.
const DISKS: usize = 2;
/// Entries of a queue. A request takes three.
const ENTRIES: usize = 4;

const KIND: u32 = 2;
const FLUSH: u64 = 1 << 9;

/// What is asked of a disk.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// A disk's memory.
struct Memory {
    ring: Ring<ENTRIES>,
    /// What is asked, and of which sector.
    head: [u64; 2],
    status: u8,
}

static mut MEMORY: [Memory; DISKS] = [const { Memory { ring: Ring::EMPTY, head: [0; 2], status: 0 } }; DISKS];

pub struct Disk {
    device: Device,
    queue: Queue<ENTRIES>,
    memory: *mut Memory,
    pub sectors: u64,
}

impl Disk {
    /// The disk of this number, which begins anew.
    pub fn open(number: usize) -> Self {
        let Some(device) = Device::find(KIND, number) else { fail(format_args!("no disk {number}")) };
        // SAFETY: nobody else has this memory, as nobody opens a disk twice.
        let (memory, queue) = unsafe {
            let memory = addr_of_mut!(MEMORY[number]);
            (memory, Queue::new(0, addr_of_mut!((*memory).ring)))
        };
        device.begin(FLUSH);
        device.add(&queue);
        if !device.start() {
            fail(format_args!("disk {number} does not want us"));
        }
        let sectors = u64::from(device.config(0)) | u64::from(device.config(4)) << 32;
        Disk { device, queue, memory, sectors }
    }

    pub fn read(&mut self, sector: u64, to: &mut [u64]) {
        self.request(Kind::Read, sector, to.as_mut_ptr(), size_of_val(to));
    }

    pub fn write(&mut self, sector: u64, from: &mut [u64]) {
        self.request(Kind::Write, sector, from.as_mut_ptr(), size_of_val(from));
    }

    pub fn flush(&mut self) {
        self.request(Kind::Flush, 0, core::ptr::null_mut(), 0);
    }

    /// Asks, and waits until it is done.
    fn request(&mut self, kind: Kind, sector: u64, data: *mut u64, bytes: usize) {
        let answers = if matches!(kind, Kind::Read) { WRITE } else { 0 };
        // SAFETY: RAM of our own. The device writes to it too, which is what volatile is for.
        let (head, status) = unsafe {
            addr_of_mut!((*self.memory).head).write_volatile([kind as u64, sector]);
            addr_of_mut!((*self.memory).status).write_volatile(0xff);
            (addr_of_mut!((*self.memory).head) as u64, addr_of_mut!((*self.memory).status))
        };
        let next = if bytes == 0 { 2 } else { 1 };
        let chain = [
            Descriptor { address: head, length: 16, flags: NEXT, next },
            Descriptor { address: data as u64, length: bytes as u32, flags: NEXT | answers, next: 2 },
            Descriptor { address: status as u64, length: 1, flags: WRITE, next: 0 },
        ];
        for (entry, descriptor) in (0..).zip(chain) {
            self.queue.describe(entry, descriptor);
        }
        self.queue.offer(0);
        self.device.kick(&mut self.queue);
        while self.queue.take().is_none() {
            core::hint::spin_loop();
        }
        fence(Ordering::SeqCst);
        // SAFETY: as above.
        let status = unsafe { status.read_volatile() };
        if status != 0 {
            fail(format_args!("a disk answers {status} to {} of sector {sector}", kind as u32));
        }
    }
}
