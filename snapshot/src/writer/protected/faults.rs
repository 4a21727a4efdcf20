//! Who writes to protected RAM waits for this.
//!
//! ```text
//! before the cut    unprotect the chunk, and remember it                         loosen
//! after it          copy the chunk, unprotect it                                 release
//! ```

use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Acquire;
use std::sync::{MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::present::Scanner;
use super::super::priority;
use super::Shared;
use super::kept::{EmptySlot, KeptCopy};
use crate::limits::CHUNK_BYTES;

/// So many bytes are protected at a time while the guest runs, whose page faults wait for that.
const AHEAD: usize = 64 << 20;
/// If more pieces than this part of the chunks are not protected, it is quicker to protect all again.
const FEW: usize = 8;

impl Shared {
    /// The thread's that the guest waits for.
    pub(super) fn serve_faults(&self) {
        priority::come_first();
        let mut joins = self.is_crowded;
        // Before each wait: a word that says so may have been read as one of hot chunks.
        while !self.over.load(Acquire) {
            let mut ready =
                [PollFd::new(self.uffd.as_fd(), PollFlags::POLLIN), PollFd::new(self.word.as_fd(), PollFlags::POLLIN)];
            // An interrupted call is as good as one that says that there may be something.
            let _ = poll(&mut ready, PollTimeout::NONE);
            self.uffd.faults().for_each(|address| self.serve_fault(address));
            if joins && self.loose().as_ref().is_some_and(|loose| !loose.is_empty()) {
                // Its CPU idles while the guest waits for this thread, and in the pause, which whoever ends it ends elsewhere.
                self.aside.join();
                joins = false;
            }
            if ready[1].any() == Some(true) {
                let hot = self.hot().pop();
                match hot.and_then(|number| Some((number, self.kept.spare()?))) {
                    Some((number, slot)) => self.keep_now(number, slot),
                    // There is word no more.
                    None => _ = self.word.read(),
                }
            }
        }
    }

    fn serve_fault(&self, address: usize) {
        let Some(area) = self.areas.iter().find(|area| area.host.contains(&address)) else { return };
        let number = area.first + (address - area.host.start) / CHUNK_BYTES as usize;
        if !self.loosen(number) {
            self.release(number);
        }
    }

    /// Lets who writes there go on if it is before the cut; false if it is after it.
    fn loosen(&self, number: usize) -> bool {
        let mut loose = self.loose();
        let Some(loose) = &mut *loose else { return false };
        self.unprotect(&self.chunks[number].host);
        // Two may wait for one chunk.
        if !loose.ends_with(&[number]) {
            loose.push(number);
        }
        true
    }

    /// Lets who writes there go on, as soon as there is a copy.
    fn release(&self, number: usize) {
        let chunk = &self.chunks[number];
        // Once nobody wants a copy any more, the guest waits for none.
        let wanted = !chunk.is_taken() && !self.is_hopeless();
        match wanted.then(|| self.kept.slot(|| (self.room)() > 0, || self.is_hopeless())).flatten() {
            Some(slot) => self.keep_now(number, slot),
            None => self.unprotect(&chunk.host),
        }
    }

    /// Copies a chunk that nobody has taken, and lets who writes there go on.
    fn keep_now(&self, number: usize, slot: EmptySlot) {
        let chunk = &self.chunks[number];
        if chunk.take() {
            let copied = self.copy(number, slot);
            self.unprotect(&chunk.host);
            self.keep(copied);
        } else {
            self.unprotect(&chunk.host);
            self.kept.put_back(slot);
        }
    }

    /// The guest runs again: the caller copies what it will soon write to and the thread that it waits for has not come to.
    /// If it does write there it does not wait for this copy, which another thread may keep from being made.
    pub(super) fn copy_hot(&self) {
        let hot = mem::take(&mut *self.hot());
        for number in hot.into_iter().rev() {
            let chunk = &self.chunks[number];
            if chunk.is_taken() {
                continue;
            }
            let Some(slot) = self.kept.spare() else { return };
            let copied = self.copy(number, slot);
            if chunk.take() {
                self.unprotect(&chunk.host);
                self.keep(copied);
            } else {
                self.kept.give_back(copied);
            }
        }
    }

    fn copy(&self, number: usize, slot: EmptySlot) -> KeptCopy {
        self.kept.fill(slot, number, |to| self.chunks[number].copy(self.present(), to))
    }

    fn keep(&self, copied: KeptCopy) {
        self.written.lock().iter_mut().for_each(|written| written.push(copied.chunk));
        self.kept.push(copied);
    }

    /// The cut, in the guest's pause: protects what is not, which is what was loosened and what did not exist if all was
    /// protected `ahead`. What is hot is copied from now on.
    pub(super) fn cut(&self, scanner: Scanner, ahead: bool) -> io::Result<()> {
        // Until all is protected: a fault that is served late is of before the cut or after it.
        let mut state = self.loose();
        let loose = state.take().unwrap_or_default();
        self.protect_rest(scanner, ahead.then_some(&*loose))?;
        *self.hot() = hottest(&loose);
        drop(state);
        // A thread that has been told is not told twice.
        let _ = self.word.write(1);
        Ok(())
    }

    fn protect_rest(&self, mut scanner: Scanner, loose: Option<&[usize]>) -> io::Result<()> {
        let protected = scanner.look_again().and_then(|appeared| match loose {
            Some(loose) if loose.len() + appeared.len() <= self.chunks.len() / FEW => {
                let loose = loose.iter().map(|number| &self.chunks[*number].host);
                loose.chain(&appeared).try_for_each(|memory| self.uffd.protect(memory))
            }
            _ => self.areas.iter().try_for_each(|area| self.uffd.protect(&area.host)),
        });
        // Once only: the scanner is gone. Whoever waits for a page that is protected already waits for this.
        let _ = self.present.set(scanner.finish());
        protected
    }

    /// Protects all, while the guest runs.
    pub(super) fn protect_ahead(&self) -> io::Result<()> {
        let mut pieces = self.areas.iter().flat_map(|area| {
            let starts = area.host.clone().step_by(AHEAD);
            starts.map(|start| start..area.host.end.min(start + AHEAD))
        });
        pieces.try_for_each(|piece| self.uffd.protect(&piece))
    }

    pub(super) fn unprotect(&self, memory: &Range<usize>) {
        // It fails only for what is not registered any more, where nobody waits.
        let _ = self.uffd.unprotect(memory);
    }

    fn loose(&self) -> MutexGuard<'_, Option<Vec<usize>>> {
        self.loose.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hot(&self) -> MutexGuard<'_, Vec<usize>> {
        self.hot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the chunks that the guest wrote to before the cut, in this order, those that it will write to first after it, from
/// behind: where it was last; the first ones, for what it writes to all the time is among them; and the one before the last.
fn hottest(written: &[usize]) -> Vec<usize> {
    let (last, earlier) = match written {
        [] => return Vec::new(),
        [earlier @ .., last] => (*last, earlier),
    };
    let (first, rest) = earlier.split_at(earlier.len().min(2));
    rest.last().into_iter().chain(first).chain([&last]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_chunk_written_to_is_the_hottest_then_the_first_ones() {
        assert_eq!(hottest(&[]), [0; 0]);
        assert_eq!(hottest(&[7]), [7]);
        assert_eq!(hottest(&[7, 3]), [7, 3]);
        assert_eq!(hottest(&[7, 1, 3]), [7, 1, 3]);
        assert_eq!(hottest(&[7, 1, 2, 3, 4, 5]), [4, 7, 1, 5]);
    }
}
