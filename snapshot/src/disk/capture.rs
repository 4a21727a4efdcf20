//! One disk on its way into an image.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use uuid::Uuid;

use super::clusters::{Bits, Clusters, Next};
use super::{Changes, LiveDisk, lock};
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::large::LargeFile;
use crate::layers::{Changed, PageSet};
use crate::limits::{CHUNK_BYTES, CLUSTER_BYTES, PAGE_BYTES, SWEEP_BYTES};
use crate::progress::Progress;
use crate::sparse::{self, Named};
use crate::tag::Chunk;

/// A capture, shared between the threads that change the disk and the one that sweeps.
#[derive(Debug)]
pub(crate) struct Capture {
    /// The checkpoint that it is for.
    id: Uuid,
    from: Arc<File>,
    /// The checkpoint that has what is not captured, if this one is to build on it and the disk's changes since are
    /// known.
    base: Option<Base>,
    /// The disk, for messages.
    label: PathBuf,
    to: File,
    path: PathBuf,
    bytes: u64,
    work: Mutex<Work>,
    changed: Condvar,
}

/// The disk in the image that is built on.
#[derive(Debug)]
struct Base {
    image: Arc<Image>,
    disk: String,
    /// What is to be captured anyway, so that one of its layers is needed no more.
    folded: Option<Bits>,
}

impl Base {
    fn file(&self) -> Option<&LargeFile> {
        self.image.disk(&self.disk)
    }
}

#[derive(Debug)]
struct Work {
    /// The changes before the cut; outer `None` until then.
    before: Option<Option<Changes>>,
    /// What of the disk is captured; all if nothing is said.
    wanted: Option<Arc<Bits>>,
    clusters: Clusters,
    failed: bool,
    /// Of the failure, until the sweep takes it.
    reason: Option<Error>,
}

impl Capture {
    /// Prepares to capture `disk`, which is `bytes` long, for the checkpoint `id` into the new, empty file `to`.
    pub(crate) fn new(disk: &LiveDisk, id: Uuid, label: PathBuf, to: File, path: PathBuf, bytes: u64) -> Result<Self> {
        files::set_len(&to, &path, bytes)?;
        let work = Work { before: None, wanted: None, clusters: Clusters::new(bytes), failed: false, reason: None };
        let (work, changed) = (Mutex::new(work), Condvar::new());
        Ok(Capture { id, from: disk.shared_file(), base: None, label, to, path, bytes, work, changed })
    }

    /// Captures only what has changed since `image`, if it has the disk `disk` of the same length and the changes since
    /// are known.
    pub(crate) fn build_on(&mut self, image: &Arc<Image>, disk: &str) {
        let Some(file) = image.disk(disk).filter(|file| file.map.file_bytes() == self.bytes) else { return };
        let chunks: Vec<Chunk> = file.map.chunks().map(|(_, chunk)| chunk).collect();
        let folded = file.layers.to_fold(chunks.len()).map(|layer| {
            let mut folded = Bits::of_disk(self.bytes);
            for (index, _) in chunks.iter().enumerate().filter(|(_, chunk)| **chunk != Chunk::Zero) {
                let start = index as u64 * CHUNK_BYTES;
                let runs = file.layers.runs(start..(start + CHUNK_BYTES).min(self.bytes));
                runs.filter(|(holder, _)| *holder == usize::from(layer)).for_each(|(_, run)| folded.set_bytes(&run));
            }
            folded
        });
        self.base = Some(Base { image: Arc::clone(image), disk: disk.to_owned(), folded });
    }

    /// The instant of which the disk is captured; `before` are the changes until then.
    pub(super) fn cut(&self, before: Option<Changes>) {
        let mut work = lock(&self.work);
        if let (Some(base), Some(before)) = (&self.base, &before)
            && before.since == base.image.manifest().id
        {
            let mut wanted = Arc::clone(&before.clusters);
            base.folded.iter().for_each(|folded| Arc::make_mut(&mut wanted).add(folded));
            work.clusters.want(Arc::clone(&wanted));
            work.wanted = Some(wanted);
        }
        work.before = Some(before);
    }

    /// The changes before the cut; `None` if there was none.
    pub(super) fn take_changes(&self) -> Option<Option<Changes>> {
        lock(&self.work).before.take()
    }

    /// The checkpoint that it is for.
    pub(super) fn id(&self) -> Uuid {
        self.id
    }

    /// The file that the capture builds on, and the checkpoint that it is of.
    pub(crate) fn base(&self) -> Option<(&LargeFile, &Image)> {
        let base = self.base.as_ref().filter(|_| lock(&self.work).wanted.is_some())?;
        Some((base.file()?, &base.image))
    }

    /// What of each chunk is captured.
    pub(crate) fn changed(&self) -> Vec<Changed> {
        let wanted = lock(&self.work).wanted.clone();
        let map = self.base.as_ref().and_then(Base::file).map(|file| &file.map);
        let (Some(wanted), Some(map)) = (wanted, map) else { return Vec::new() };
        map.chunks().map(|(range, old)| changed(&wanted, range, old)).collect()
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

/// What of one chunk is captured. What was zero needs no layer but the image's own, which has holes there.
fn changed(wanted: &Bits, range: Range<u64>, old: Chunk) -> Changed {
    let first = range.start / CLUSTER_BYTES;
    let clusters = range.end.div_ceil(CLUSTER_BYTES) - first;
    match (0..clusters).filter(|cluster| wanted.get(first + cluster)).count() as u64 {
        0 => Changed::Nothing,
        _ if old == Chunk::Zero => Changed::All,
        count if count == clusters => Changed::All,
        _ => {
            let mut set = PageSet::default();
            for page in 0..(CHUNK_BYTES / PAGE_BYTES) as usize {
                let cluster = page as u64 * PAGE_BYTES / CLUSTER_BYTES;
                if cluster >= clusters || wanted.get(first + cluster) {
                    set.insert(page);
                }
            }
            Changed::Pages(set)
        }
    }
}
