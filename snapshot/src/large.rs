//! A large file of an open image, guest RAM or a disk: its map, and the files that hold its layers.
//!
//! Lengths have been checked, contents are not yet compared with their tags.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::chunk_map::{ChunkMap, chunk_ranges};
use crate::copy;
use crate::error::{Error, Result};
use crate::files;
use crate::layers::Layers;
use crate::limits::PIECE_BYTES;
use crate::progress::Progress;
use crate::sparse::{self, ChunkReader, CopyMethod, Named};
use crate::tag::{Chunk, ChunkTagger, Tagging};

/// The file.
#[derive(Debug)]
pub(crate) struct LargeFile {
    pub(crate) map: ChunkMap,
    pub(crate) layers: Layers,
    /// One for each layer; the first is the image's own.
    pub(crate) files: Vec<LayerFile>,
}

/// A layer's file, which never changes.
#[derive(Debug)]
pub(crate) struct LayerFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
}

impl LayerFile {
    pub(crate) fn named(&self) -> Named<'_> {
        Named { file: &self.file, path: &self.path }
    }
}

impl LargeFile {
    /// A file of which `own` holds what is new, and `base` of the checkpoint `base_id` the rest. It has no map
    /// yet, and gets one like the base's.
    pub(crate) fn over(own: Named<'_>, base: &LargeFile, base_id: Uuid, layers: Layers) -> Result<LargeFile> {
        let keep = |named: Named<'_>| {
            let file = named.file.try_clone().map_err(|source| Error::io(named.path, "keep it open", source))?;
            Ok(LayerFile { file, path: named.path.to_path_buf() })
        };
        let mut files = vec![keep(own)?];
        for id in layers.ids() {
            let old = if *id == base_id {
                Some(0)
            } else {
                base.layers.ids().iter().position(|old| old == id).map(|at| at + 1)
            };
            files.extend(old.map(|old| keep(base.files[old].named())).transpose()?);
        }
        Ok(LargeFile { map: ChunkMap::for_file(0, base.map.tagging()), layers, files })
    }

    /// Its path, for messages: that of the image's own layer.
    pub(crate) fn path(&self) -> &Path {
        &self.files[0].path
    }

    /// The descriptors of its files.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.files.iter().map(|layer| layer.file.as_raw_fd())
    }

    /// Fills `buffer` with what the file holds from `offset` on, the beginning of a page, inside one chunk that is not
    /// zero. Allocates nothing.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (layer, run) in self.layers.runs(offset..offset + buffer.len() as u64) {
            let part = (run.start - offset) as usize..(run.end - offset) as usize;
            self.files[layer].file.read_exact_at(&mut buffer[part], run.start)?;
        }
        Ok(())
    }

    /// What the runs of data hold, in order: layer and place. Chunks that are zero are in none.
    pub(crate) fn data_runs(&self) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        let data = self.map.chunks().filter(|(_, chunk)| *chunk != Chunk::Zero);
        data.flat_map(|(range, _)| self.layers.runs(range))
    }

    /// Compares the content with its tags.
    ///
    /// # Errors
    /// [`Error::Digest`] names file and chunk that differ first.
    pub(crate) fn verify(&self, progress: &Progress) -> Result<()> {
        for LayerFile { file, path } in &self.files {
            check_length(file, path, self.map.file_bytes())?;
        }
        self.tag_each(progress, |range, found, expected| {
            let (offset, bytes) = (range.start, range.end - range.start);
            if found == expected { Ok(()) } else { Err(Error::Digest { path: self.holder(&range), offset, bytes }) }
        })
    }

    /// Tags every chunk, and calls `each` with its place, what it holds, and what the map says.
    fn tag_each(
        &self,
        progress: &Progress,
        mut each: impl FnMut(Range<u64>, Chunk, Chunk) -> Result<()>,
    ) -> Result<()> {
        let mut whole = ChunkReader::new(self.files[0].named(), self.map.file_bytes(), self.map.tagging());
        let mut parts = LayeredReader::new(self);
        for (range, expected) in self.map.chunks() {
            let bytes = range.end - range.start;
            let found = match expected {
                _ if self.layers.is_single() => whole.read(range.clone())?,
                // Not stored anywhere.
                Chunk::Zero => Chunk::Zero,
                Chunk::Data(_) => parts.read(range.clone())?,
            };
            each(range, found, expected)?;
            progress.advance(bytes)?;
        }
        Ok(())
    }

    /// The file that holds this chunk, or the image's own if several do.
    pub(crate) fn holder(&self, range: &Range<u64>) -> PathBuf {
        let mut runs = self.layers.runs(range.clone());
        match (runs.next(), runs.next()) {
            (Some((layer, _)), None) => self.files[layer].path.clone(),
            _ => self.path().to_path_buf(),
        }
    }

    /// Makes the file `to` with the content of all layers, sharing extents where the file system can. Its name is
    /// durable; its content will be when somebody flushes it.
    pub(crate) fn copy_to(&self, to: &Path) -> Result<CopyMethod> {
        if self.layers.is_single() {
            return copy::make_copy(self.files[0].named(), self.map.file_bytes(), to);
        }
        copy::make_with(to, |file| self.fill(Named { file, path: to }))?;
        Ok(CopyMethod::Copy)
    }

    /// Gives the new, empty file `to` the content of all layers.
    pub(crate) fn fill(&self, to: Named<'_>) -> Result<()> {
        let bytes = self.map.file_bytes();
        files::set_len(to.file, to.path, bytes)?;
        let mut runs = self.data_runs().peekable();
        while let Some((layer, mut run)) = runs.next() {
            while let Some((_, next)) = runs.next_if(|(other, next)| *other == layer && next.start == run.end) {
                run.end = next.end;
            }
            sparse::copy_range(self.files[layer].named(), to, run, bytes)?;
        }
        Ok(())
    }
}

/// Tags chunks of a file that has layers, as its map has them.
pub(crate) struct LayeredReader<'a> {
    from: &'a LargeFile,
    /// The checkpoint that holds all layers but the first, if a new one is to build on it.
    base: Option<&'a Path>,
    tagger: ChunkTagger,
    buffer: Vec<u8>,
}

impl<'a> LayeredReader<'a> {
    pub(crate) fn new(from: &'a LargeFile) -> Self {
        LayeredReader { from, base: None, tagger: ChunkTagger::new(from.map.tagging()), buffer: vec![0; PIECE_BYTES] }
    }

    /// Of a file that builds on the checkpoint `base`: if that cannot be read, it is an [`Error::Base`].
    pub(crate) fn over(from: &'a LargeFile, base: &'a Path) -> Self {
        LayeredReader { base: Some(base), ..LayeredReader::new(from) }
    }

    /// What the chunk `range` holds.
    pub(crate) fn read(&mut self, range: Range<u64>) -> Result<Chunk> {
        for (layer, run) in self.from.layers.runs(range) {
            let Named { file, path } = self.from.files[layer].named();
            let mut at = run.start;
            while at < run.end {
                let piece = &mut self.buffer[..(run.end - at).min(PIECE_BYTES as u64) as usize];
                match self.base.filter(|_| layer > 0) {
                    Some(base) => file
                        .read_exact_at(piece, at)
                        .map_err(|source| Error::Base { path: base.to_path_buf(), source })?,
                    None => files::read_at(file, path, piece, at)?,
                }
                self.tagger.piece(piece);
                at += piece.len() as u64;
            }
        }
        Ok(self.tagger.finish())
    }
}

/// Maps a file that has one layer, with tags of this kind.
pub(crate) fn map(from: Named<'_>, bytes: u64, tagging: Tagging, progress: &Progress) -> Result<ChunkMap> {
    let mut map = ChunkMap::for_file(bytes, tagging);
    let mut reader = ChunkReader::new(from, bytes, tagging);
    for range in chunk_ranges(bytes) {
        map.push(reader.read(range.clone())?);
        progress.advance(range.end - range.start)?;
    }
    Ok(map)
}

fn check_length(file: &File, path: &Path, expected: u64) -> Result<()> {
    let found = file.metadata().map_err(|source| Error::io(path, "find its length", source))?.len();
    if found == expected { Ok(()) } else { Err(Error::Size { path: path.to_path_buf(), expected, found }) }
}
