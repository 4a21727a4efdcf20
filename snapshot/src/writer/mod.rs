//! The forked writer: a child process that writes guest RAM as it was at the fork, while the guest goes on.
//!
//! ```text
//! parent   prepare │ fork │ the guest runs                            │ wait: map, digest, commit
//! child            └──────┤ chunk by chunk: copy out, digest, write, give back │ exit
//! results                   a shared page table of chunks: ▓▓▓▓▓▓░░░░░░
//! ```
//!
//! The fork copies page tables, not pages: of what the guest writes afterwards the kernel makes copies, page by page,
//! until the child has given the page back.
//!
//! Invariants: the child comes from a process of many threads, so it takes no lock and allocates nothing; all that it
//! needs is prepared. It keeps no descriptor of its parent but the memory file's: not KVM's, or the machine of a dead VMM would live
//! on, and not a lock's. It does not outlive its parent. It is reaped before its results are read.

mod child;
mod results;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use vm_memory::GuestMemoryMmap;

use self::child::Child;
use self::results::Results;
use crate::chunk_map::{ChunkMap, Region, chunk_ranges};
use crate::error::{Error, Result};
use crate::files;
use crate::memory::{self, ChunkWriter, Run};
use crate::progress::{Phase, Progress};

/// All that a child needs to write guest RAM; made while the guest still runs.
pub struct PreparedWriter {
    target: Target,
    chunks: ChunkWriter,
}

/// A child that writes guest RAM. It is killed if this is dropped.
#[derive(Debug)]
pub struct ForkedWriter {
    target: Target,
    child: Child,
}

/// The memory file that is written, and what is known of its chunks.
#[derive(Debug)]
struct Target {
    file: File,
    path: PathBuf,
    regions: Vec<Region>,
    results: Results,
}

impl PreparedWriter {
    /// Prepares to write `memory`, over which a file is mapped in the runs `mapped`, to the new, empty file `file`.
    pub(crate) fn new(memory: &GuestMemoryMmap, mapped: &[Run], file: File, path: PathBuf) -> Result<Self> {
        let regions = memory::lay_out(memory)?;
        let file_bytes = memory::file_bytes(&regions);
        files::set_len(&file, &path, file_bytes)?;
        let results = Results::new(chunk_ranges(file_bytes).count()).map_err(no_writer)?;
        Ok(PreparedWriter { target: Target { file, path, regions, results }, chunks: ChunkWriter::new(mapped) })
    }

    /// Forks the child, which begins at once. `memory` must not change before this returns.
    ///
    /// # Errors
    /// [`Error::Writer`] if the host has no process or no memory for it.
    pub fn fork(self, memory: &GuestMemoryMmap) -> Result<ForkedWriter> {
        let PreparedWriter { target, mut chunks } = self;
        let child = child::fork(&target.file, || target.write(memory, &mut chunks)).map_err(no_writer)?;
        Ok(ForkedWriter { target, child })
    }
}

impl Target {
    /// The child's work; the exit status.
    fn write(&self, memory: &GuestMemoryMmap, chunks: &mut ChunkWriter) -> i32 {
        chunks.begin();
        for (index, planned) in memory::plan(&self.regions).enumerate() {
            match chunks.write(memory, &planned, &self.file) {
                Ok(chunk) => self.results.put(index, chunk, planned.guest_bytes),
                Err(error) => {
                    self.results.fail(&error);
                    return 1;
                }
            }
            child::give_back(memory, &planned);
        }
        0
    }
}

impl ForkedWriter {
    /// Waits until all is written, and returns the file with its map. It is not durable yet.
    pub(crate) fn wait(mut self, progress: &Progress) -> Result<(File, ChunkMap)> {
        progress.begin(Phase::Memory, self.target.regions.iter().map(|region| region.bytes).sum());
        let status = loop {
            progress.reach(self.target.results.bytes_done())?;
            if let Some(status) = self.child.wait().map_err(|source| self.target.error(source))? {
                break status;
            }
        };
        match status {
            WaitStatus::Exited(_, 0) => Ok(self.target.finish()),
            WaitStatus::Exited(..) => Err(self.target.error(self.target.results.failure())),
            WaitStatus::Signaled(_, Signal::SIGKILL, _) => Err(Error::Writer {
                why: "was killed: this host is out of memory, or somebody ended it".to_owned(),
                mend: "free memory, or use mode \"stop\"",
            }),
            other => Err(Error::Writer { why: format!("did not exit: {other:?}"), mend: "use mode \"stop\"" }),
        }
    }
}

impl Target {
    fn finish(self) -> (File, ChunkMap) {
        let mut map = ChunkMap::for_memory(self.regions);
        for index in 0..chunk_ranges(map.file_bytes()).count() {
            map.push(self.results.get(index));
        }
        (self.file, map)
    }

    fn error(&self, source: io::Error) -> Error {
        Error::io_wanting(&self.path, memory::WRITING, memory::file_bytes(&self.regions), source)
    }
}

fn no_writer(source: io::Error) -> Error {
    Error::Writer { why: format!("cannot be started: {source}"), mend: "free memory, or use mode \"stop\"" }
}

#[cfg(test)]
mod tests;
