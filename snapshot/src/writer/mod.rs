//! The writer: a child process that writes guest RAM as it was at the cut, while the guest goes on. RAM is either
//! protected ([`protected`]), and the child is handed copies of it, or only told what was written, or it is forked:
//!
//! ```text
//! parent   prepare │ fork │ resume, begin │ the guest runs            │ wait: map, digest, commit
//! child            └──────────────────────┤ chunk by chunk: copy out, tag, write, give back │ exit
//! results                   a shared page table of chunks: ▓▓▓▓▓▓░░░░░░
//! ```
//!
//! That fork copies page tables, not pages: of what the guest writes afterwards the kernel makes copies, page by page,
//! until the child has given the page back.
//!
//! Invariants: the child comes from a process of many threads, so it takes no lock and allocates nothing; all that it
//! needs is prepared. It keeps no descriptors of its parent but those of memory files: not KVM's, or the machine of a dead VMM
//! would live on, and not a lock's. It does not outlive its parent. It is reaped before its results are read.

mod child;
mod futex;
mod own;
mod present;
mod priority;
mod protected;
mod results;
mod tables;
mod target;

use std::collections::HashMap;
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

pub use self::protected::{Copies, Habits, Lent, can_protect};
pub(crate) use self::target::WrittenMemory;

use self::child::Child;
use self::protected::{Order, Protection, Straight, Task};
use self::results::Results;
use self::target::{Stop, Target};
use crate::aside::Aside;
use crate::chunk_map::chunk_ranges;
use crate::chunk_writer::{Base, ChunkWriter, Trouble};
use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::memory::{self, PlannedChunk, Run};
use crate::progress::Progress;
use crate::tag::Tagging;

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
    /// Whether there is a CPU for the copier beside the guest and the child.
    is_roomy: bool,
    /// The child before the protection, in whose slots it reads.
    protected: Option<(Child, Protection)>,
}

/// A child that writes guest RAM. It is killed if this is dropped.
pub struct ForkedWriter {
    /// What the child has a copy of. To free what is not needed here any more takes time, which the guest's pause need not
    /// last.
    writer: PreparedWriter,
    child: Child,
    /// What it is handed chunks of, if it was not forked with them.
    protection: Option<Protection>,
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

impl fmt::Debug for ForkedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.writer.fmt(f)
    }
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
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
        let tagging = base.as_ref().map_or_else(Tagging::new, |base| base.memory().0.map.tagging());
        let chunks = Box::new(ChunkWriter::new(mapped, base.clone().map(Base::new), tagging, &file));
        let mut descriptors: Vec<RawFd> = chunks.descriptors().chain([file.as_raw_fd()]).collect();
        descriptors.sort_unstable();
        let mut order: Vec<_> = memory::plan(&regions).enumerate().collect();
        // What changed before the last checkpoint will change again soon: what is given back by then costs no copy.
        order.sort_by_key(|(index, _)| !base.as_ref().is_some_and(|base| base.memory().0.layers.holds(*index, 0)));
        let target = Target { file, path, regions, tagging, results, base, aside: Aside::default() };
        Ok(PreparedWriter {
            target,
            chunks,
            order,
            descriptors,
            nice: priority::niceness(1, 1),
            is_roomy: false,
            protected: None,
        })
    }

    /// Its child works beside a guest of `vcpus`, and keeps off their CPUs.
    pub fn work_beside(&mut self, vcpus: usize, aside: Aside) {
        self.target.aside = aside;
        let cpus = thread::available_parallelism().map_or(1, NonZero::get);
        self.nice = priority::niceness(vcpus, cpus);
        self.is_roomy = cpus > vcpus + 1;
    }

    /// Makes ready for [`PreparedWriter::protect`], with a child of its own, while the guest still runs.
    ///
    /// # Errors
    /// The kernel cannot protect memory, or this process may not, or there is no room for it.
    pub fn expect_protection(&mut self, lent: Lent) -> io::Result<()> {
        let habits = lent.habits.chunks();
        let nth: HashMap<usize, usize> = habits.iter().enumerate().map(|(nth, chunk)| (*chunk, nth)).collect();
        self.order.sort_by_key(|(number, _)| nth.get(number).copied().unwrap_or(usize::MAX));
        let order = Order { chunks: self.order.iter().map(|(number, _)| *number).collect(), habits: nth.len() };
        let planned: Vec<_> = memory::plan(&self.target.regions).collect();
        let PreparedWriter { target, chunks, descriptors, nice, is_roomy, .. } = self;
        let straight = if *is_roomy || !chunks.only_writes() { None } else { Straight::to(&target.file) };
        let task = Task { order, tagging: target.tagging, straight };
        let protection = Protection::prepare(lent, &planned, task, *is_roomy, *nice, target.aside.clone())?;
        // Where that cannot be the pause takes a little longer.
        let pinned = own::pin(protection.memory());
        // Who had a new thread to wait for may have been drawn to a vCPU's CPU with it.
        target.aside.step();
        let child = protection.without_ram(|| {
            child::fork(descriptors, *nice, || {
                target.as_child(|| target.write_handed(chunks, &planned, protection.slots()))
            })
        })?;
        drop(pinned);
        protection.serve(child.end()?);
        target.aside.step();
        self.protected = Some((child, protection));
        Ok(())
    }

    /// Does of [`PreparedWriter::protect`] what can be done while the guest still runs. To be called a moment before that:
    /// from now on the guest is interrupted wherever it begins to write, if for no copy.
    pub fn protect_ahead(&mut self) {
        if let Some((_, protection)) = &mut self.protected {
            self.target.aside.step();
            protection.protect_ahead();
        }
    }

    /// Protects RAM as it is now, for a writer that begins its work at [`ForkedWriter::begin`]. RAM must not change before
    /// this returns.
    ///
    /// # Errors
    /// It was not made ready for, or the kernel has no memory for it.
    pub fn protect(mut self) -> Result<ForkedWriter, Box<Refused>> {
        let Some((child, mut protection)) = self.protected.take() else {
            return Err(Box::new(Refused { error: no_writer(io::ErrorKind::Unsupported.into()), writer: self }));
        };
        match protection.protect() {
            Ok(()) => Ok(ForkedWriter { writer: self, child, protection: Some(protection) }),
            Err(source) => Err(Box::new(Refused { error: no_writer(source), writer: self })),
        }
    }

    /// Shortens the next [`PreparedWriter::fork`] of this thread. To be called just before the guest is stopped for it.
    pub fn expect_fork(&mut self) {
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
        let PreparedWriter { target, chunks, order, descriptors, nice, .. } = &mut writer;
        let give_back = |planned: &PlannedChunk| {
            child::give_back(memory, planned);
            Ok(())
        };
        match child::fork(descriptors, *nice, || target.as_child(|| target.write(memory, chunks, order, give_back))) {
            Ok(child) => Ok(ForkedWriter { writer, child, protection: None }),
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

impl ForkedWriter {
    /// Lets the child begin: once the guest runs, for a child that is at work takes a CPU from a guest about to resume.
    pub fn begin(&self) {
        self.writer.target.results.begin();
        self.protection.iter().for_each(Protection::begin);
    }

    /// Whether RAM is protected, not forked.
    pub fn protects(&self) -> bool {
        self.protection.is_some()
    }

    /// Waits until all is written.
    pub(crate) fn wait(self, progress: &Progress) -> Result<WrittenMemory> {
        self.begin();
        let ForkedWriter { writer: PreparedWriter { target, .. }, mut child, protection } = self;
        target.begin(progress);
        let status = loop {
            progress.reach(target.results.bytes_done())?;
            let ended = child.wait().map_err(|source| target.error(Trouble::Write(source)))?;
            if let Some(status) = ended {
                break status;
            }
        };
        drop(protection);
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
