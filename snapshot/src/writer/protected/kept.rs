//! Copies of what the guest writes to, until it is their turn to go to the child.
//!
//! They are in memory of this process alone, which can be huge pages: a page of memory that is shared with a child takes
//! the kernel much longer, and a guest would wait for all that was not made ready. The child is handed a copy
//! of the copy, if it is the one that writes.
//!
//! Invariant: a slot is written by the one who took it, then read by the copier, then free.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use vm_memory::VolatileSlice;

use super::super::priority;
use crate::limits::CHUNK_BYTES;

const SLOT_BYTES: usize = CHUNK_BYTES as usize;
/// Whether there is still room is asked once for so many slots: the answer takes a while.
const ASKED_FOR: usize = 8;
/// How often somebody who waits asks whether there is anything to wait for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The copies.
#[derive(Debug)]
pub(super) struct Kept {
    base: NonNull<u8>,
    bytes: NonZero<usize>,
    /// Where the first slot is.
    first: usize,
    slots: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What was used last is in some cache.
    free: Vec<usize>,
    /// The first slot that was never used.
    unused: usize,
    /// How many of the unused ones there was room for when that was asked.
    allowed: usize,
    full: VecDeque<KeptCopy>,
}

/// Room for a copy.
#[derive(Debug)]
pub(super) struct EmptySlot(usize);

/// A copy of a chunk.
#[derive(Debug)]
pub(super) struct KeptCopy {
    pub(super) chunk: usize,
    slot: usize,
}

// SAFETY: the mapping belongs to this value alone, and slots are accessed as the module says.
unsafe impl Send for Kept {}
// SAFETY: as above.
unsafe impl Sync for Kept {}

impl Kept {
    /// For at most `slots` copies; for `ready` of them there is memory at once: what a guest waits for should not wait for
    /// that.
    pub(super) fn new(slots: usize, ready: usize) -> io::Result<Kept> {
        let bytes = NonZero::new((slots + 1) * SLOT_BYTES).expect("it is not nothing");
        let (access, flags) =
            (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let base = unsafe { mmap_anonymous(None, bytes, access, flags) }?.cast::<u8>();
        let first = base.as_ptr().align_offset(SLOT_BYTES);
        let ready = ready.min(slots);
        // They do not grow while somebody holds the lock: the guest may wait for it.
        let (mut free, full) = (Vec::with_capacity(slots), VecDeque::with_capacity(slots));
        free.extend((0..ready).rev());
        let state = State { free, unused: ready, allowed: 0, full };
        let kept = Kept { base, bytes, first, slots, state: Mutex::new(state), changed: Condvar::new() };
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTFORK] {
            // SAFETY: of the mapping, whose content it does not change. Without the one copies take longer, without the other
            // the child has memory that it does not look at.
            unsafe { libc::madvise(base.as_ptr().cast(), bytes.get(), advice) };
        }
        kept.populate(ready);
        Ok(kept)
    }

    /// Gets memory for the first slots. This takes a while, so a thread of its own does it: a new one begins on the CPU that
    /// is idlest, where one that was just woken up may share that of a vCPU until the scheduler's next look.
    fn populate(&self, slots: usize) {
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

    /// A slot, in memory that is new only if there `is_room`. Waits for one, or returns none if it `is_hopeless`: none will
    /// be free any more.
    pub(super) fn slot(&self, is_room: impl Fn() -> bool, is_hopeless: impl Fn() -> bool) -> Option<EmptySlot> {
        let mut state = self.state();
        loop {
            if let Some(slot) = state.take(self.slots, &is_room) {
                return Some(EmptySlot(slot));
            }
            state = self.wait(state, &is_hopeless)?;
        }
    }

    /// A slot, if there is memory for that and another one: one is for somebody who waits.
    pub(super) fn spare(&self) -> Option<EmptySlot> {
        let mut state = self.state();
        if state.free.len() > 1 { state.free.pop().map(EmptySlot) } else { None }
    }

    /// Copies a chunk into it by `copy`.
    pub(super) fn fill(&self, slot: EmptySlot, chunk: usize, copy: impl FnOnce(&mut [u8])) -> KeptCopy {
        let EmptySlot(slot) = slot;
        // SAFETY: the slot lies in the mapping, and nobody else has it.
        copy(unsafe { std::slice::from_raw_parts_mut(self.at(slot), SLOT_BYTES) });
        KeptCopy { chunk, slot }
    }

    /// It is not needed.
    pub(super) fn put_back(&self, slot: EmptySlot) {
        self.free(slot.0);
    }

    /// Its turn may come.
    pub(super) fn push(&self, copy: KeptCopy) {
        self.state().full.push_back(copy);
        self.changed.notify_all();
    }

    /// The next copy, if there is one.
    pub(super) fn next(&self) -> Option<KeptCopy> {
        self.state().full.pop_front()
    }

    /// Waits for the next copy; returns none if it `is_hopeless`.
    pub(super) fn await_next(&self, is_hopeless: impl Fn() -> bool) -> Option<KeptCopy> {
        let mut state = self.state();
        loop {
            match state.full.pop_front() {
                None => state = self.wait(state, &is_hopeless)?,
                copy => return copy,
            }
        }
    }

    pub(super) fn content<'a>(&'a self, copy: &'a KeptCopy) -> &'a [u8] {
        // SAFETY: the slot lies in the mapping, and nobody writes to it as long as there is this copy.
        unsafe { std::slice::from_raw_parts(self.at(copy.slot), SLOT_BYTES) }
    }

    pub(super) fn memory<'a>(&'a self, copy: &'a KeptCopy) -> VolatileSlice<'a> {
        // SAFETY: the slot lies in the mapping, which lives as long as this.
        unsafe { VolatileSlice::new(self.at(copy.slot), SLOT_BYTES) }
    }

    /// It is needed no more.
    pub(super) fn give_back(&self, copy: KeptCopy) {
        self.free(copy.slot);
    }

    fn free(&self, slot: usize) {
        self.state().free.push(slot);
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, is_hopeless: impl Fn() -> bool) -> Option<MutexGuard<'a, State>> {
        if is_hopeless() {
            return None;
        }
        let waited = self.changed.wait_timeout(state, LOOK_EVERY);
        Some(waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, slot: usize) -> *mut u8 {
        // SAFETY: the slot lies in the mapping.
        unsafe { self.base.as_ptr().add(self.first + slot * SLOT_BYTES) }
    }
}

impl State {
    fn take(&mut self, slots: usize, is_room: impl Fn() -> bool) -> Option<usize> {
        self.free.pop().or_else(|| {
            let slot = self.unused;
            if slot < slots && self.allowed == 0 && is_room() {
                self.allowed = ASKED_FOR;
            }
            (slot < slots && self.allowed > 0).then(|| {
                (self.unused, self.allowed) = (slot + 1, self.allowed - 1);
                slot
            })
        })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing points into it any more.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn filled_with(byte: u8) -> impl FnOnce(&mut [u8]) {
        move |slot| slot.fill(byte)
    }

    fn keep(kept: &Kept, chunk: usize) -> Option<KeptCopy> {
        let slot = kept.slot(|| false, || true)?;
        Some(kept.fill(slot, chunk, filled_with(chunk as u8)))
    }

    #[test]
    fn copies_come_in_the_order_in_which_they_were_pushed() {
        let kept = Kept::new(2, 2).expect("there is memory");
        let [first, second] = [7, 5].map(|chunk| keep(&kept, chunk).expect("there is a slot"));
        kept.push(second);
        kept.push(first);
        for chunk in [5, 7] {
            let copy = kept.next().expect("it was pushed");
            assert_eq!(copy.chunk, chunk);
            assert!(kept.content(&copy).iter().all(|byte| *byte == chunk as u8));
            kept.give_back(copy);
        }
        assert!(kept.next().is_none() && kept.await_next(|| true).is_none());
    }

    #[test]
    fn who_finds_no_slot_waits_until_one_is_given_back() {
        let kept = Kept::new(1, 1).expect("there is memory");
        let copy = keep(&kept, 1).expect("there is a slot");
        assert!(keep(&kept, 2).is_none(), "and not if that is hopeless");
        thread::scope(|scope| {
            let waits = scope.spawn(|| kept.slot(|| false, || false));
            kept.give_back(copy);
            let slot = waits.join().expect("does not panic").expect("the slot was given back");
            assert!(keep(&kept, 2).is_none());
            kept.put_back(slot);
            assert!(keep(&kept, 2).is_some());
        });
    }

    #[test]
    fn memory_is_taken_only_if_there_is_room_which_is_not_asked_each_time() {
        let kept = Kept::new(ASKED_FOR + 2, 1).expect("there is memory");
        let (asked, is_room) = (Cell::new(0), Cell::new(true));
        let slot = || {
            let ask = || {
                asked.set(asked.get() + 1);
                is_room.get()
            };
            kept.slot(ask, || true)
        };
        assert!(kept.spare().is_none(), "it is for somebody who waits");
        assert!(slot().is_some() && asked.get() == 0, "memory was made ready for one");
        assert!((1..=ASKED_FOR).all(|_| slot().is_some()));
        assert_eq!(asked.get(), 1);
        is_room.set(false);
        assert!(slot().is_none() && asked.get() == 2);
        is_room.set(true);
        assert!(slot().is_some());
        assert!(slot().is_none() && asked.get() == 3, "there are no more slots");
    }
}
