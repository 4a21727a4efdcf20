//! What drivers of virtio devices share (virtio 1.2: §4.2 registers, §2.7 split queues): polled, without interrupts.
//!
//! Invariants:
//! - A ring is its queue's and the device's alone. Both write to it, which is what volatile is for.
//! - A device is told of entries once they are there for it to see, and only if it wants to be told (§2.7.10).

use core::arch::asm;
use core::ptr::addr_of_mut;
use core::sync::atomic::{Ordering, fence};

/// Where the machine has its virtio devices.
const DEVICES: u64 = 0xd000_0000;
const DEVICE_BYTES: u64 = 0x1000;
/// Devices that there may be.
const MOST_DEVICES: u64 = 16;

/// Registers.
mod register {
    pub const MAGIC: u64 = 0x00;
    pub const KIND: u64 = 0x08;
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
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = 0x7472_6976;
/// VERSION_1, which every driver asks for.
const VERSION_1: u64 = 1 << 32;
const ACKNOWLEDGE_DRIVER: u32 = 3;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
/// A driver does not want interrupts, a device does not want to be told of entries.
const NOT_WANTED: u16 = 1;

/// A descriptor goes on in another one.
pub const NEXT: u16 = 1;
/// The device writes to it.
pub const WRITE: u16 = 2;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// The memory of a queue of `N` entries.
#[repr(C, align(64))]
pub struct Ring<const N: usize> {
    descriptors: [Descriptor; N],
    available_flags: u16,
    available_index: u16,
    available: [u16; N],
    available_event: [u16; 2],
    used_flags: u16,
    used_index: u16,
    used: [[u32; 2]; N],
    used_event: [u16; 2],
}

impl<const N: usize> Ring<N> {
    pub const EMPTY: Self = {
        // Then the used ring is where one may be.
        assert!(N.is_power_of_two() && N > 1);
        Ring {
            descriptors: [Descriptor { address: 0, length: 0, flags: 0, next: 0 }; N],
            available_flags: 0,
            available_index: 0,
            available: [0; N],
            available_event: [0; 2],
            used_flags: 0,
            used_index: 0,
            used: [[0; 2]; N],
            used_event: [0; 2],
        }
    };
}

/// The driver's end of a queue.
pub struct Queue<const N: usize> {
    number: u32,
    ring: *mut Ring<N>,
    /// What the available index is, and what the used index was at the last look.
    offered: u16,
    taken: u16,
    /// There are entries of which the device was not told.
    fresh: bool,
}

impl<const N: usize> Queue<N> {
    /// Queue `number` of a device.
    ///
    /// # Safety
    /// `ring` is empty, and this queue's alone from now on.
    pub unsafe fn new(number: u32, ring: *mut Ring<N>) -> Self {
        // SAFETY: it is ours, says the caller.
        unsafe { addr_of_mut!((*ring).available_flags).write_volatile(NOT_WANTED) };
        Queue { number, ring, offered: 0, taken: 0, fresh: false }
    }

    pub fn describe(&mut self, entry: u16, descriptor: Descriptor) {
        // SAFETY: the ring is ours, and the index within it is checked.
        unsafe { addr_of_mut!((*self.ring).descriptors[usize::from(entry)]).write_volatile(descriptor) }
    }

    /// Gives the chain that begins at `head` to the device, which may use it from now on.
    pub fn offer(&mut self, head: u16) {
        // SAFETY: as above.
        unsafe {
            addr_of_mut!((*self.ring).available[usize::from(self.offered) % N]).write_volatile(head);
            fence(Ordering::SeqCst);
            self.offered = self.offered.wrapping_add(1);
            addr_of_mut!((*self.ring).available_index).write_volatile(self.offered);
        }
        self.fresh = true;
    }

    /// The head of a chain that the device has done with, and how many bytes it wrote.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        // SAFETY: as above.
        unsafe {
            if addr_of_mut!((*self.ring).used_index).read_volatile() == self.taken {
                return None;
            }
            fence(Ordering::SeqCst);
            let [head, bytes] = addr_of_mut!((*self.ring).used[usize::from(self.taken) % N]).read_volatile();
            self.taken = self.taken.wrapping_add(1);
            Some((head as u16, bytes))
        }
    }
}

pub struct Device {
    registers: u64,
}

impl Device {
    /// The device with this number among those of a kind.
    pub fn find(kind: u32, number: usize) -> Option<Self> {
        (0..MOST_DEVICES)
            .map(|slot| Device { registers: DEVICES + slot * DEVICE_BYTES })
            .filter(|device| device.get(register::MAGIC) == MAGIC && device.get(register::KIND) == kind)
            .nth(number)
    }

    /// Begins anew, with these features.
    pub fn begin(&self, features: u64) {
        self.set(register::STATUS, 0);
        self.set(register::STATUS, ACKNOWLEDGE_DRIVER);
        let features = features | VERSION_1;
        for (half, features) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            self.set(register::DRIVER_FEATURES_SEL, half as u32);
            self.set(register::DRIVER_FEATURES, features);
        }
        self.set(register::STATUS, ACKNOWLEDGE_DRIVER | FEATURES_OK);
    }

    pub fn add<const N: usize>(&self, queue: &Queue<N>) {
        self.set(register::QUEUE_SEL, queue.number);
        self.set(register::QUEUE_SIZE, N as u32);
        // SAFETY: only addresses are taken.
        let (descriptors, available, used) = unsafe {
            (
                addr_of_mut!((*queue.ring).descriptors) as u64,
                addr_of_mut!((*queue.ring).available_flags) as u64,
                addr_of_mut!((*queue.ring).used_flags) as u64,
            )
        };
        for (register, address) in
            [(register::DESCRIPTORS, descriptors), (register::AVAILABLE, available), (register::USED, used)]
        {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(register::QUEUE_READY, 1);
    }

    /// Lets the device work with the queues that it has. False if it does not want us.
    #[must_use]
    pub fn start(&self) -> bool {
        let status = ACKNOWLEDGE_DRIVER | FEATURES_OK | DRIVER_OK;
        self.set(register::STATUS, status);
        self.get(register::STATUS) == status
    }

    /// Tells the device of what was offered since the last time.
    pub fn kick<const N: usize>(&self, queue: &mut Queue<N>) {
        if !core::mem::take(&mut queue.fresh) {
            return;
        }
        fence(Ordering::SeqCst);
        // SAFETY: the ring is the queue's.
        if unsafe { addr_of_mut!((*queue.ring).used_flags).read_volatile() } & NOT_WANTED == 0 {
            self.set(register::QUEUE_NOTIFY, queue.number);
        }
    }

    /// Four bytes of what the device says of itself.
    pub fn config(&self, offset: u64) -> u32 {
        self.get(register::CONFIG + offset)
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
