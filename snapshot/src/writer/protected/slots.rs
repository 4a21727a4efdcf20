//! Chunks on their way to the child, in memory that both processes share.
//!
//! ```text
//! header   how many were handed over, how many slots given back: futexes
//! handed   for each chunk, in the order in which they were: its number, what it holds, whether that is in a slot
//! slots    2 MiB each, used by turns
//! ```
//!
//! Invariants: one thread hands chunks over, each once. It writes entry and slot before it says so; then the child reads
//! them, and gives the slot back.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::super::futex;
use crate::limits::CHUNK_BYTES;
use crate::tag::{Chunk, Tag};

const SLOT_BYTES: usize = CHUNK_BYTES as usize;
/// So many there are: one is filled, one waits, one is written; or one, so that copier and child work by turns, and
/// take no more CPUs than one writer would.
const SLOTS: [u32; 2] = [1, MOST];
const MOST: u32 = 3;
/// The child is woken for so many chunks together if all that it has to do is to note them.
const NOTED_TOGETHER: usize = 8;
/// How often somebody who waits for a slot asks whether there is anything to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[repr(C)]
struct Header {
    handed: AtomicU32,
    given_back: AtomicU32,
}

/// A chunk that was handed over.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    chunk: u32,
    place: u32,
    /// Unless it is zero.
    tag: Tag,
}

/// [`Entry::place`]: it is nowhere, for it is zero.
const NOWHERE: u32 = 0;
const IN_SLOT: u32 = 1;
const IN_FILE: u32 = 2;
/// There are no more; [`Entry::chunk`] is an errno.
const LOST: u32 = 3;
const NO_TAG: Tag = Tag([0; 32]);

const _: () = assert!(size_of::<Header>().is_multiple_of(align_of::<Entry>()), "the entries follow it");

/// The shared memory.
#[derive(Debug)]
pub(in super::super) struct Slots {
    base: NonNull<u8>,
    bytes: NonZero<usize>,
    /// Where the first slot is.
    first: usize,
    slots: u32,
    chunks: usize,
}

/// The parent's end.
#[derive(Debug)]
pub(super) struct Sender<'a> {
    slots: &'a Slots,
    handed: usize,
    /// How many of these are in slots.
    used: u32,
}

/// The slot for the next chunk, with anything in it.
#[derive(Debug)]
pub(super) struct FreeSlot<'s, 'a>(&'s mut Sender<'a>);

/// The child's end.
#[derive(Debug)]
pub(in super::super) struct Receiver<'a> {
    slots: &'a Slots,
    received: usize,
    used: u32,
}

/// What a chunk holds that was handed over.
#[derive(Debug)]
pub(in super::super) enum Handed<'r, 'a> {
    Zero,
    /// This is to be written; with its tag.
    Copy(FullSlot<'r, 'a>, Tag),
    /// What has this tag, and is written.
    Written(Tag),
    /// It could not be written, nor will be what is left.
    Lost(io::Error),
}

/// A slot with a chunk in it, given back when this is dropped.
#[derive(Debug)]
pub(in super::super) struct FullSlot<'r, 'a>(&'r mut Receiver<'a>);

// SAFETY: the mapping belongs to this value alone; its header is atomics, and all else is accessed as the module says.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// For `chunks` chunks.
    pub(super) fn new(chunks: usize, is_roomy: bool) -> io::Result<Slots> {
        let slots = SLOTS[usize::from(is_roomy)];
        let tables = size_of::<Header>() + chunks * size_of::<Entry>();
        let first = tables.next_multiple_of(SLOT_BYTES);
        let bytes = NonZero::new(first + slots as usize * SLOT_BYTES).expect("there is a slot");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let base = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE) }?;
        Ok(Slots { base: base.cast(), bytes, first, slots, chunks })
    }

    /// The parent's. There is one.
    pub(super) fn sender(&self) -> Sender<'_> {
        Sender { slots: self, handed: 0, used: 0 }
    }

    /// The child's. There is one.
    pub(in super::super) fn receiver(&self) -> Receiver<'_> {
        Receiver { slots: self, received: 0, used: 0 }
    }

    /// The slot of the `nth` chunk that is in one.
    fn at(&self, nth: u32) -> *mut u8 {
        // SAFETY: the slot lies in the mapping.
        unsafe { self.base.as_ptr().add(self.first + (nth % self.slots) as usize * SLOT_BYTES) }
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins with it; atomics are valid whatever they hold.
        unsafe { self.base.cast().as_ref() }
    }

    /// That of the `nth` chunk that is handed over.
    fn entry(&self, nth: usize) -> *mut Entry {
        assert!(nth < self.chunks, "each once");
        // SAFETY: as many lie in the mapping from there on.
        unsafe { self.base.as_ptr().add(size_of::<Header>()).cast::<Entry>().add(nth) }
    }
}

impl<'a> Sender<'a> {
    /// Waits for the slot of the next chunk; returns none if it `is_hopeless`: no slot will be given back.
    pub(super) fn slot(&mut self, is_hopeless: impl Fn() -> bool) -> Option<FreeSlot<'_, 'a>> {
        let given_back = &self.slots.header().given_back;
        loop {
            let free = given_back.load(Acquire);
            if self.used - free < self.slots.slots {
                return Some(FreeSlot(self));
            }
            if is_hopeless() {
                return None;
            }
            futex::wait(given_back, free, Some(LOOK_EVERY));
        }
    }

    /// Hands over a chunk that is zero.
    pub(super) fn hand_zero(&mut self, chunk: usize) {
        self.hand_written(chunk, Chunk::Zero);
    }

    /// Hands over a chunk that is written, and of which only that is to be told.
    pub(super) fn hand_written(&mut self, chunk: usize, held: Chunk) {
        self.hand(chunk, held, IN_FILE);
    }

    /// Hands over that there is nothing more to come, for that reason.
    pub(super) fn hand_trouble(&mut self, trouble: &io::Error) {
        let errno = trouble.raw_os_error().unwrap_or(libc::EIO);
        self.tell(Entry { chunk: errno as u32, place: LOST, tag: NO_TAG });
    }

    /// How many chunks were handed over.
    pub(super) fn handed(&self) -> usize {
        self.handed
    }

    fn hand(&mut self, chunk: usize, held: Chunk, place: u32) {
        let (place, tag) = match held {
            Chunk::Zero => (NOWHERE, NO_TAG),
            Chunk::Data(tag) => (place, tag),
        };
        self.tell(Entry { chunk: chunk as u32, place, tag });
    }

    fn tell(&mut self, entry: Entry) {
        // SAFETY: it lies in the mapping, and the child does not read it before it is told.
        unsafe { self.slots.entry(self.handed).write(entry) };
        self.handed += 1;
        let handed = &self.slots.header().handed;
        handed.fetch_add(1, Release);
        let is_work = matches!(entry.place, IN_SLOT | LOST);
        if is_work || self.handed == self.slots.chunks || self.handed.is_multiple_of(NOTED_TOGETHER) {
            futex::wake(handed);
        }
    }
}

impl FreeSlot<'_, '_> {
    pub(super) fn content(&mut self) -> &mut [u8] {
        // SAFETY: the slot lies in the mapping, and the child does not read it until the chunk is handed over.
        unsafe { std::slice::from_raw_parts_mut(self.0.slots.at(self.0.used), SLOT_BYTES) }
    }

    /// Hands over a chunk, which is in it if it is `held` to be data.
    pub(super) fn hand(self, chunk: usize, held: Chunk) {
        self.0.used += u32::from(held != Chunk::Zero);
        self.0.hand(chunk, held, IN_SLOT);
    }
}

impl<'a> Receiver<'a> {
    /// Waits for the next chunk that is handed over. Returns its number, and what it holds.
    pub(in super::super) fn receive(&mut self) -> (usize, Handed<'_, 'a>) {
        let handed = &self.slots.header().handed;
        loop {
            let told = handed.load(Acquire);
            if told as usize > self.received {
                break;
            }
            futex::wait(handed, told, None);
        }
        // SAFETY: it lies in the mapping, and was written before it was told.
        let Entry { chunk, place, tag } = unsafe { self.slots.entry(self.received).read() };
        self.received += 1;
        let handed = match place {
            IN_SLOT => Handed::Copy(FullSlot(self), tag),
            IN_FILE => Handed::Written(tag),
            LOST => return (0, Handed::Lost(io::Error::from_raw_os_error(chunk as i32))),
            _ => Handed::Zero,
        };
        (chunk as usize, handed)
    }
}

impl FullSlot<'_, '_> {
    pub(in super::super) fn content(&self) -> &[u8] {
        // SAFETY: the slot lies in the mapping, and nobody writes to it until it is given back.
        unsafe { std::slice::from_raw_parts(self.0.slots.at(self.0.used), SLOT_BYTES) }
    }
}

impl Drop for FullSlot<'_, '_> {
    fn drop(&mut self) {
        self.0.used += 1;
        let given_back = &self.0.slots.header().given_back;
        given_back.store(self.0.used, Release);
        futex::wake(given_back);
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing points into it any more.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What a chunk is said to hold.
    fn held(chunk: usize) -> Chunk {
        match chunk % 5 {
            2 => Chunk::Zero,
            _ => Chunk::Data(Tag([chunk as u8; 32])),
        }
    }

    #[test]
    fn chunks_arrive_in_the_order_in_which_they_were_handed_over() {
        for is_roomy in [false, true] {
            let slots = Slots::new(20, is_roomy).expect("there is memory");
            let chunks = (0..20).rev();
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut sender = slots.sender();
                    for chunk in chunks.clone() {
                        if chunk % 10 == 2 {
                            sender.hand_zero(chunk);
                        } else if chunk % 3 == 0 {
                            sender.hand_written(chunk, held(chunk));
                        } else {
                            let mut slot = sender.slot(|| false).expect("it is waited for");
                            slot.content().fill(chunk as u8);
                            slot.hand(chunk, held(chunk));
                        }
                    }
                    assert_eq!(sender.handed(), 20);
                });
                let mut receiver = slots.receiver();
                for chunk in chunks.clone() {
                    let (received, handed) = receiver.receive();
                    assert_eq!(received, chunk);
                    let (content, is_written) = match handed {
                        Handed::Zero => (Chunk::Zero, true),
                        Handed::Written(tag) => (Chunk::Data(tag), true),
                        Handed::Lost(error) => panic!("{error}"),
                        Handed::Copy(slot, tag) => {
                            assert!(slot.content().iter().all(|byte| *byte == chunk as u8));
                            (Chunk::Data(tag), false)
                        }
                    };
                    assert_eq!(content, held(chunk));
                    assert!(content == Chunk::Zero || is_written == (chunk % 3 == 0));
                }
            });
        }
    }

    #[test]
    fn a_slot_is_not_filled_again_before_it_is_given_back() {
        let slots = Slots::new(4, true).expect("there is memory");
        let (mut sender, mut receiver) = (slots.sender(), slots.receiver());
        for chunk in 3..6 {
            sender.slot(|| true).expect("it is free").hand(chunk, held(chunk));
        }
        assert!(sender.slot(|| true).is_none());
        let (_, handed) = receiver.receive();
        assert!(sender.slot(|| true).is_none(), "it is read");
        drop(handed);
        assert!(sender.slot(|| true).is_some());
    }
}
