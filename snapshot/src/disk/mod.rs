//! A disk that a guest writes to, captured as it was at one instant without the guest waiting for it: copy before
//! write.
//!
//! ```text
//! cut        an epoch flips: from now on nothing may be changed that is not captured
//! guest      write ─▶ before_change: the clusters' old content goes into the image ─▶ the write, in place
//! sweep      cluster after cluster that nobody has captured yet
//! ```
//!
//! So the live disk always holds every write and flush that the guest was told of, whatever becomes of the checkpoint
//! or of this process.
//!
//! Invariants: a cluster is captured once, by whoever claims it first, and not changed before that; at the cut no change
//! is under way. A capture that fails lets every change pass from then on: the checkpoint fails, not the guest.
//!
//! Lock order: `LiveDisk::capture`, then `Capture::clusters`; no lock is held while bytes move.

mod capture;
mod clusters;

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(crate) use capture::Capture;

/// The file or block device behind a disk. Whoever changes it says so before.
#[derive(Debug)]
pub struct LiveDisk {
    file: Arc<File>,
    /// The capture that is under way.
    capture: Mutex<Option<Arc<Capture>>>,
}

impl LiveDisk {
    /// A disk in `file`, which is open for reading at least.
    pub fn new(file: File) -> Self {
        LiveDisk { file: Arc::new(file), capture: Mutex::new(None) }
    }

    /// What holds the disk's contents. Call [`LiveDisk::before_change`] before changing it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns when these bytes of the disk may be changed: at once, unless a capture still needs what is there.
    /// A cut may not come between this and the change.
    pub fn before_change(&self, bytes: Range<u64>) {
        let capture = lock(&self.capture).clone();
        if let Some(capture) = capture {
            capture.take(bytes);
        }
    }

    pub(crate) fn shared_file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// From now on `capture` sees every change before it is made.
    pub(crate) fn begin(&self, capture: &Arc<Capture>) {
        *lock(&self.capture) = Some(Arc::clone(capture));
    }

    /// `capture` is complete, or not wanted any more.
    pub(crate) fn end(&self, capture: &Arc<Capture>) {
        let mut current = lock(&self.capture);
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, capture)) {
            *current = None;
        }
    }
}

/// A thread that panicked elsewhere leaves these values whole: they change in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
