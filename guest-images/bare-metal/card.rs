//! A driver for a virtio network card (virtio 1.2 §5.1): polled, one buffer a frame, no offloads.
//!
//! ```text
//! buffers: RECEIVE of them for the card to fill, then TRANSMIT of them, entry i of a queue has the i-th
//! buffer:  virtio_net_hdr, 12 bytes, all zero ─ the frame
//! ```
//!
//! Invariant: a buffer is the card's from `offer` to `take`, and ours otherwise. Nothing is dropped here: where no
//! buffer is free, nobody is asked for a frame.

use core::ptr::addr_of_mut;

use crate::fail;
use crate::virtio::{Descriptor, Device, Queue, Ring, WRITE};

/// Buffers of each queue: as many as the card has entries for.
pub const RECEIVE: usize = 256;
const TRANSMIT: usize = 256;
const BUFFER_BYTES: usize = 2048;
/// Bytes of memory that a card takes.
pub const BYTES: u64 = ((RECEIVE + TRANSMIT) * BUFFER_BYTES) as u64;

const KIND: u32 = 1;
/// The card says its address.
const MAC: u64 = 1 << 5;
const HEADER_BYTES: usize = 12;

static mut RECEIVE_RING: Ring<RECEIVE> = Ring::EMPTY;
static mut TRANSMIT_RING: Ring<TRANSMIT> = Ring::EMPTY;

pub struct Card {
    device: Device,
    receive: Queue<RECEIVE>,
    transmit: Queue<TRANSMIT>,
    /// Address of the buffers.
    buffers: u64,
    /// Entries of the transmit queue that are ours: the first `free` of these.
    entries: [u16; TRANSMIT],
    free: usize,
    pub mac: [u8; 6],
}

impl Card {
    /// The machine's first card, which begins anew. There is one `Card`; RAM at `buffers` is its own.
    pub fn open(buffers: u64) -> Self {
        let Some(device) = Device::find(KIND, 0) else { fail(format_args!("no network card")) };
        // SAFETY: nobody else has these rings, as there is one card.
        let (mut receive, transmit) =
            unsafe { (Queue::new(0, addr_of_mut!(RECEIVE_RING)), Queue::new(1, addr_of_mut!(TRANSMIT_RING))) };
        device.begin(MAC);
        device.add(&receive);
        device.add(&transmit);
        if !device.start() {
            fail(format_args!("the network card does not want us"));
        }
        let (low, high) = (device.config(0).to_le_bytes(), device.config(4).to_le_bytes());
        let mac = [low[0], low[1], low[2], low[3], high[0], high[1]];
        for entry in 0..RECEIVE as u16 {
            let address = buffers + u64::from(entry) * BUFFER_BYTES as u64;
            receive.describe(entry, Descriptor { address, length: BUFFER_BYTES as u32, flags: WRITE, next: 0 });
            receive.offer(entry);
        }
        device.kick(&mut receive);
        let entries = core::array::from_fn(|entry| entry as u16);
        Card { device, receive, transmit, buffers, entries, free: TRANSMIT, mac }
    }

    /// Shows a frame that has come, and gives its buffer back. False if there is none.
    pub fn receive(&mut self, show: impl FnOnce(&[u8])) -> bool {
        let Some((entry, bytes)) = self.receive.take() else { return false };
        let bytes = bytes as usize;
        if usize::from(entry) >= RECEIVE || !(HEADER_BYTES..=BUFFER_BYTES).contains(&bytes) {
            fail(format_args!("the network card has filled entry {entry} with {bytes} bytes"));
        }
        let address = self.buffers + u64::from(entry) * BUFFER_BYTES as u64;
        // SAFETY: the buffer is RAM, and ours until it is offered again.
        let buffer = unsafe { core::slice::from_raw_parts(address as *const u8, bytes) };
        show(&buffer[HEADER_BYTES..]);
        self.receive.offer(entry);
        true
    }

    /// Sends what `write` puts into a buffer: it returns its length. False if it has nothing, or there is no buffer.
    pub fn send(&mut self, write: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        while let Some((entry, _)) = self.transmit.take() {
            self.entries[self.free] = entry;
            self.free += 1;
        }
        if self.free == 0 {
            return false;
        }
        let entry = self.entries[self.free - 1];
        let address = self.buffers + (RECEIVE as u64 + u64::from(entry)) * BUFFER_BYTES as u64;
        // SAFETY: the buffer is RAM, and ours until it is offered.
        let buffer = unsafe { core::slice::from_raw_parts_mut(address as *mut u8, BUFFER_BYTES) };
        buffer[..HEADER_BYTES].fill(0);
        let Some(bytes) = write(&mut buffer[HEADER_BYTES..]) else { return false };
        let length = (HEADER_BYTES + bytes) as u32;
        self.free -= 1;
        self.transmit.describe(entry, Descriptor { address, length, flags: 0, next: 0 });
        self.transmit.offer(entry);
        true
    }

    /// Tells the card of what it was given.
    pub fn kick(&mut self) {
        self.device.kick(&mut self.receive);
        self.device.kick(&mut self.transmit);
    }
}
