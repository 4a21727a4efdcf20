//! A descriptor chain, read once and checked as a whole: what a driver puts before a device.
//!
//! ```text
//! chain:   readable segments … | writable segments …        (virtio 1.2 §2.7.4.2: in this order)
//! ```
//!
//! Invariants of a [`Chain`]: its head is an index of the queue, it has at most as many descriptors as the queue (also
//! behind an indirect one, §2.7.5.3.1), every segment lies in guest RAM, and it ends where its last descriptor says
//! so: a loop or a table that stops short is an error, not a shorter chain. Addresses are never read a second time, so
//! a driver that changes a descriptor later changes nothing.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::queue::QueueError;
use crate::GuestRam;

/// A piece of guest RAM, known to exist and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: GuestAddress,
    pub(crate) bytes: usize,
}

/// Pieces of guest RAM that together are one run of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments(Vec<Segment>);

/// A checked descriptor chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Segments,
    pub(crate) writable: Segments,
}

impl Chain {
    /// Reads a chain out of the descriptor table of a queue of `size` entries.
    pub(crate) fn read(ram: &GuestRam, chain: DescriptorChain<&GuestRam>, size: u16) -> Result<Self, QueueError> {
        let head = chain.head_index();
        if head >= size {
            return Err(QueueError::Head { head, size });
        }
        let mut read = Self { head, readable: Segments::default(), writable: Segments::default() };
        let mut open = true;
        for (position, descriptor) in chain.enumerate() {
            if position >= usize::from(size) {
                return Err(QueueError::TooLong { head, size });
            }
            open = descriptor.has_next();
            read.push(ram, &descriptor)?;
        }
        // virtio-queue ends an iteration early without a word: bad index, bad table, loop, more than 4 GiB.
        if open { Err(QueueError::Cut { head }) } else { Ok(read) }
    }

    fn push(&mut self, ram: &GuestRam, descriptor: &Descriptor) -> Result<(), QueueError> {
        let (address, bytes) = (descriptor.addr(), descriptor.len() as usize);
        if bytes == 0 {
            return Ok(());
        }
        if !ram.check_range(address, bytes) {
            return Err(QueueError::OutsideRam { head: self.head, address: address.0, bytes });
        }
        let segments = match descriptor.is_write_only() {
            true => &mut self.writable,
            false if self.writable.0.is_empty() => &mut self.readable,
            false => return Err(QueueError::Order { head: self.head }),
        };
        segments.0.push(Segment { address, bytes });
        Ok(())
    }
}

impl Segments {
    /// Their length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|segment| segment.bytes as u64).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Segment> + '_ {
        self.0.iter().copied()
    }

    /// Cuts off and returns the bytes from `at` on; beyond the end that is nothing.
    pub(crate) fn split_off(&mut self, at: u64) -> Self {
        let mut left = at;
        for index in 0..self.0.len() {
            let segment = self.0[index];
            if left < segment.bytes as u64 {
                let mut rest = self.0.split_off(index);
                let kept = left as usize;
                if kept > 0 {
                    self.0.push(Segment { address: segment.address, bytes: kept });
                    rest[0] = Segment { address: GuestAddress(segment.address.0 + left), bytes: segment.bytes - kept };
                }
                return Self(rest);
            }
            left -= segment.bytes as u64;
        }
        Self::default()
    }

    /// Copies their first bytes into `buffer`; returns how many that were.
    pub(crate) fn read(&self, ram: &GuestRam, buffer: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for segment in &self.0 {
            let bytes = segment.bytes.min(buffer.len() - done);
            ram.read_slice(&mut buffer[done..done + bytes], segment.address)?;
            done += bytes;
        }
        Ok(done)
    }

    /// Copies `buffer` to their front; returns how much of it had room.
    pub(crate) fn write(&self, ram: &GuestRam, buffer: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for segment in &self.0 {
            let bytes = segment.bytes.min(buffer.len() - done);
            ram.write_slice(&buffer[done..done + bytes], segment.address)?;
            done += bytes;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
