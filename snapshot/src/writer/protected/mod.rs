//! Guest RAM that is protected against writing at the cut, and copied before the guest writes to it.
//!
//! ```text
//! prepare   register memory · slots · threads · a child without guest RAM        the guest runs
//! protect   protect all of it · look which pages there are                       in its pause
//! fault     copy the chunk · unprotect it                                        who writes there waits meanwhile
//! copier    copy, tag and hand to the child: these copies, all other chunks      the guest runs
//! ```
//!
//! A fork copies page tables while the guest stands still, and its huge pages are split as the guest writes. Here neither
//! happens: to protect a huge page is to change one entry, and the guest waits once for each 2 MiB that it writes to,
//! for a copy that no other CPU is disturbed by. The memory that copies take is bounded: a guest that is faster than the
//! child waits. The child has no guest RAM, only the slots that it is handed chunks in.
//!
//! Invariants: a chunk is copied while all of its pages that were there at the cut are protected: who copies takes the
//! chunk before it is unprotected, and what another one had taken by the end of the copy is not used. Of the copies of a
//! chunk only that of the first one who took it is handed over.

mod chunks;
mod kept;
mod lent;
mod order;
mod present;
mod slots;
mod uffd;

use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use self::lent::{Copies, Habits, Lent};
pub(super) use self::order::Order;
pub(super) use self::slots::Slots;

use self::chunks::{Area, Chunk};
use self::kept::{Kept, KeptCopy};
use self::order::Copied;
use self::present::{Present, Scanner};
use self::slots::FreeSlot;
use self::uffd::Uffd;
use super::priority;
use crate::aside::Aside;
use crate::limits::CHUNK_BYTES;
use crate::memory::PlannedChunk;
use crate::tag::{ChunkTagger, Tagging};

/// Copies that there is memory ready for, of a guest of which nothing is known.
const READY: usize = 16;

/// Whether this process can protect RAM.
///
/// # Errors
/// Why not: the kernel is older than Linux 6.7, or it may not.
pub fn can_protect() -> io::Result<()> {
    Uffd::open()?;
    Scanner::new()?;
    Ok(())
}

/// Guest RAM that is, or is going to be, protected; it is not when this is dropped.
pub(super) struct Protection {
    shared: Arc<Shared>,
    scanner: Option<Scanner>,
    order: Order,
    faults: Option<JoinHandle<()>>,
    copier: Option<JoinHandle<()>>,
}

struct Shared {
    uffd: Uffd,
    areas: Vec<Area>,
    /// By number.
    chunks: Vec<Chunk>,
    present: OnceLock<Present>,
    kept: Kept,
    slots: Slots,
    has_room: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Whom the copier keeps off.
    aside: Aside,
    tagging: Tagging,
    /// What was written to.
    written: Mutex<Vec<usize>>,
    /// Says when the child has ended.
    child: OnceLock<OwnedFd>,
    over: AtomicBool,
    stop: EventFd,
    habits: Arc<Habits>,
    /// Areas and chunks are addresses in it.
    _mapping: Arc<dyn Any + Send + Sync>,
}

impl Protection {
    /// Makes ready to protect `lent`, of which `planned` are the chunks by number, copied in the order `order`. Copier and
    /// child work at the same time if the host is roomy.
    pub(super) fn prepare(
        lent: Lent,
        planned: &[PlannedChunk],
        order: Order,
        (is_roomy, aside): (bool, Aside),
        tagging: Tagging,
    ) -> io::Result<Protection> {
        let Lent { memory, mapping, habits, copies } = lent;
        let (uffd, mut scanner, stop) = (Uffd::open()?, Scanner::new()?, EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (chunks, areas) = chunks::of(&memory, planned)?;
        let slots_in = |bytes| usize::try_from(bytes / CHUNK_BYTES).unwrap_or(usize::MAX);
        let ready = order.habits.max(READY).min(slots_in(copies.ready_bytes));
        let kept = Kept::new(slots_in(copies.most_bytes).clamp(1, chunks.len().max(1)), ready.max(1))?;
        let slots = Slots::new(chunks.len(), is_roomy)?;
        let shared = Arc::new(Shared {
            uffd,
            areas,
            chunks,
            present: OnceLock::new(),
            kept,
            slots,
            has_room: copies.has_room,
            aside,
            tagging,
            written: Mutex::default(),
            child: OnceLock::new(),
            over: AtomicBool::new(false),
            stop,
            habits,
            _mapping: mapping,
        });
        scanner.look(shared.areas.iter().map(|area| &area.host))?;
        let mut protection =
            Protection { shared: Arc::clone(&shared), scanner: Some(scanner), order, faults: None, copier: None };
        shared.areas.iter().try_for_each(|area| shared.uffd.register(&area.host))?;
        let faults = thread::Builder::new().name("faults".into()).spawn(move || shared.serve_faults())?;
        protection.faults = Some(faults);
        Ok(protection)
    }

    /// Does something in this process that shall not see the RAM: a fork.
    pub(super) fn without_ram<T>(&self, act: impl FnOnce() -> T) -> T {
        let advise = |advice| self.shared.areas.iter().for_each(|area| area.advise(advice));
        advise(libc::MADV_DONTFORK);
        let done = act();
        advise(libc::MADV_DOFORK);
        done
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.shared.slots
    }

    /// `child` is who is handed the chunks: it says when that has ended.
    pub(super) fn serve(&self, child: OwnedFd) {
        // There is one child.
        let _ = self.shared.child.set(child);
    }

    /// Protects: chunks are copied as they are now.
    pub(super) fn protect(&mut self) -> io::Result<()> {
        let Some(mut scanner) = self.scanner.take() else { return Ok(()) };
        let mut areas = self.shared.areas.iter();
        let protected =
            areas.try_for_each(|area| self.shared.uffd.protect(&area.host)).and_then(|()| scanner.look_again());
        // Once only: the scanner is gone. Whoever waits for a page that is protected already waits for this.
        let _ = self.shared.present.set(scanner.finish());
        protected
    }

    /// Begins to copy what nobody writes to, `nice` behind others.
    pub(super) fn begin(&mut self, nice: libc::c_int) -> io::Result<()> {
        if self.copier.is_none() {
            let (shared, order) = (Arc::clone(&self.shared), std::mem::take(&mut self.order));
            let copy = move || {
                priority::stand_back(nice);
                shared.copy_all(&order);
            };
            self.copier = Some(thread::Builder::new().name("copier".into()).spawn(copy)?);
        }
        Ok(())
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.over.store(true, Relaxed);
        // Neither panics; and what one of them had to say, nobody wants to hear any more.
        let _ = self.copier.take().map(JoinHandle::join);
        // Whoever waits goes on. It fails only for what was never registered.
        shared.areas.iter().for_each(|area| _ = shared.uffd.unregister(&area.host));
        let _ = shared.stop.write(1);
        let _ = self.faults.take().map(JoinHandle::join);
        let written = shared.written.lock().map_or_else(|_| Vec::new(), |mut written| std::mem::take(&mut *written));
        if shared.present.get().is_some() {
            shared.habits.are(written);
        }
    }
}

impl Shared {
    /// The thread's that the guest waits for.
    fn serve_faults(&self) {
        priority::come_first();
        loop {
            let mut ready =
                [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN), PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
            // An interrupted call is as good as one that says that there may be something.
            let _ = poll(&mut ready, PollTimeout::NONE);
            if ready[1].any() == Some(true) {
                return;
            }
            self.uffd.faults().for_each(|address| self.serve_fault(address));
        }
    }

    fn serve_fault(&self, address: usize) {
        let Some(area) = self.areas.iter().find(|area| area.host.contains(&address)) else { return };
        let number = area.first + (address - area.host.start) / CHUNK_BYTES as usize;
        let chunk = &self.chunks[number];
        let mut copied = None;
        // Once nobody wants a copy any more, the guest waits for none.
        if !chunk.taken.swap(true, AcqRel) && !self.is_hopeless() {
            let copy = |to: &mut [u8]| chunk.copy(self.present(), to);
            copied = self.kept.keep(number, &*self.has_room, || self.is_hopeless(), copy);
        }
        self.unprotect(&chunk.host);
        if let Some(copied) = copied {
            self.kept.push(copied);
            self.written.lock().iter_mut().for_each(|written| written.push(number));
        }
    }

    /// The copier's work.
    fn copy_all(&self, order: &Order) {
        let (mut aside, mut copied, mut child) = (self.aside.steps(), Copied::default(), self.slots.sender());
        let mut tagger = ChunkTagger::new(self.tagging);
        for (nth, number) in order.chunks.iter().enumerate() {
            let chunk = &self.chunks[*number];
            while !chunk.taken.load(Relaxed) {
                if self.present().of(&chunk.host).next().is_none() {
                    // Nobody waits for it either.
                    if !chunk.taken.swap(true, AcqRel) {
                        child.hand_zero(*number);
                    }
                    break;
                }
                let Some(mut slot) = child.slot(|| self.is_hopeless()) else { return };
                aside.step();
                // The guest may wait for the memory that a kept copy is in.
                if let Some(kept) = self.kept.next() {
                    self.hand_over(kept, slot, &mut tagger);
                    continue;
                }
                let held = chunk.copy_tagging(self.present(), slot.content(), &mut tagger);
                if !chunk.taken.swap(true, AcqRel) {
                    copied.add(&chunk.host, nth < order.habits).for_each(|memory| self.unprotect(&memory));
                    slot.hand(*number, held);
                }
            }
        }
        copied.finish().iter().for_each(|memory| self.unprotect(memory));
        // All others are taken, and kept or about to be.
        while child.handed() < self.chunks.len() {
            let Some(kept) = self.kept.await_next(|| self.is_hopeless()) else { return };
            let Some(slot) = child.slot(|| self.is_hopeless()) else { return };
            self.hand_over(kept, slot, &mut tagger);
        }
    }

    fn hand_over(&self, kept: KeptCopy, mut slot: FreeSlot<'_, '_>, tagger: &mut ChunkTagger) {
        let (number, chunk) = (kept.chunk, &self.chunks[kept.chunk]);
        let held = chunk.copy_again(self.kept.content(&kept), slot.content(), tagger);
        // The guest may wait for that.
        self.kept.give_back(kept);
        slot.hand(number, held);
    }

    fn unprotect(&self, memory: &Range<usize>) {
        // It fails only for what is not registered any more, where nobody waits.
        let _ = self.uffd.unprotect(memory);
    }

    /// Those at the cut. Nobody asks before.
    fn present(&self) -> &Present {
        self.present.wait()
    }

    /// Whether nobody takes chunks any more.
    fn is_hopeless(&self) -> bool {
        let ended = |child: &OwnedFd| {
            let mut ended = [PollFd::new(child.as_fd(), PollFlags::POLLIN)];
            poll(&mut ended, PollTimeout::ZERO).is_ok_and(|ended| ended > 0)
        };
        self.over.load(Relaxed) || self.child.get().is_none_or(ended)
    }
}
