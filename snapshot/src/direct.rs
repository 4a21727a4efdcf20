//! Writes of whole chunks to a new file past the page cache, several in flight (io_submit(2) on a file opened with
//! O_DIRECT).
//!
//! ```text
//! buffers  │ digest │ ─── in flight ─── │ ─── in flight ─── │ idle │     each of a chunk, in turns
//! ```
//!
//! The processor only reads and digests: the disk fetches the bytes itself, at the same time. It saves the copy into the
//! page cache, which takes longer than the digest, and the memory, as much as the guest has: what the host keeps in its
//! cache is worth more to it. The buffers are the process's own. To write from guest RAM would be no good: of pages that
//! it shares after a fork the kernel makes a copy for the child before a device may read them.
//!
//! Invariants: a buffer is not touched while a write from it is in flight. Nothing is allocated after [`Direct::open`].
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::files::{self, retry};
use crate::limits::{CHUNK_BYTES, PAGE_BYTES, PIECE_BYTES};

const BUFFER_BYTES: usize = CHUNK_BYTES as usize;
/// One is filled, the others are in flight.
const BUFFERS: usize = 4;
const BYTES: NonZero<usize> = NonZero::new(BUFFERS * BUFFER_BYTES).expect("not zero");
/// Most runs of pieces that are not zero in a chunk.
const RUNS: usize = (BUFFER_BYTES / PIECE_BYTES).div_ceil(2);
/// IOCB_CMD_PWRITE of linux/aio_abi.h.
const PWRITE: u16 = 1;

/// A file that is written so.
pub(crate) struct Direct {
    file: File,
    buffers: NonNull<u8>,
    /// The kernel's context, 0 if there is none: each write is waited for then.
    context: libc::c_ulong,
    requests: [[libc::iocb; RUNS]; BUFFERS],
    in_flight: [usize; BUFFERS],
    /// The buffer that is filled.
    current: usize,
}

/// Which pieces of a chunk hold data.
#[derive(Debug, Default)]
pub(crate) struct Pieces(u32);

/// struct io_event of linux/aio_abi.h.
#[repr(C)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

// SAFETY: the mapping belongs to this value alone, and requests point nowhere else.
unsafe impl Send for Direct {}

impl Direct {
    /// For the new file `file`; `None` if its file system does not say that it can, for any page.
    pub(crate) fn open(file: &File) -> Option<Direct> {
        let fits = |align: u32| align != 0 && PAGE_BYTES.is_multiple_of(align.into());
        let (memory, offset) = alignments(file)?;
        if !fits(memory) || !fits(offset) {
            return None;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let buffers = unsafe { mmap_anonymous(None, BYTES, access, flags) }.ok()?;
        // SAFETY: of that mapping; without huge pages it is as good, and a little slower.
        let _ = unsafe { madvise(buffers, BYTES.get(), MmapAdvise::MADV_HUGEPAGE) };
        // SAFETY: integers, for which zeros are valid.
        let requests = unsafe { zeroed() };
        Some(Direct { file, buffers: buffers.cast(), context: 0, requests, in_flight: [0; BUFFERS], current: 0 })
    }

    /// The descriptor that it needs.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// To be called in the process that writes: a context belongs to a process's memory.
    pub(crate) fn begin(&mut self) {
        // SAFETY: the kernel writes to `context`, which was 0 as it demands; where it has none for us it stays 0.
        unsafe { libc::syscall(libc::SYS_io_setup, BUFFERS * RUNS, &raw mut self.context) };
    }

    /// A buffer for a chunk, with anything in it; waits for one.
    pub(crate) fn buffer(&mut self) -> io::Result<&mut [u8]> {
        self.current = (self.current + 1) % BUFFERS;
        while self.in_flight[self.current] > 0 {
            self.reap()?;
        }
        // SAFETY: it lies in the mapping, nothing is in flight from it, and the borrow is of all of `self`.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.at(0), BUFFER_BYTES) })
    }

    /// Begins to write those pieces of the buffer's first `bytes` bytes that hold `data`; it goes to `offset`.
    pub(crate) fn write(&mut self, data: &Pieces, bytes: usize, offset: u64) -> io::Result<()> {
        data.runs().enumerate().try_for_each(|(number, pieces)| {
            let (start, end) = (pieces.start * PIECE_BYTES, (pieces.end * PIECE_BYTES).min(bytes));
            self.begin_write(number, start..end, offset + start as u64)
        })
    }

    /// Waits until all is written.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        while self.in_flight.iter().any(|count| *count > 0) {
            self.reap()?;
        }
        Ok(())
    }

    fn begin_write(&mut self, number: usize, range: Range<usize>, offset: u64) -> io::Result<()> {
        // SAFETY: it lies in the mapping, and nobody writes to this buffer before `buffer` gives it out again.
        let bytes = unsafe { std::slice::from_raw_parts(self.at(range.start), range.len()) };
        files::begin_write_at(&self.file, bytes, offset, || {
            if self.context == 0 {
                return self.file.write_all_at(bytes, offset);
            }
            let request = &mut self.requests[self.current][number];
            request.aio_data = (self.current * RUNS + number) as u64;
            request.aio_lio_opcode = PWRITE;
            request.aio_fildes = self.file.as_raw_fd() as u32;
            request.aio_buf = bytes.as_ptr() as u64;
            request.aio_nbytes = bytes.len() as u64;
            request.aio_offset = offset as i64;
            let mut list = [&raw mut *request];
            // SAFETY: the kernel copies the list and the request; the bytes stay as they are until it is done.
            retry(|| count(unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) }))?;
            self.in_flight[self.current] += 1;
            Ok(())
        })
    }

    /// Waits until something has been written.
    fn reap(&mut self) -> io::Result<()> {
        let mut events = [const { MaybeUninit::<Event>::uninit() }; BUFFERS * RUNS];
        let (forever, most) = (std::ptr::null::<libc::timespec>(), events.len());
        let count = retry(|| {
            let list = events.as_mut_ptr();
            // SAFETY: there is room for so many.
            count(unsafe { libc::syscall(libc::SYS_io_getevents, self.context, 1, most, list, forever) })
        })?;
        let mut result = Ok(());
        for event in &events[..count] {
            // SAFETY: the kernel has filled so many.
            let Event { data, result: written, .. } = unsafe { event.assume_init_ref() };
            let (buffer, number) = (*data as usize / RUNS, *data as usize % RUNS);
            self.in_flight[buffer] -= 1;
            result = result.and(self.end_write(&self.requests[buffer][number], *written));
        }
        result
    }

    /// What was not written is tried again, which says why.
    fn end_write(&self, request: &libc::iocb, written: i64) -> io::Result<()> {
        let Ok(written) = usize::try_from(written) else { return Err(io::Error::from_raw_os_error(-written as i32)) };
        // SAFETY: the buffer that this request was made of, which nobody has had since.
        let bytes = unsafe { std::slice::from_raw_parts(request.aio_buf as *const u8, request.aio_nbytes as usize) };
        self.file.write_all_at(&bytes[written..], request.aio_offset as u64 + written as u64)
    }

    /// A place in the buffer that is filled.
    fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: there are `BUFFERS` such buffers in the mapping, and `offset` is less than the length of one.
        unsafe { self.buffers.add(self.current * BUFFER_BYTES + offset) }.as_ptr()
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        // SAFETY: the call waits until nothing is in flight, after which nobody uses the mapping, which is ours. That
        // either fails is no reason to fail.
        unsafe {
            if self.context != 0 {
                libc::syscall(libc::SYS_io_destroy, self.context);
            }
            let _ = munmap(self.buffers.cast(), BYTES.get());
        }
    }
}

impl Pieces {
    /// The piece at this offset of the chunk holds data.
    pub(crate) fn insert(&mut self, offset: u64) {
        self.0 |= 1 << (offset as usize / PIECE_BYTES);
    }

    /// Runs of them.
    fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let start = (left != 0).then(|| left.trailing_zeros())?;
            let end = start + (left >> start).trailing_ones();
            left &= !0 << end;
            Some(start as usize..end as usize)
        })
    }
}

/// What a direct write to the file needs its memory and its offset aligned to; see statx(2), STATX_DIOALIGN.
fn alignments(file: &File) -> Option<(u32, u32)> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the kernel fills `found`; an empty path means the descriptor.
    let status = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, found.as_mut_ptr())
    };
    // SAFETY: integers, for which the zeros that were there are valid.
    let found = unsafe { found.assume_init() };
    let is_told = status == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0;
    is_told.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align))
}

/// What a system call returned.
fn count(returned: libc::c_long) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests;
