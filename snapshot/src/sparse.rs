//! Sparse files: where their data is, copies that keep the holes, and tags that never read one.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::error::{Error, Result};
use crate::files;
use crate::limits::{COPY_BYTES_MAX, PAGE_BYTES, PIECE_BYTES};
use crate::tag::{Chunk, ChunkTagger, Tagging, is_zero};

/// How a file came to its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// Its extents are shared with the source (FICLONE).
    Reflink,
    /// The source's data was copied, its holes were not.
    Copy,
}

/// A file and its name for errors.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
}

/// Length of a file or block device, bytes. Moves the file's offset.
pub(crate) fn length(from: Named<'_>) -> Result<u64> {
    let mut file = from.file;
    file.seek(SeekFrom::End(0)).map_err(|source| Error::io(from.path, "find its length", source))
}

/// Gives the new, empty file `to` the first `bytes` bytes of `from`, all that it has.
pub(crate) fn clone_or_copy(from: Named<'_>, to: Named<'_>, bytes: u64) -> Result<CopyMethod> {
    match files::share_extents(from.file, to.file) {
        Ok(()) => return Ok(CopyMethod::Reflink),
        Err(error) if cannot_here(&error) => {}
        Err(error) => {
            return Err(Error::io_wanting(to.path, "share extents with it", bytes, error));
        }
    }
    files::set_len(to.file, to.path, bytes)?;
    copy_range(from, to, 0..bytes, bytes)?;
    Ok(CopyMethod::Copy)
}

/// Copies the data of `range` to the same place of `to`, which reads as zeros there and is to have `bytes` in all. The
/// kernel may share extents instead.
pub(crate) fn copy_range(from: Named<'_>, to: Named<'_>, range: Range<u64>, bytes: u64) -> Result<()> {
    let mut copier = Copier { from, to, bytes, buffer: Vec::new() };
    for extent in Extents::within(from.file, range) {
        copier.copy(extent.map_err(|source| Error::io(from.path, "find its data", source))?)?;
    }
    Ok(())
}

/// True for the errors with which FICLONE and copy_file_range(2) say that these two files are not for them.
fn cannot_here(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EOPNOTSUPP
                | libc::EXDEV
                | libc::EINVAL
                | libc::ENOTTY
                | libc::ENOSYS
                | libc::EPERM
                | libc::EACCES
                | libc::ETXTBSY
                | libc::EISDIR
        )
    )
}

struct Copier<'a> {
    from: Named<'a>,
    to: Named<'a>,
    /// Length of the whole file, for errors.
    bytes: u64,
    /// Empty for as long as copy_file_range(2) serves.
    buffer: Vec<u8>,
}

impl Copier<'_> {
    fn copy(&mut self, extent: Range<u64>) -> Result<()> {
        let mut at = extent.start;
        while at < extent.end && self.buffer.is_empty() {
            let count = (extent.end - at).min(COPY_BYTES_MAX) as usize;
            match files::copy_range(self.from.file, self.to.file, at, count) {
                // Nothing copied before the end is how some file systems say that they cannot.
                Ok(0) => self.buffer = vec![0; PIECE_BYTES],
                Ok(copied) => at += copied as u64,
                Err(error) if cannot_here(&error) => self.buffer = vec![0; PIECE_BYTES],
                Err(error) => return Err(Error::io_wanting(self.to.path, "copy to it", self.bytes, error)),
            }
        }
        self.copy_through_memory(at..extent.end)
    }

    /// Pages of zeros are not written: a source that cannot show its holes still makes a sparse copy.
    fn copy_through_memory(&mut self, extent: Range<u64>) -> Result<()> {
        let mut at = extent.start;
        while at < extent.end {
            let count = (extent.end - at).min(PIECE_BYTES as u64) as usize;
            let piece = &mut self.buffer[..count];
            files::read_at(self.from.file, self.from.path, piece, at)?;
            write_data(self.to.file, piece, at)
                .map_err(|source| Error::io_wanting(self.to.path, "write it", self.bytes, source))?;
            at += count as u64;
        }
        Ok(())
    }
}

/// Writes the runs of pages that are not all zeros into a file that reads as zeros there.
pub(crate) fn write_data(file: &File, piece: &[u8], offset: u64) -> io::Result<()> {
    let page_bytes = PAGE_BYTES as usize;
    let mut at = 0;
    while at < piece.len() {
        let end_of = |at: usize| (at + page_bytes).min(piece.len());
        let start = at;
        while at < piece.len() && !is_zero(&piece[at..end_of(at)]) {
            at = end_of(at);
        }
        files::write_at(file, &piece[start..at], offset + start as u64)?;
        at = end_of(at);
    }
    Ok(())
}

/// The ranges of a file that may hold data, in order; between them it reads as zeros.
///
/// Asks with SEEK_DATA and SEEK_HOLE, which move the file's offset: nobody here or in the devices depends on it. A
/// file that cannot answer is all data.
pub(crate) struct Extents<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> Extents<'a> {
    /// Looks at `range` of `file`.
    pub(crate) fn within(file: &'a File, range: Range<u64>) -> Self {
        Extents { file, at: range.start, end: range.end }
    }

    fn seek(&self, at: u64, whence: Whence) -> nix::Result<u64> {
        loop {
            match lseek(self.file, at as i64, whence) {
                Err(Errno::EINTR) => {}
                other => return other.map(|offset| offset as u64),
            }
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = io::Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let all = self.at..self.end;
        let extent = match self.seek(self.at, Whence::SeekData) {
            Err(Errno::ENXIO) => None,
            Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOTTY) => Some(all),
            Err(errno) => {
                self.at = self.end;
                return Some(Err(errno.into()));
            }
            Ok(start) if start >= self.end => None,
            Ok(start) => match self.seek(start, Whence::SeekHole) {
                Ok(end) if end > start && start >= self.at => Some(start..end.min(self.end)),
                // An answer that leads nowhere: take all the rest for data.
                _ => Some(all),
            },
        };
        self.at = extent.as_ref().map_or(self.end, |extent| extent.end);
        extent.map(Ok)
    }
}

/// Tags the chunks of a file from the first to the last. Holes are known to be zero without being read.
pub(crate) struct ChunkReader<'a> {
    from: Named<'a>,
    extents: Extents<'a>,
    /// The first extent that ends after the last chunk asked for.
    extent: Option<Range<u64>>,
    tagger: ChunkTagger,
    buffer: Vec<u8>,
}

impl<'a> ChunkReader<'a> {
    /// Begins at the first of `bytes` bytes; its tags are made so.
    pub(crate) fn new(from: Named<'a>, bytes: u64, tagging: Tagging) -> Self {
        ChunkReader {
            from,
            extents: Extents::within(from.file, 0..bytes),
            extent: Some(0..0),
            tagger: ChunkTagger::new(tagging),
            buffer: vec![0; PIECE_BYTES],
        }
    }

    /// What the chunk `range` holds. Chunks must be asked for in ascending order.
    pub(crate) fn read(&mut self, range: Range<u64>) -> Result<Chunk> {
        let mut at = range.start;
        while at < range.end {
            let data = self.data_at(at)?;
            let hole_end = data.start.clamp(at, range.end);
            self.tagger.zeros(hole_end - at);
            at = hole_end;
            while at < data.end.min(range.end) {
                let count = (data.end.min(range.end) - at).min(PIECE_BYTES as u64) as usize;
                let piece = &mut self.buffer[..count];
                files::read_at(self.from.file, self.from.path, piece, at)?;
                self.tagger.piece(piece);
                at += count as u64;
            }
        }
        Ok(self.tagger.finish())
    }

    /// The first extent that ends after `at`; one at the end of all numbers if there is none.
    fn data_at(&mut self, at: u64) -> Result<Range<u64>> {
        while let Some(extent) = &self.extent {
            if extent.end > at {
                return Ok(extent.clone());
            }
            let next = self.extents.next().transpose();
            self.extent = next.map_err(|source| Error::io(self.from.path, "find its data", source))?;
        }
        Ok(u64::MAX..u64::MAX)
    }
}
