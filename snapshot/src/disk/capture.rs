//! One disk on its way into an image.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::clusters::{Clusters, Next};
use super::{LiveDisk, lock};
use crate::error::{Error, Result};
use crate::files;
use crate::limits::SWEEP_BYTES;
use crate::progress::Progress;
use crate::sparse::{self, Named};

/// A capture, shared between the threads that change the disk and the one that sweeps.
#[derive(Debug)]
pub(crate) struct Capture {
    from: Arc<File>,
    /// The disk, for messages.
    label: PathBuf,
    to: File,
    path: PathBuf,
    bytes: u64,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug)]
struct Work {
    clusters: Clusters,
    failed: bool,
    /// Of the failure, until the sweep takes it.
    reason: Option<Error>,
}

impl Capture {
    /// Prepares to capture `disk`, which is `bytes` long, into the new, empty file `to`.
    pub(crate) fn new(disk: &LiveDisk, label: PathBuf, to: File, path: PathBuf, bytes: u64) -> Result<Self> {
        files::set_len(&to, &path, bytes)?;
        let work = Mutex::new(Work { clusters: Clusters::new(bytes), failed: false, reason: None });
        Ok(Capture { from: disk.shared_file(), label, to, path, bytes, work, changed: Condvar::new() })
    }

    /// The file that holds the captured disk.
    pub(crate) fn file(&self) -> Named<'_> {
        Named { file: &self.to, path: &self.path }
    }

    /// Length of the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Captures what nobody has captured yet.
    ///
    /// # Errors
    /// The first reason for which any part of the disk could not be captured; [`Error::Cancelled`].
    pub(crate) fn sweep(&self, progress: &Progress) -> Result<()> {
        let mut at = 0;
        while at < self.bytes {
            let end = (at + SWEEP_BYTES).min(self.bytes);
            self.take(at..end);
            if let Some(reason) = lock(&self.work).reason.take() {
                return Err(reason);
            }
            progress.advance(end - at)?;
            at = end;
        }
        Ok(())
    }

    /// Returns when these bytes are captured, or the capture has failed.
    pub(super) fn take(&self, bytes: Range<u64>) {
        let mut work = lock(&self.work);
        while !work.failed {
            match work.clusters.claim(&bytes, SWEEP_BYTES) {
                Next::Done => return,
                Next::Wait => work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner),
                Next::Capture(run) => {
                    drop(work);
                    let copied = sparse::copy_range(self.named(), self.file(), run.clone(), self.bytes);
                    work = lock(&self.work);
                    match copied {
                        Ok(()) => work.clusters.captured(&run),
                        Err(error) => (work.failed, work.reason) = (true, Some(error)),
                    }
                    self.changed.notify_all();
                }
            }
        }
    }

    fn named(&self) -> Named<'_> {
        Named { file: &self.from, path: Path::new(&self.label) }
    }
}
