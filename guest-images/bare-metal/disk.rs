//! A driver for virtio disks (virtio 1.2: §4.2 registers, §2.7 queue, §5.2 disk): one request at a time, polled.

use core::arch::asm;
use core::ptr::addr_of_mut;
use core::sync::atomic::{Ordering, fence};

use crate::fail;

/// Where the machine has its virtio devices.
const DEVICES: u64 = 0xd000_0000;
const DEVICE_BYTES: u64 = 0x1000;
/// Disks that there may be.
const DISKS: usize = 2;
/// Entries of a queue. A request takes three.
const ENTRIES: usize = 4;

/// Registers.
mod register {
    pub const MAGIC: u64 = 0x00;
    pub const DEVICE: u64 = 0x08;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
    pub const DESCRIPTORS: u64 = 0x80;
    pub const AVAILABLE: u64 = 0x90;
    pub const USED: u64 = 0xa0;
    pub const SECTORS: u64 = 0x100;
}

const MAGIC: u32 = 0x7472_6976;
const KIND: u32 = 2;
const FLUSH: u32 = 1 << 9;
/// VERSION_1, of the features from 32 on.
const VERSION_1: u32 = 1;
const ACKNOWLEDGE_DRIVER: u32 = 3;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// What is asked of a disk.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(64))]
struct Queue {
    descriptors: [Descriptor; ENTRIES],
    available_flags: u16,
    available_index: u16,
    available: [u16; ENTRIES + 2],
    used_flags: u16,
    used_index: u16,
    used: [[u32; 2]; ENTRIES],
    /// What is asked, and of which sector.
    head: [u64; 2],
    status: u8,
}

const NOTHING: Descriptor = Descriptor { address: 0, length: 0, flags: 0, next: 0 };
const EMPTY: Queue = Queue {
    descriptors: [NOTHING; ENTRIES],
    available_flags: 1, // no interrupts: nobody would take them
    available_index: 0,
    available: [0; ENTRIES + 2],
    used_flags: 0,
    used_index: 0,
    used: [[0; 2]; ENTRIES],
    head: [0; 2],
    status: 0,
};
// The used ring is where a ring may be.
const _: () = assert!(core::mem::offset_of!(Queue, used_flags) % 4 == 0);

static mut QUEUES: [Queue; DISKS] = [EMPTY; DISKS];

pub struct Disk {
    registers: u64,
    queue: *mut Queue,
    pub sectors: u64,
}

impl Disk {
    /// The disk of this number, which begins anew.
    pub fn open(number: usize) -> Self {
        let registers = DEVICES + number as u64 * DEVICE_BYTES;
        // SAFETY: nobody else has this queue, as nobody opens a disk twice.
        let queue = unsafe { addr_of_mut!(QUEUES[number]) };
        let mut disk = Disk { registers, queue, sectors: 0 };
        if disk.get(register::MAGIC) != MAGIC || disk.get(register::DEVICE) != KIND {
            fail(format_args!("no disk {number}"));
        }
        disk.set(register::STATUS, 0);
        disk.set(register::STATUS, ACKNOWLEDGE_DRIVER);
        for (half, features) in [FLUSH, VERSION_1].into_iter().enumerate() {
            disk.set(register::DRIVER_FEATURES_SEL, half as u32);
            disk.set(register::DRIVER_FEATURES, features);
        }
        disk.set(register::STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK);
        disk.set(register::QUEUE_SEL, 0);
        disk.set(register::QUEUE_SIZE, ENTRIES as u32);
        // SAFETY: only addresses are taken.
        let (descriptors, available, used) = unsafe {
            (
                addr_of_mut!((*queue).descriptors) as u64,
                addr_of_mut!((*queue).available_flags) as u64,
                addr_of_mut!((*queue).used_flags) as u64,
            )
        };
        for (register, address) in
            [(register::DESCRIPTORS, descriptors), (register::AVAILABLE, available), (register::USED, used)]
        {
            disk.set(register, address as u32);
            disk.set(register + 4, (address >> 32) as u32);
        }
        disk.set(register::QUEUE_READY, 1);
        disk.set(register::STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK);
        if disk.get(register::STATUS) != ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK {
            fail(format_args!("disk {number} does not want us"));
        }
        disk.sectors = u64::from(disk.get(register::SECTORS)) | u64::from(disk.get(register::SECTORS + 4)) << 32;
        disk
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
        let queue = self.queue;
        let answers = if matches!(kind, Kind::Read) { WRITE } else { 0 };
        // SAFETY: the queue is RAM of our own. The device writes to it too, which is what volatile is for.
        let index = unsafe {
            addr_of_mut!((*queue).head).write_volatile([kind as u64, sector]);
            addr_of_mut!((*queue).status).write_volatile(0xff);
            let last = Descriptor { address: addr_of_mut!((*queue).status) as u64, length: 1, flags: WRITE, next: 0 };
            let head = addr_of_mut!((*queue).head) as u64;
            let next = if bytes == 0 { 2 } else { 1 };
            let descriptors = [
                Descriptor { address: head, length: 16, flags: NEXT, next },
                Descriptor { address: data as u64, length: bytes as u32, flags: NEXT | answers, next: 2 },
                last,
                NOTHING,
            ];
            addr_of_mut!((*queue).descriptors).write_volatile(descriptors);
            let index = addr_of_mut!((*queue).available_index).read_volatile();
            addr_of_mut!((*queue).available[index as usize % ENTRIES]).write_volatile(0);
            fence(Ordering::SeqCst);
            addr_of_mut!((*queue).available_index).write_volatile(index.wrapping_add(1));
            fence(Ordering::SeqCst);
            index.wrapping_add(1)
        };
        self.set(register::QUEUE_NOTIFY, 0);
        // SAFETY: as above.
        let status = unsafe {
            while addr_of_mut!((*queue).used_index).read_volatile() != index {
                core::hint::spin_loop();
            }
            fence(Ordering::SeqCst);
            addr_of_mut!((*queue).status).read_volatile()
        };
        if status != 0 {
            fail(format_args!("a disk answers {status} to {} of sector {sector}", kind as u32));
        }
    }

    fn get(&self, register: u64) -> u32 {
        let value: u32;
        // SAFETY: a register of a device, which boot.s has mapped. One plain instruction: the VMM's host emulates it.
        unsafe { asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) self.registers + register) }
        value
    }

    fn set(&self, register: u64, value: u32) {
        // SAFETY: as above.
        unsafe { asm!("mov dword ptr [{}], {:e}", in(reg) self.registers + register, in(reg) value) }
    }
}
