//! What the child has found out, in memory that it shares with its parent.
//!
//! ```text
//! header   whether to begin · bytes done · errno of a failure · whether the image that is built on could not be read
//! chunks   97 bytes each: data? and what has changed · tag · the pages that have
//! ```
//!
//! Invariant: a chunk is written once, by the child, and read after the child was reaped, which orders the two.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::futex;
use crate::chunk_writer::{Trouble, WrittenChunk};
use crate::layers::{Changed, PageSet};
use crate::tag::{Chunk, Tag};

/// First byte of an entry: a bit, and one of the other three.
const DATA: u8 = 1;
const ALL: u8 = 0;
const NOTHING: u8 = 2;
const PAGES: u8 = 4;
const TAG_BYTES: usize = 32;
const ENTRY_BYTES: usize = 1 + TAG_BYTES + PageSet::BYTES;

#[repr(C)]
struct Header {
    /// A futex: 1 once the child may begin.
    begun: AtomicU32,
    bytes_done: AtomicU64,
    errno: AtomicI32,
    of_base: AtomicBool,
}

/// The shared table.
#[derive(Debug)]
pub(super) struct Results {
    base: NonNull<u8>,
    bytes: NonZero<usize>,
    chunks: usize,
}

// SAFETY: the mapping belongs to this value alone; its header is atomics, and chunks are accessed as the module says.
unsafe impl Send for Results {}

impl Results {
    /// A table for `chunks` chunks, all zero.
    pub(super) fn new(chunks: usize) -> io::Result<Self> {
        let bytes = NonZero::new(size_of::<Header>() + chunks * ENTRY_BYTES).expect("a header is not empty");
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let base = unsafe { mmap_anonymous(None, bytes, access, flags) }?;
        Ok(Results { base: base.cast(), bytes, chunks })
    }

    /// The parent's: the child may begin. More than once is once.
    pub(super) fn begin(&self) {
        self.header().begun.store(1, Relaxed);
        futex::wake(&self.header().begun);
    }

    /// The child's: waits until it may begin.
    pub(super) fn await_begin(&self) {
        while self.header().begun.load(Relaxed) == 0 {
            futex::wait(&self.header().begun, 0, None);
        }
    }

    /// The writer's: what became of chunk `index`, of `guest_bytes` of RAM.
    pub(super) fn put(&self, index: usize, written: &WrittenChunk, guest_bytes: u64) {
        let entry = self.entry(index);
        let (kind, pages) = match written.changed {
            Changed::All => (ALL, None),
            Changed::Nothing => (NOTHING, None),
            Changed::Pages(pages) => (PAGES, Some(pages.to_bytes())),
        };
        // SAFETY: `entry` has room for all three, and nobody reads it before its writer has ended.
        unsafe {
            match written.chunk {
                Chunk::Zero => entry.write(kind),
                Chunk::Data(tag) => {
                    entry.write(kind | DATA);
                    entry.add(1).cast::<[u8; TAG_BYTES]>().write(tag.0);
                }
            }
            if let Some(pages) = pages {
                entry.add(1 + TAG_BYTES).cast::<[u8; PageSet::BYTES]>().write(pages);
            }
        }
        self.header().bytes_done.fetch_add(guest_bytes, Relaxed);
    }

    /// The child's: why it ends.
    pub(super) fn fail(&self, trouble: &Trouble) {
        let (Trouble::Write(error) | Trouble::Base(error)) = trouble;
        self.header().of_base.store(matches!(trouble, Trouble::Base(_)), Relaxed);
        self.header().errno.store(error.raw_os_error().unwrap_or(libc::EIO), Relaxed);
    }

    /// Bytes of RAM that the child is done with.
    pub(super) fn bytes_done(&self) -> u64 {
        self.header().bytes_done.load(Relaxed)
    }

    /// Why the child ended.
    pub(super) fn failure(&self) -> Trouble {
        let error = io::Error::from_raw_os_error(self.header().errno.load(Relaxed));
        if self.header().of_base.load(Relaxed) { Trouble::Base(error) } else { Trouble::Write(error) }
    }

    /// What became of chunk `index`, once its writer has ended.
    pub(super) fn get(&self, index: usize) -> WrittenChunk {
        let entry = self.entry(index);
        // SAFETY: the entry lies in the mapping, and whoever wrote it has ended.
        let (kind, tag, pages) = unsafe {
            (
                entry.read(),
                entry.add(1).cast::<[u8; TAG_BYTES]>().read(),
                entry.add(1 + TAG_BYTES).cast::<[u8; PageSet::BYTES]>().read(),
            )
        };
        let chunk = if kind & DATA == 0 { Chunk::Zero } else { Chunk::Data(Tag(tag)) };
        let changed = match kind & !DATA {
            NOTHING => Changed::Nothing,
            PAGES => Changed::Pages(PageSet::from_bytes(pages)),
            _ => Changed::All,
        };
        WrittenChunk { chunk, changed }
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping begins with a header, which is aligned as a page is, lives as long as this value, and
        // holds nothing but atomics, for which zeros are valid.
        unsafe { self.base.cast().as_ref() }
    }

    fn entry(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.chunks, "a chunk of the file");
        // SAFETY: there are `chunks` entries after the header.
        unsafe { self.base.add(size_of::<Header>() + index * ENTRY_BYTES) }
    }
}

impl Drop for Results {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no reference into it is left. That it cannot be unmapped is
        // no reason to fail.
        let _ = unsafe { munmap(self.base.cast(), self.bytes.get()) };
    }
}
