//! What the child has found out, in memory that it shares with its parent.
//!
//! ```text
//! header   bytes done · errno of a failure
//! chunks   33 bytes each: 0 zero, 1 data · digest
//! ```
//!
//! Invariant: a chunk is written once, by the child, and read after the child was reaped, which orders the two.
#![allow(unsafe_code)]

use std::io;
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::digest::{Chunk, Digest};

const ENTRY_BYTES: usize = 33;

#[repr(C)]
struct Header {
    bytes_done: AtomicU64,
    errno: AtomicI32,
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

    /// The child's: what chunk `index`, of `guest_bytes` of RAM, holds.
    pub(super) fn put(&self, index: usize, chunk: Chunk, guest_bytes: u64) {
        if let Chunk::Data(digest) = chunk {
            let entry = self.entry(index);
            // SAFETY: `entry` has room for both, and nobody reads it before this process has ended.
            unsafe {
                entry.write(1);
                entry.add(1).cast::<[u8; 32]>().write(digest.0);
            }
        }
        self.header().bytes_done.fetch_add(guest_bytes, Relaxed);
    }

    /// The child's: why it ends.
    pub(super) fn fail(&self, error: &io::Error) {
        self.header().errno.store(error.raw_os_error().unwrap_or(libc::EIO), Relaxed);
    }

    /// Bytes of RAM that the child is done with.
    pub(super) fn bytes_done(&self) -> u64 {
        self.header().bytes_done.load(Relaxed)
    }

    /// Why the child ended.
    pub(super) fn failure(&self) -> io::Error {
        io::Error::from_raw_os_error(self.header().errno.load(Relaxed))
    }

    /// What chunk `index` holds, once the child has been reaped.
    pub(super) fn get(&self, index: usize) -> Chunk {
        let entry = self.entry(index);
        // SAFETY: the entry lies in the mapping, and the process that wrote it has ended.
        let (kind, digest) = unsafe { (entry.read(), entry.add(1).cast::<[u8; 32]>().read()) };
        if kind == 0 { Chunk::Zero } else { Chunk::Data(Digest(digest)) }
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
