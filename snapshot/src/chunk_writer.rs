//! Guest RAM on its way into a memory file, chunk by chunk.
//!
//! ```text
//! first image     read a piece │ tag it │ write it unless it is zero
//! one that builds on another   the image's own pages, never written   the chunk is as it was; not even read
//!                              read and tag: as the other's tag        the chunk is as it was
//!                              else compare page by page with the other image, write those that differ
//! ```
//!
//! RAM is copied out of the guest 256 KiB at a time, and tag and write work on the copy, which is still in the
//! core's cache: no reference to memory that another thread may change ever exists, and it costs nothing that can be
//! measured, since the time goes into bringing RAM to the core, which happens once. Where the file system has direct
//! writes, the copy of a first image's chunk is what the disk fetches ([`Direct`]). What is handed over as a copy has its tag.
//!
//! Nothing keeps a record of what the guest writes: no record can be lost with a checkpoint that fails, and the guest
//! pays for none. (KVM's dirty log has the guest fault once for each page of 4 KiB, and splits its huge pages.) What it
//! costs is to read RAM in the background.
//!
//! Invariant: once made, a [`ChunkWriter`] allocates nothing, takes no lock and touches only its arguments, so that it
//! can also work in a process that was forked from a threaded one.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::direct::{Direct, Pieces};
use crate::files;
use crate::image::Image;
use crate::large::LargeFile;
use crate::layers::{Changed, PageSet};
use crate::limits::{CHUNK_BYTES, PAGE_BYTES, PIECE_BYTES};
use crate::memory::{PlannedChunk, Run};
use crate::pagemap::PageMap;
use crate::sparse;
use crate::tag::{Chunk, ChunkTagger, Tag, Tagging, is_zero};

const PAGE: usize = PAGE_BYTES as usize;

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrittenChunk {
    pub(crate) chunk: Chunk,
    pub(crate) changed: Changed,
}

impl WrittenChunk {
    /// True if some of it was written to the file.
    pub(crate) fn is_in_file(&self) -> bool {
        self.chunk != Chunk::Zero && self.changed != Changed::Nothing
    }
}

/// Why a chunk could not be written.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The memory file could not be written.
    Write(io::Error),
    /// The image that this one builds on could not be read.
    Base(io::Error),
}

/// The image that is built on.
pub(crate) struct Base {
    image: Arc<Image>,
    chunks: Vec<Chunk>,
    /// A layer of it that is to be written anew.
    fold: Option<u8>,
}

impl Base {
    /// Builds on `image`, whose memory has the same regions.
    pub(crate) fn new(image: Arc<Image>) -> Base {
        let chunks: Vec<Chunk> = image.memory().0.map.chunks().map(|(_, chunk)| chunk).collect();
        let fold = image.memory().0.layers.to_fold(chunks.len());
        Base { image, chunks, fold }
    }

    fn file(&self) -> &LargeFile {
        &self.image.memory().0
    }

    /// True if a page of the chunk is to be written whether it has changed or not.
    fn is_folded(&self, chunk: usize) -> bool {
        self.fold.is_some_and(|layer| self.chunks[chunk] != Chunk::Zero && self.file().layers.holds(chunk, layer))
    }

    fn is_folded_page(&self, chunk: usize, page: usize) -> bool {
        self.fold.is_some_and(|layer| self.file().layers.holds_page(chunk, page, layer))
    }
}

/// Where the content of a chunk is.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    /// In guest RAM, which does not change meanwhile.
    Guest(&'a GuestMemoryMmap),
    /// Here, and not all zeros; it has the tag.
    Copy(&'a [u8], Tag),
}

impl<'a> Source<'a> {
    /// What begins `done` bytes after the begin of the chunk, as much as `buffer` has room for; there, if it has to be copied.
    fn read(self, planned: &PlannedChunk, done: u64, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        match self {
            Source::Copy(content, _) => Ok(&content[done as usize..done as usize + buffer.len()]),
            Source::Guest(_) => self.copy_out(planned, done, buffer).map(|()| &*buffer),
        }
    }

    /// Copies what begins `done` bytes after the begin of the chunk.
    fn copy_out(self, planned: &PlannedChunk, done: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Source::Guest(memory) => copy_out(memory, planned.guest_address + done, to),
            Source::Copy(content, _) => {
                to.copy_from_slice(&content[done as usize..done as usize + to.len()]);
                Ok(())
            }
        }
    }
}

/// Writes chunks of RAM.
pub(crate) struct ChunkWriter {
    piece: Box<[u8]>,
    /// The same place in the image that is built on.
    old_piece: Box<[u8]>,
    reader: Reader,
    base: Option<Base>,
    /// How a first image is written where the file system can.
    direct: Option<Direct>,
}

/// Reads chunks of RAM.
struct Reader {
    tagger: ChunkTagger,
    pages: PageMap,
}

impl ChunkWriter {
    /// Writes to the new file `to`. `mapped` are the runs of RAM, ascending, over which a file is mapped: that of `base`,
    /// or of an image that it goes back to, if there is a base. Tags are made as the base's are.
    pub(crate) fn new(mapped: &[Run], base: Option<Base>, tagging: Tagging, to: &File) -> Self {
        ChunkWriter {
            piece: vec![0; PIECE_BYTES].into_boxed_slice(),
            old_piece: vec![0; if base.is_some() { PIECE_BYTES } else { 0 }].into_boxed_slice(),
            reader: Reader { tagger: ChunkTagger::new(tagging), pages: PageMap::new(mapped) },
            direct: if base.is_none() { Direct::open(to) } else { None },
            base,
        }
    }

    /// Whether all that it does with a chunk is to write what is not zero, by way of the page cache.
    pub(crate) fn only_writes(&self) -> bool {
        self.base.is_none() && self.direct.is_none()
    }

    /// The descriptors that it needs.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        let base = self.base.iter().flat_map(|base| base.file().descriptors());
        base.chain(self.direct.iter().map(Direct::descriptor))
    }

    /// To be called in the process that writes.
    pub(crate) fn begin(&mut self) {
        self.reader.pages.begin();
        self.direct.iter_mut().for_each(Direct::begin);
    }

    /// Waits until all is written.
    pub(crate) fn finish(&mut self) -> Result<(), Trouble> {
        self.direct.iter_mut().try_for_each(Direct::finish).map_err(Trouble::Write)
    }

    /// Tags a chunk unless it has a tag, and writes, or begins to write, what has to be.
    pub(crate) fn write(
        &mut self,
        memory: Source<'_>,
        planned: &PlannedChunk,
        to: &File,
    ) -> Result<WrittenChunk, Trouble> {
        match memory {
            Source::Guest(memory) => self.reader.pages.look(memory, planned),
            Source::Copy(..) => self.reader.pages.forget(),
        }
        let index = (planned.file.start / CHUNK_BYTES) as usize;
        let Some(base) = &self.base else {
            let chunk = self.write_first(memory, planned, to).map_err(Trouble::Write)?;
            return Ok(WrittenChunk { chunk, changed: Changed::All });
        };
        let (old, folded) = (base.chunks[index], base.is_folded(index));
        if self.reader.pages.is_as_mapped() && !folded {
            return Ok(WrittenChunk { chunk: old, changed: Changed::Nothing });
        }
        if old == Chunk::Zero {
            let write = |piece: &[u8], at| sparse::write_data(to, piece, at);
            let chunk = self.reader.pass(memory, planned, &mut self.piece, write).map_err(Trouble::Write)?;
            let changed = if chunk == old { Changed::Nothing } else { Changed::All };
            return Ok(WrittenChunk { chunk, changed });
        }
        let chunk = match memory {
            Source::Copy(_, tag) => Chunk::Data(tag),
            Source::Guest(_) => {
                self.reader.pass(memory, planned, &mut self.piece, |_, _| Ok(())).map_err(Trouble::Write)?
            }
        };
        let changed = match chunk {
            Chunk::Zero => Changed::All,
            Chunk::Data(_) if chunk == old && !folded => Changed::Nothing,
            Chunk::Data(_) => Changed::Pages(self.write_changed(memory, planned, index, to)?),
        };
        Ok(WrittenChunk { chunk, changed })
    }

    /// A chunk that is zero, without looking.
    pub(crate) fn zero(&self, index: usize) -> WrittenChunk {
        let was_zero = self.base.as_ref().is_some_and(|base| base.chunks[index] == Chunk::Zero);
        WrittenChunk { chunk: Chunk::Zero, changed: if was_zero { Changed::Nothing } else { Changed::All } }
    }

    /// A chunk that somebody else has written, if this one [`only_writes`](Self::only_writes).
    pub(crate) fn written(&self, tag: Tag) -> WrittenChunk {
        debug_assert!(self.only_writes());
        WrittenChunk { chunk: Chunk::Data(tag), changed: Changed::All }
    }

    /// Tags a chunk unless it has a tag, and writes its pieces that are not zero.
    fn write_first(&mut self, memory: Source<'_>, planned: &PlannedChunk, to: &File) -> io::Result<Chunk> {
        let Some(direct) = &mut self.direct else {
            return self.reader.pass(memory, planned, &mut self.piece, |piece, at| files::write_at(to, piece, at));
        };
        let (start, mut data) = (planned.file.start, Pieces::default());
        let chunk = self.reader.pass(memory, planned, direct.buffer()?, |_, at| {
            data.insert(at - start);
            Ok(())
        })?;
        direct.write(&data, planned.guest_bytes as usize, start)?;
        Ok(chunk)
    }

    /// Writes the pages of the chunk that are not as in the image that is built on.
    fn write_changed(
        &mut self,
        memory: Source<'_>,
        planned: &PlannedChunk,
        index: usize,
        to: &File,
    ) -> Result<PageSet, Trouble> {
        let Some(base) = &self.base else { return Ok(PageSet::default()) };
        let mut changed = PageSet::default();
        for (done, count) in pieces(planned.guest_bytes) {
            let new = memory.read(planned, done, &mut self.piece[..count]).map_err(Trouble::Write)?;
            let old = &mut self.old_piece[..count];
            base.file().read(planned.file.start + done, old).map_err(Trouble::Base)?;
            let first = (done / PAGE_BYTES) as usize;
            let is_new = |page: usize| {
                let bytes = page * PAGE..(page + 1) * PAGE;
                new[bytes.clone()] != old[bytes] || base.is_folded_page(index, first + page)
            };
            let mut page = 0;
            while page < count / PAGE {
                let start = page;
                while page < count / PAGE && is_new(page) {
                    changed.insert(first + page);
                    page += 1;
                }
                let at = planned.file.start + done + (start * PAGE) as u64;
                sparse::write_data(to, &new[start * PAGE..page * PAGE], at).map_err(Trouble::Write)?;
                page += 1;
            }
        }
        // What the file has beyond the region's end is nobody's: it needs no layer.
        (planned.guest_bytes / PAGE_BYTES..CHUNK_BYTES / PAGE_BYTES).for_each(|page| changed.insert(page as usize));
        Ok(changed)
    }
}

impl Reader {
    /// Reads the chunk that was looked at, and tags it unless it has a tag; `each` gets the pieces that are not zero and
    /// their places in the file. `buffer` has room for one piece, or for all, each in its place.
    fn pass(
        &mut self,
        memory: Source<'_>,
        planned: &PlannedChunk,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8], u64) -> io::Result<()>,
    ) -> io::Result<Chunk> {
        let buffer_holds_all = buffer.len() > PIECE_BYTES;
        for (done, count) in pieces(planned.guest_bytes) {
            if self.pages.is_untouched(done, count) {
                self.tagger.zeros(count as u64);
                continue;
            }
            let start = done as usize % buffer.len();
            let piece = &mut buffer[start..start + count];
            // Who has room for all wants it there.
            let piece = match buffer_holds_all {
                true => memory.copy_out(planned, done, piece).map(|()| &*piece)?,
                false => memory.read(planned, done, piece)?,
            };
            let is_data = match memory {
                Source::Copy(..) => !is_zero(piece),
                Source::Guest(_) => self.tagger.piece(piece),
            };
            if is_data {
                each(piece, planned.file.start + done)?;
            }
        }
        if let Source::Copy(_, tag) = memory {
            return Ok(Chunk::Data(tag));
        }
        self.tagger.zeros(planned.padding());
        Ok(self.tagger.finish())
    }
}

/// The pieces of `bytes` bytes: offset and length.
fn pieces(bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..bytes).step_by(PIECE_BYTES).map(move |done| (done, (bytes - done).min(PIECE_BYTES as u64) as usize))
}

/// Copies guest RAM, whoever writes to it meanwhile.
fn copy_out(memory: &GuestMemoryMmap, address: u64, to: &mut [u8]) -> io::Result<()> {
    let slice = memory.get_slice(GuestAddress(address), to.len());
    slice.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?.copy_to(to);
    Ok(())
}
