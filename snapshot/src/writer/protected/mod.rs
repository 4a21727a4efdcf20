//! Guest RAM that is protected against writing at the cut, and copied before the guest writes to it.
//!
//! ```text
//! prepare   register memory · slots · threads · a child without guest RAM        the guest runs
//! ahead     protect all of it · whoever writes there goes on and is remembered   the guest runs
//! protect   protect that again · look which pages there are · copy some of it    in its pause
//! fault     copy the chunk · unprotect it                                        who writes there waits meanwhile
//! copier    copy, tag and hand to the child: these copies, all other chunks      the guest runs
//!           or write them itself ([`straight`]), and tell the child
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
mod copier;
mod faults;
mod kept;
mod lent;
mod order;
mod slots;
mod straight;
mod stream;
mod uffd;

use std::any::Any;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub(super) use self::copier::Task;
pub use self::lent::{Copies, Habits, Lent};
pub(super) use self::order::Order;
pub(super) use self::slots::{Handed, Slots};
pub(super) use self::straight::Straight;

use self::chunks::{Area, Chunk};
use self::kept::Kept;
use self::uffd::Uffd;
use super::present::{Present, Scanner};
use super::priority;
use crate::aside::Aside;
use crate::limits::CHUNK_BYTES;
use crate::memory::PlannedChunk;

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
    faults: Option<JoinHandle<()>>,
    copier: Option<JoinHandle<()>>,
    /// RAM is protected, but for what is loose.
    is_ahead: bool,
}

struct Shared {
    uffd: Uffd,
    areas: Vec<Area>,
    /// By number.
    chunks: Vec<Chunk>,
    present: OnceLock<Present>,
    kept: Kept,
    slots: Slots,
    room: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Whom the copier keeps off.
    aside: Aside,
    /// There is no CPU for the thread that serves faults beside the guest and whoever ends its pause.
    is_crowded: bool,
    /// Before the cut: what the guest has written to since RAM was protected.
    loose: Mutex<Option<Vec<usize>>>,
    /// Chunks to copy in the pause, before anybody waits for them, the last one first.
    hot: Mutex<Vec<usize>>,
    /// The guest runs again.
    begun: OnceLock<()>,
    /// What was written to, or was about to be.
    written: Mutex<Vec<usize>>,
    /// Says when the child has ended.
    child: OnceLock<OwnedFd>,
    over: AtomicBool,
    /// For the thread that serves faults: it is over, or there are hot chunks.
    word: EventFd,
    habits: Arc<Habits>,
    /// Areas and chunks are addresses in it.
    _mapping: Arc<dyn Any + Send + Sync>,
}

impl Protection {
    /// Makes ready to protect `lent`, of which `planned` are the chunks by number, for a copier that stands `nice` behind
    /// others. Copier and child work at the same time if the host is roomy.
    pub(super) fn prepare(
        lent: Lent,
        planned: &[PlannedChunk],
        task: Task,
        is_roomy: bool,
        nice: libc::c_int,
        aside: Aside,
    ) -> io::Result<Protection> {
        let Lent { memory, mapping, habits, copies } = lent;
        let (uffd, mut scanner, word) = (Uffd::open()?, Scanner::new()?, EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let (chunks, areas) = chunks::of(&memory, planned)?;
        let slots_in = |bytes| usize::try_from(bytes / CHUNK_BYTES).unwrap_or(usize::MAX);
        let ready = task.order.habits.max(READY).min(slots_in(copies.ready_bytes));
        let kept = Kept::new(slots_in(copies.most_bytes).clamp(1, chunks.len().max(1)), ready.max(1))?;
        let slots = Slots::new(chunks.len(), is_roomy)?;
        let shared = Arc::new(Shared {
            uffd,
            areas,
            chunks,
            present: OnceLock::new(),
            kept,
            slots,
            room: copies.room,
            aside,
            is_crowded: !is_roomy,
            loose: Mutex::new(Some(Vec::new())),
            hot: Mutex::default(),
            begun: OnceLock::new(),
            written: Mutex::default(),
            child: OnceLock::new(),
            over: AtomicBool::new(false),
            word,
            habits,
            _mapping: mapping,
        });
        scanner.look(shared.areas.iter().map(|area| &area.host))?;
        let mut protection = Protection {
            shared: Arc::clone(&shared),
            scanner: Some(scanner),
            faults: None,
            copier: None,
            is_ahead: false,
        };
        shared.areas.iter().try_for_each(|area| shared.uffd.register(&area.host))?;
        let serve = Arc::clone(&shared);
        protection.faults = Some(thread::Builder::new().name("faults".into()).spawn(move || serve.serve_faults())?);
        let copy = move || {
            priority::stand_back(nice);
            shared.copy_all(task);
        };
        protection.copier = Some(thread::Builder::new().name("copier".into()).spawn(copy)?);
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

    /// The RAM.
    pub(super) fn memory(&self) -> impl Iterator<Item = &Range<usize>> + Clone {
        self.shared.areas.iter().map(|area| &area.host)
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.shared.slots
    }

    /// `child` is who is handed the chunks: it says when that has ended.
    pub(super) fn serve(&self, child: OwnedFd) {
        // There is one child.
        let _ = self.shared.child.set(child);
    }

    /// Protects while the guest still runs: little is left for its pause, and what it has at hand then is not taken from it.
    pub(super) fn protect_ahead(&mut self) {
        // Where it fails, it fails again at the cut.
        self.is_ahead = self.shared.protect_ahead().is_ok();
    }

    /// Protects: chunks are copied as they are now.
    pub(super) fn protect(&mut self) -> io::Result<()> {
        self.scanner.take().map_or(Ok(()), |scanner| self.shared.cut(scanner, self.is_ahead))
    }

    /// Begins to copy what nobody writes to, once the guest runs.
    pub(super) fn begin(&self) {
        self.shared.copy_hot();
        // Once more is as good.
        let _ = self.shared.begun.set(());
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.over.store(true, Release);
        let _ = shared.begun.set(());
        // First: whoever waits goes on, and nobody will wait any more. It fails only for what was never registered.
        shared.areas.iter().for_each(|area| _ = shared.uffd.unregister(&area.host));
        let _ = shared.word.write(1);
        // Neither panics; and what one of them had to say, nobody wants to hear any more.
        let _ = self.copier.take().map(JoinHandle::join);
        let _ = self.faults.take().map(JoinHandle::join);
        let written = shared.written.lock().map_or_else(|_| Vec::new(), |mut written| std::mem::take(&mut *written));
        if shared.present.get().is_some() {
            shared.habits.are(written);
        }
    }
}

impl Shared {
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
        self.over.load(Acquire) || self.child.get().is_none_or(ended)
    }
}
