//! Copies of chunks on their way to the child, in memory that both processes share.
//!
//! ```text
//! header   how many were handed over, how many given back: futexes
//! handed   for each chunk, in the order in which they were: its number and its slot, or that it is zero
//! back     slots, in the order in which they were given back
//! slots    2 MiB each: a few for the copier, all others for faults
//! ```
//!
//! Invariant: each chunk is handed over once. A slot is written by whoever took it, then read by the child, then free.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::thread;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::super::{futex, priority};
use crate::limits::CHUNK_BYTES;

const SLOT_BYTES: usize = CHUNK_BYTES as usize;
/// So many the copier has: one is filled, one waits, one is written; or one, so that it and the child work by turns, and
/// take no more CPUs than one writer would.
const COPIERS: [u32; 2] = [1, 3];
/// In an entry, instead of a slot.
const ZERO: u32 = u32::MAX;
/// Whether there is still room is asked once for so many slots: the answer takes a while.
const ASKED_FOR: u32 = 8;
/// How often somebody who waits for a slot asks whether there is anything to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[repr(C)]
struct Header {
    handed: AtomicU32,
    /// Changes when a chunk is handed over.
    told: AtomicU32,
    given_back: AtomicU32,
}

/// Who takes a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taker {
    Copier,
    Fault,
}

/// A chunk that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Handed {
    pub(in super::super) chunk: usize,
    /// Where its content is; it is zero if there is none.
    pub(in super::super) slot: Option<u32>,
}

/// The shared memory.
#[derive(Debug)]
pub(in super::super) struct Slots {
    base: NonNull<u8>,
    bytes: NonZero<usize>,
    /// Where the first slot is.
    first: usize,
    chunks: usize,
    free: Mutex<Free>,
}

/// The parent's record.
#[derive(Debug)]
struct Free {
    first_of_faults: u32,
    copiers: Vec<u32>,
    /// What was used last is in some cache.
    faults: Vec<u32>,
    /// The first slot that was never used, and how many slots there are.
    unused: u32,
    slots: u32,
    /// How many of the unused ones there was room for when that was asked.
    allowed: u32,
    /// How many of those that were given back are in the lists.
    seen: usize,
}

// SAFETY: the mapping belongs to this value alone; tables are atomics, and slots are accessed as the module says.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// For `chunks` chunks, at most `faults` of which are kept at once for the guest to go on; `ready` of these are there
    /// already: what a guest waits for should not wait for memory.
    pub(super) fn new(chunks: usize, is_roomy: bool, faults: usize, ready: usize) -> io::Result<Slots> {
        let copiers = COPIERS[usize::from(is_roomy)];
        let tables = size_of::<Header>().next_multiple_of(8) + chunks * (size_of::<u64>() + size_of::<u32>());
        let first = tables.next_multiple_of(SLOT_BYTES);
        let faults = faults.clamp(1, chunks.max(1));
        let slots = copiers as usize + faults;
        let bytes = NonZero::new(first + slots * SLOT_BYTES).expect("there is a slot");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let base = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE) }?;
        let ready = copiers + ready.min(faults) as u32;
        let (of_copier, of_faults) = ((0..copiers).collect(), (copiers..ready).collect());
        let free = Free {
            first_of_faults: copiers,
            copiers: of_copier,
            faults: of_faults,
            unused: ready,
            slots: slots as u32,
            allowed: 0,
            seen: 0,
        };
        let slots = Slots { base: base.cast(), bytes, first, chunks, free: Mutex::new(free) };
        slots.populate(ready);
        Ok(slots)
    }

    /// Gets memory for the first slots. This takes a while, so a thread of its own does it: a new one begins on the CPU that
    /// is idlest, where one that was just woken up may share that of a vCPU until the scheduler's next look.
    fn populate(&self, slots: u32) {
        let populate = || {
            priority::stand_back(priority::NICE);
            for slot in 0..slots {
                // One at a time: whoever wants to change the map of memory meanwhile has its turn, and so have the faults of
                // vCPUs that would wait for that.
                // SAFETY: of the mapping. Where it cannot be done now it is done when they are used.
                unsafe { libc::madvise(self.at(slot).cast(), SLOT_BYTES, libc::MADV_POPULATE_WRITE) };
            }
        };
        thread::scope(|scope| _ = thread::Builder::new().name("slots".into()).spawn_scoped(scope, populate));
    }

    /// The parent's: takes a slot; one that no memory was got for yet only if there `is_room`. Waits for one, unless it `is_hopeless`:
    /// none will be given back.
    pub(super) fn take(&self, taker: Taker, is_room: impl Fn() -> bool, is_hopeless: impl Fn() -> bool) -> Option<u32> {
        loop {
            let given_back = self.header().given_back.load(Acquire);
            if let Some(slot) = self.free.lock().ok()?.take(taker, &self.back()[..given_back as usize], &is_room) {
                return Some(slot);
            }
            if is_hopeless() {
                return None;
            }
            futex::wait(&self.header().given_back, given_back, Some(LOOK_EVERY));
        }
    }

    /// The parent's: a slot that it has taken, with anything in it.
    #[expect(clippy::mut_from_ref, reason = "a slot is its taker's alone")]
    pub(super) fn content_mut(&self, slot: u32) -> &mut [u8] {
        // SAFETY: the slot lies in the mapping, and who took it is the only one who knows of it until it is handed over.
        unsafe { std::slice::from_raw_parts_mut(self.at(slot), SLOT_BYTES) }
    }

    /// The parent's: a slot that it has taken is not needed.
    pub(super) fn put_back(&self, slot: u32) {
        self.free.lock().iter_mut().for_each(|free| free.put(slot));
    }

    fn at(&self, slot: u32) -> *mut u8 {
        // SAFETY: the slot lies in the mapping.
        unsafe { self.base.as_ptr().add(self.first + slot as usize * SLOT_BYTES) }
    }

    /// The parent's: hands a chunk over.
    pub(super) fn hand(&self, handed: Handed) {
        let nth = self.header().handed.fetch_add(1, Relaxed) as usize;
        let slot = handed.slot.map_or(ZERO, |slot| slot + 1);
        self.handed()[nth].store(u64::from(slot) << 32 | handed.chunk as u64, Release);
        self.header().told.fetch_add(1, Release);
        futex::wake(&self.header().told);
    }

    /// The child's: waits for the `nth` chunk that is handed over.
    pub(in super::super) fn await_handed(&self, nth: usize) -> Handed {
        loop {
            let told = self.header().told.load(Acquire);
            let entry = self.handed()[nth].load(Acquire);
            if entry != 0 {
                let slot = (entry >> 32) as u32;
                return Handed { chunk: entry as u32 as usize, slot: (slot != ZERO).then(|| slot - 1) };
            }
            futex::wait(&self.header().told, told, None);
        }
    }

    /// The child's: the content of a slot that it was handed.
    pub(in super::super) fn content(&self, slot: u32) -> &[u8] {
        // SAFETY: the slot lies in the mapping, and nobody writes to it until it is given back.
        unsafe { std::slice::from_raw_parts(self.at(slot), SLOT_BYTES) }
    }

    /// The child's: needs it no more.
    pub(in super::super) fn give_back(&self, slot: u32) {
        let nth = self.header().given_back.load(Relaxed);
        self.back()[nth as usize].store(slot, Relaxed);
        self.header().given_back.store(nth + 1, Release);
        futex::wake(&self.header().given_back);
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins with it; atomics are valid whatever they hold.
        unsafe { self.base.cast().as_ref() }
    }

    fn handed(&self) -> &[AtomicU64] {
        let start = size_of::<Header>().next_multiple_of(8);
        // SAFETY: as many lie in the mapping from there on.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(start).cast(), self.chunks) }
    }

    fn back(&self) -> &[AtomicU32] {
        let start = size_of::<Header>().next_multiple_of(8) + self.chunks * size_of::<u64>();
        // SAFETY: as many lie in the mapping from there on.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(start).cast(), self.chunks) }
    }
}

impl Free {
    fn put(&mut self, slot: u32) {
        if slot < self.first_of_faults { self.copiers.push(slot) } else { self.faults.push(slot) }
    }

    fn take(&mut self, taker: Taker, back: &[AtomicU32], is_room: impl Fn() -> bool) -> Option<u32> {
        // Another thread may have seen more.
        for slot in back.get(self.seen..).unwrap_or_default() {
            self.put(slot.load(Relaxed));
        }
        self.seen = self.seen.max(back.len());
        if taker == Taker::Copier {
            return self.copiers.pop();
        }
        self.faults.pop().or_else(|| {
            let slot = self.unused;
            if slot < self.slots && self.allowed == 0 && is_room() {
                self.allowed = ASKED_FOR;
            }
            (slot < self.slots && self.allowed > 0).then(|| {
                (self.unused, self.allowed) = (slot + 1, self.allowed - 1);
                slot
            })
        })
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing points into it any more.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
