//! The forked writer: a child process that writes guest RAM as it was at the fork, while the guest goes on.
//!
//! ```text
//! parent   prepare │ fork │ resume, begin │ the guest runs            │ wait: map, digest, commit
//! child            └──────────────────────┤ chunk by chunk: copy out, digest, write, give back │ exit
//! results                   a shared page table of chunks: ▓▓▓▓▓▓░░░░░░
//! ```
//!
//! The fork copies page tables, not pages: of what the guest writes afterwards the kernel makes copies, page by page,
//! until the child has given the page back.
//!
//! Invariants: the child comes from a process of many threads, so it takes no lock and allocates nothing; all that it
//! needs is prepared. It keeps no descriptors of its parent but those of memory files: not KVM's, or the machine of a dead VMM
//! would live on, and not a lock's. It does not outlive its parent. It is reaped before its results are read.

mod child;
mod results;
mod tables;

use std::fmt;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use vm_memory::GuestMemoryMmap;

use self::child::Child;
use self::results::Results;
use crate::chunk_map::{ChunkMap, Region, chunk_ranges};
use crate::chunk_writer::{Base, ChunkWriter, Trouble};
use crate::digest::Chunk;
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::layers::{Changed, Layers, Rebase};
use crate::limits::PAGE_BYTES;
use crate::memory::{self, PlannedChunk, Run};
use crate::progress::{Phase, Progress};
use crate::write_out;

/// All that is needed to write guest RAM; made while the guest still runs.
pub struct PreparedWriter {
    target: Target,
    /// Large, and passed on while the guest stands still.
    chunks: Box<ChunkWriter>,
    /// In the order in which they are written, with their numbers.
    order: Vec<(usize, PlannedChunk)>,
    /// The descriptors that a child needs, ascending.
    descriptors: Vec<RawFd>,
    /// How far a child stands back.
    nice: i32,
}

/// A child that writes guest RAM. It is killed if this is dropped.
#[derive(Debug)]
pub struct ForkedWriter {
    /// What the child has a copy of. To free what is not needed here any more takes time, which the guest's pause need not
    /// last.
    writer: PreparedWriter,
    child: Child,
}

/// The host has no child for this writer.
pub struct Refused {
    /// [`Error::Writer`], with the system's reason.
    pub error: Error,
    /// As it was: what it would have written can be written without a child.
    pub writer: PreparedWriter,
}

impl fmt::Debug for PreparedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// The memory file that is written, and what is known of its chunks.
#[derive(Debug)]
struct Target {
    file: File,
    path: PathBuf,
    regions: Vec<Region>,
    results: Results,
    base: Option<Arc<Image>>,
}

/// A memory file that is written; it is not durable yet.
#[derive(Debug)]
pub(crate) struct WrittenMemory {
    pub(crate) file: File,
    pub(crate) map: ChunkMap,
    pub(crate) layers: Layers,
    /// Bytes in the file, but for zeros.
    pub(crate) own_bytes: u64,
}

impl PreparedWriter {
    /// Prepares to write `memory`, over which a file is mapped in the runs `mapped`, to the new, empty file `file`; only
    /// what is not as in the memory of `base`, if there is one that has the same regions.
    pub(crate) fn new(
        memory: &GuestMemoryMmap,
        mapped: &[Run],
        base: Option<Arc<Image>>,
        file: File,
        path: PathBuf,
    ) -> Result<Self> {
        let regions = memory::lay_out(memory)?;
        let base = base.filter(|base| base.memory().regions() == regions);
        let file_bytes = memory::file_bytes(&regions);
        files::set_len(&file, &path, file_bytes)?;
        let results = Results::new(chunk_ranges(file_bytes).count()).map_err(no_writer)?;
        let chunks = Box::new(ChunkWriter::new(mapped, base.clone().map(Base::new), &file));
        let mut descriptors: Vec<RawFd> = chunks.descriptors().chain([file.as_raw_fd()]).collect();
        descriptors.sort_unstable();
        let mut order: Vec<_> = memory::plan(&regions).enumerate().collect();
        // What changed before the last checkpoint will change again soon: what is given back by then costs no copy.
        order.sort_by_key(|(index, _)| !base.as_ref().is_some_and(|base| base.memory().0.layers.holds(*index, 0)));
        let target = Target { file, path, regions, results, base };
        Ok(PreparedWriter { target, chunks, order, descriptors, nice: child::niceness(1, 1) })
    }

    /// Shortens the next [`PreparedWriter::fork`] of this thread, whose child works beside a guest of `vcpus`. To be called
    /// just before the guest is stopped for it.
    pub fn expect_fork(&mut self, vcpus: usize) {
        self.nice = child::niceness(vcpus, thread::available_parallelism().map_or(1, NonZero::get));
        // A chunk is as large as a huge page.
        tables::make_ready(self.order.len());
    }

    /// Forks the child, which has the memory as it is now and waits for [`ForkedWriter::begin`]. `memory` must not change
    /// before this returns.
    ///
    /// # Errors
    /// If the host has no process or no memory for it.
    pub fn fork(self, memory: &GuestMemoryMmap) -> Result<ForkedWriter, Box<Refused>> {
        let mut writer = self;
        let PreparedWriter { target, chunks, order, descriptors, nice } = &mut writer;
        let work = || {
            target.results.await_begin();
            match target.write(memory, chunks, order, |planned| {
                child::give_back(memory, planned);
                Ok(())
            }) {
                Ok(()) => 0,
                Err(Stop::Trouble(trouble)) => {
                    target.results.fail(&trouble);
                    1
                }
                Err(Stop::Cancelled(_)) => 2,
            }
        };
        match child::fork(descriptors, *nice, work) {
            Ok(child) => Ok(ForkedWriter { writer, child }),
            Err(source) => Err(Box::new(Refused { error: no_writer(source), writer })),
        }
    }

    /// Writes here and now. `memory` must not change before this returns.
    pub(crate) fn write(self, memory: &GuestMemoryMmap, progress: &Progress) -> Result<WrittenMemory> {
        let PreparedWriter { target, mut chunks, order, .. } = self;
        target.begin(progress);
        match target.write(memory, &mut chunks, &order, |_| progress.reach(target.results.bytes_done())) {
            Ok(()) => Ok(target.finish()),
            Err(Stop::Trouble(trouble)) => Err(target.error(trouble)),
            Err(Stop::Cancelled(error)) => Err(error),
        }
    }
}

/// Why the work ends early.
enum Stop {
    Trouble(Trouble),
    Cancelled(Error),
}

impl Target {
    /// The work; `after` each chunk something may be done or said.
    fn write(
        &self,
        memory: &GuestMemoryMmap,
        chunks: &mut ChunkWriter,
        order: &[(usize, PlannedChunk)],
        after: impl Fn(&PlannedChunk) -> Result<()>,
    ) -> Result<(), Stop> {
        chunks.begin();
        for (index, planned) in order {
            let written = chunks.write(memory, planned, &self.file).map_err(Stop::Trouble)?;
            if written.is_in_file() {
                write_out::begin(&self.file, &planned.file);
            }
            self.results.put(*index, &written, planned.guest_bytes);
            after(planned).map_err(Stop::Cancelled)?;
        }
        chunks.finish().map_err(Stop::Trouble)
    }

    fn begin(&self, progress: &Progress) {
        progress.begin(Phase::Memory, self.regions.iter().map(|region| region.bytes).sum());
    }

    fn finish(self) -> WrittenMemory {
        let mut map = ChunkMap::for_memory(self.regions);
        let mut layers = self.base.as_ref().map(|base| Rebase::new(&base.memory().0.layers, base.manifest().id));
        let mut own_bytes = 0;
        for (index, range) in chunk_ranges(map.file_bytes()).enumerate() {
            let written = self.results.get(index);
            own_bytes += match (written.chunk, written.changed) {
                (Chunk::Zero, _) | (_, Changed::Nothing) => 0,
                (Chunk::Data(_), Changed::All) => range.end - range.start,
                (Chunk::Data(_), Changed::Pages(pages)) => pages.count() * PAGE_BYTES,
            };
            // What is zero is in no layer.
            let changed = if written.chunk == Chunk::Zero { Changed::All } else { written.changed };
            layers.iter_mut().for_each(|layers| layers.push(&changed));
            map.push(written.chunk);
        }
        WrittenMemory { file: self.file, map, layers: layers.map_or_else(Layers::single, Rebase::finish), own_bytes }
    }

    fn error(&self, trouble: Trouble) -> Error {
        match (trouble, &self.base) {
            (Trouble::Base(source), Some(base)) => Error::Base { path: base.path().to_path_buf(), source },
            (Trouble::Base(source) | Trouble::Write(source), _) => {
                let wanted = memory::file_bytes(&self.regions);
                Error::io_wanting(&self.path, "write guest memory to it", wanted, source)
            }
        }
    }
}

impl ForkedWriter {
    /// Lets the child begin: once the guest runs, for a child that is at work takes a CPU from a guest about to resume.
    pub fn begin(&self) {
        self.writer.target.results.begin();
    }

    /// Waits until all is written.
    pub(crate) fn wait(self, progress: &Progress) -> Result<WrittenMemory> {
        self.begin();
        let ForkedWriter { writer: PreparedWriter { target, .. }, mut child } = self;
        target.begin(progress);
        let status = loop {
            progress.reach(target.results.bytes_done())?;
            let ended = child.wait().map_err(|source| target.error(Trouble::Write(source)))?;
            if let Some(status) = ended {
                break status;
            }
        };
        match status {
            WaitStatus::Exited(_, 0) => Ok(target.finish()),
            WaitStatus::Exited(..) => Err(target.error(target.results.failure())),
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Err(Error::Writer {
                why: "was killed: this host is out of memory, or somebody ended it".to_owned(),
                mend: "free memory, or use mode \"stop\"",
            }),
            other => Err(Error::Writer { why: format!("did not exit: {other:?}"), mend: "use mode \"stop\"" }),
        }
    }
}

fn no_writer(source: io::Error) -> Error {
    Error::Writer { why: format!("cannot be started: {source}"), mend: "free memory, or use mode \"stop\"" }
}

#[cfg(test)]
mod tests;
