//! A disk that a guest writes to, captured as it was at one instant without the guest waiting for it: copy before
//! write.
//!
//! ```text
//! cut        an epoch flips: from now on nothing may be changed that is not captured
//! guest      write ─▶ before_change: the clusters' old content goes into the image ─▶ the write, in place
//! sweep      cluster after cluster that nobody has captured yet
//! ```
//!
//! What has changed since a cut is known, by clusters: the next capture need only take these. If the capture of a cut
//! fails, its changes are added to those since.
//!
//! So the live disk always holds every write and flush that the guest was told of, whatever becomes of the checkpoint
//! or of this process.
//!
//! Invariants: a cluster is captured once, by whoever claims it first, and not changed before that; at the cut no change
//! is under way. A capture that fails lets every change pass from then on: the checkpoint fails, not the guest.
//!
//! Lock order: `LiveDisk::now`, then `Capture::clusters`; no lock is held while bytes move.

mod capture;
mod clusters;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

pub(crate) use self::capture::Capture;
use self::clusters::Bits;
use crate::limits::CLUSTER_BYTES;

/// What stat(2) counts a file's blocks in.
const BLOCK_BYTES: u64 = 512;

/// The file or block device behind a disk. Whoever changes it says so before.
#[derive(Debug)]
pub struct LiveDisk {
    file: Arc<File>,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    /// The capture that is under way.
    capture: Option<Arc<Capture>>,
    changes: Option<Changes>,
}

/// What has been changed since a cut.
#[derive(Debug)]
struct Changes {
    /// The checkpoint that has the disk as it was then.
    since: Uuid,
    clusters: Arc<Bits>,
}

impl Changes {
    fn none(since: Uuid, disk_bytes: u64) -> Self {
        Changes { since, clusters: Arc::new(Bits::of_disk(disk_bytes)) }
    }
}

impl LiveDisk {
    /// A disk in `file`, which is open for reading at least.
    pub fn new(file: File) -> Self {
        LiveDisk { file: Arc::new(file), now: Mutex::default() }
    }

    /// Says that the disk, `bytes` long, is as the checkpoint `id` has it, and nobody has changed it since.
    pub fn is_as_in(&self, id: Uuid, bytes: u64) {
        lock(&self.now).changes = Some(Changes::none(id, bytes));
    }

    /// What holds the disk's contents. Call [`LiveDisk::before_change`] before changing it.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// About how many bytes the next capture takes: what has changed since the last one; without one all but holes.
    pub fn bytes_to_capture(&self) -> u64 {
        if let Some(changes) = &lock(&self.now).changes {
            return changes.clusters.count() * CLUSTER_BYTES;
        }
        // Of a block device this is 0, and so is what is known of it.
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * BLOCK_BYTES)
    }

    /// Returns when these bytes of the disk may be changed: at once, unless a capture still needs what is there.
    /// A cut may not come between this and the change.
    pub fn before_change(&self, bytes: Range<u64>) {
        let mut now = lock(&self.now);
        if let Some(changes) = &mut now.changes {
            // Nobody else has it: whoever takes it leaves another one here.
            Arc::make_mut(&mut changes.clusters).set_bytes(&bytes);
        }
        let capture = now.capture.clone();
        drop(now);
        if let Some(capture) = capture {
            capture.take(bytes);
        }
    }

    pub(crate) fn shared_file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// From now on `capture` sees every change before it is made.
    pub(crate) fn begin(&self, capture: &Arc<Capture>) {
        let mut now = lock(&self.now);
        let before = now.changes.replace(Changes::none(capture.id(), capture.bytes()));
        capture.cut(before);
        now.capture = Some(Arc::clone(capture));
    }

    /// `capture` is complete, or not wanted any more.
    pub(crate) fn end(&self, capture: &Arc<Capture>) {
        let mut now = lock(&self.now);
        if now.capture.as_ref().is_some_and(|current| Arc::ptr_eq(current, capture)) {
            now.capture = None;
        }
    }

    /// No checkpoint comes of `capture`: what has changed since it began has changed since the one before.
    pub(crate) fn give_up(&self, capture: &Arc<Capture>) {
        self.end(capture);
        let Some(before) = capture.take_changes() else { return };
        let mut now = lock(&self.now);
        now.changes = match (before, now.changes.take()) {
            (Some(mut before), Some(since)) => {
                Arc::make_mut(&mut before.clusters).add(&since.clusters);
                Some(before)
            }
            _ => None,
        };
    }
}

/// A thread that panicked elsewhere leaves these values whole: they change in single steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
