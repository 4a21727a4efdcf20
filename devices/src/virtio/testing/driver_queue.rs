//! The driver's side of one virtqueue: its descriptors, what it has made available and what it has taken back.

use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::Piece;
use crate::GuestRam;

/// Rings of queue `i` begin here, each part in pages of its own.
const RINGS: u64 = 0x1_0000;
pub(super) const RINGS_STRIDE: u64 = 0x1_0000;
pub(super) const AVAILABLE: u64 = 0x4000;
pub(super) const USED: u64 = 0x8000;
const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DriverQueue {
    pub(super) size: u16,
    pub(super) base: u64,
    free: Vec<u16>,
    next_available: u16,
    pub(super) next_used: u16,
}

impl DriverQueue {
    pub(super) fn new(size: u16, index: u64) -> Self {
        let base = RINGS + index * RINGS_STRIDE;
        Self { size, base, free: (0..size).rev().collect(), next_available: 0, next_used: 0 }
    }

    pub(super) fn offer(&mut self, ram: &GuestRam, pieces: &[Piece]) -> u16 {
        let indices: Vec<u16> = pieces.iter().map(|_| self.free.pop().expect("descriptors")).collect();
        for (position, piece) in pieces.iter().enumerate() {
            let (address, bytes, flag) = match *piece {
                Piece::Out(address, bytes) => (address, bytes, 0),
                Piece::In(address, bytes) => (address, bytes, DESC_WRITE),
            };
            let next = indices.get(position + 1);
            let flags = flag | next.map_or(0, |_| DESC_NEXT);
            let descriptor = Descriptor::new(address, bytes, flags, next.copied().unwrap_or(0));
            let at = self.base + 16 * u64::from(indices[position]);
            ram.write_obj(descriptor, GuestAddress(at)).unwrap();
        }
        self.make_available(ram, indices[0]);
        indices[0]
    }

    fn make_available(&mut self, ram: &GuestRam, head: u16) {
        let ring = self.base + AVAILABLE;
        let slot = u64::from(self.next_available % self.size);
        ram.write_obj(head.to_le(), GuestAddress(ring + 4 + 2 * slot)).unwrap();
        self.next_available = self.next_available.wrapping_add(1);
        ram.store(self.next_available.to_le(), GuestAddress(ring + 2), Ordering::Release).unwrap();
    }

    pub(super) fn take_used(&mut self, ram: &GuestRam) -> Vec<(u16, u32)> {
        let ring = self.base + USED;
        let end = u16::from_le(ram.load(GuestAddress(ring + 2), Ordering::Acquire).unwrap());
        let mut used = Vec::new();
        while self.next_used != end {
            let at = ring + 4 + 8 * u64::from(self.next_used % self.size);
            let [head, written] = ram.read_obj::<[u32; 2]>(GuestAddress(at)).unwrap().map(u32::from_le);
            used.push((head as u16, written));
            self.free_chain(ram, head as u16);
            self.next_used = self.next_used.wrapping_add(1);
        }
        used
    }

    fn free_chain(&mut self, ram: &GuestRam, head: u16) {
        let mut index = head;
        loop {
            assert!(!self.free.contains(&index), "chain {head} used twice");
            self.free.push(index);
            let at = GuestAddress(self.base + 16 * u64::from(index));
            let descriptor: Descriptor = ram.read_obj(at).unwrap();
            if !descriptor.has_next() {
                return;
            }
            index = descriptor.next();
        }
    }
}
