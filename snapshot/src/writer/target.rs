//! What a writer does, in whichever process: chunk by chunk into the memory file, and what became of each into the results.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::protected::{Handed, Slots};
use super::results::Results;
use crate::aside::Aside;
use crate::chunk_map::{ChunkMap, Region, chunk_ranges};
use crate::chunk_writer::{ChunkWriter, Source, Trouble, WrittenChunk};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layers::{Changed, Layers, Rebase};
use crate::limits::PAGE_BYTES;
use crate::memory::{self, PlannedChunk};
use crate::progress::{Phase, Progress};
use crate::tag::{Chunk, Tagging};
use crate::write_out;

/// The memory file that is written, and what is known of its chunks.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) regions: Vec<Region>,
    pub(super) tagging: Tagging,
    pub(super) results: Results,
    pub(super) base: Option<Arc<Image>>,
    pub(super) aside: Aside,
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

/// Why the work ends early.
pub(super) enum Stop {
    Trouble(Trouble),
    Cancelled(Error),
}

impl Target {
    /// The work; `after` each chunk something may be done or said.
    pub(super) fn write(
        &self,
        memory: &GuestMemoryMmap,
        chunks: &mut ChunkWriter,
        order: &[(usize, PlannedChunk)],
        after: impl Fn(&PlannedChunk) -> Result<()>,
    ) -> Result<(), Stop> {
        chunks.begin();
        let mut aside = self.aside.steps();
        for (index, planned) in order {
            aside.step();
            let written = chunks.write(Source::Guest(memory), planned, &self.file).map_err(Stop::Trouble)?;
            self.put(*index, planned, &written);
            after(planned).map_err(Stop::Cancelled)?;
        }
        chunks.finish().map_err(Stop::Trouble)
    }

    /// The same for chunks that are handed over; `planned` are all, by number.
    pub(super) fn write_handed(
        &self,
        chunks: &mut ChunkWriter,
        planned: &[PlannedChunk],
        slots: &Slots,
    ) -> Result<(), Stop> {
        chunks.begin();
        let mut aside = self.aside.steps();
        let mut parent = slots.receiver();
        for _ in planned {
            let (chunk, handed) = parent.receive();
            aside.step();
            let planned = &planned[chunk];
            let written = match handed {
                Handed::Zero => chunks.zero(chunk),
                Handed::Lost(error) => return Err(Stop::Trouble(Trouble::Write(error))),
                Handed::Written(tag) => chunks.written(tag),
                Handed::Copy(slot, tag) => {
                    chunks.write(Source::Copy(slot.content(), tag), planned, &self.file).map_err(Stop::Trouble)?
                }
            };
            self.put(chunk, planned, &written);
        }
        chunks.finish().map_err(Stop::Trouble)
    }

    fn put(&self, index: usize, planned: &PlannedChunk, written: &WrittenChunk) {
        if written.is_in_file() {
            write_out::begin(&self.file, &planned.file);
        }
        self.results.put(index, written, planned.guest_bytes);
    }

    /// A child's life, and its exit status.
    pub(super) fn as_child(&self, work: impl FnOnce() -> Result<(), Stop>) -> i32 {
        self.results.await_begin();
        match work() {
            Ok(()) => 0,
            Err(Stop::Trouble(trouble)) => {
                self.results.fail(&trouble);
                1
            }
            Err(Stop::Cancelled(_)) => 2,
        }
    }

    pub(super) fn begin(&self, progress: &Progress) {
        progress.begin(Phase::Memory, self.regions.iter().map(|region| region.bytes).sum());
    }

    pub(super) fn finish(self) -> WrittenMemory {
        let mut map = ChunkMap::for_memory(self.regions, self.tagging);
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

    pub(super) fn error(&self, trouble: Trouble) -> Error {
        match (trouble, &self.base) {
            (Trouble::Base(source), Some(base)) => Error::Base { path: base.path().to_path_buf(), source },
            (Trouble::Base(source) | Trouble::Write(source), _) => {
                let wanted = memory::file_bytes(&self.regions);
                Error::io_wanting(&self.path, "write guest memory to it", wanted, source)
            }
        }
    }
}
