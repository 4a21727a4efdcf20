//! Vectored file I/O straight on guest RAM, without a copy.
//!
//! Invariant: every `iovec` is a slice that vm-memory has checked to be inside one region of guest RAM, and the RAM
//! that it points into is borrowed for as long as it exists. The guest may change that memory at any time; only the
//! kernel reads or writes it, never a Rust reference.

#![allow(unsafe_code)] // preadv(2) and pwritev(2) on guest RAM

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

use crate::GuestRam;
use crate::virtio::chain::Segments;

/// How many pieces one system call takes (UIO_MAXIOV).
const PIECES_MAX: usize = 1024;

type Call = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off64_t) -> libc::ssize_t;

/// Reads the file from `offset` on into `data`. Returns how many bytes from the front, and why not all of them.
pub(super) fn read(file: &File, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>) {
    let (done, result) = transfer(file, ram, data, offset, libc::preadv64);
    mark_dirty(ram, data, done);
    (done, result)
}

/// Writes `data` to the file from `offset` on. Returns how many bytes from the front, and why not all of them.
pub(super) fn write(file: &File, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>) {
    transfer(file, ram, data, offset, libc::pwritev64)
}

fn transfer(file: &File, ram: &GuestRam, data: &Segments, offset: u64, call: Call) -> (u64, io::Result<()>) {
    let mut pieces = match pieces(ram, data) {
        Ok(pieces) => pieces,
        Err(error) => return (0, Err(error)),
    };
    let (mut rest, mut done) = (&mut pieces[..], 0);
    while !rest.is_empty() {
        let count = rest.len().min(PIECES_MAX) as libc::c_int;
        // SAFETY: `rest` holds `count` valid iovecs; each names guest RAM that `ram` keeps mapped until we return.
        let moved = unsafe { call(file.as_raw_fd(), rest.as_ptr(), count, (offset + done) as libc::off64_t) };
        match usize::try_from(moved) {
            Ok(0) => return (done, Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(moved) => {
                done += moved as u64;
                rest = advance(rest, moved);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return (done, Err(error));
                }
            }
        }
    }
    (done, Ok(()))
}

/// The host addresses of `data`; none of them empty.
fn pieces(ram: &GuestRam, data: &Segments) -> io::Result<Vec<libc::iovec>> {
    let mut pieces = Vec::new();
    for segment in data.iter() {
        for slice in ram.get_slices(segment.address, segment.bytes) {
            let slice = slice.map_err(io::Error::other)?;
            pieces.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
    }
    Ok(pieces)
}

/// What is left of `pieces` after `bytes` of them are done.
fn advance(mut pieces: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
    while let Some(first) = pieces.first_mut() {
        if bytes < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(bytes);
            first.iov_len -= bytes;
            break;
        }
        bytes -= first.iov_len;
        pieces = &mut pieces[1..];
    }
    pieces
}

/// KVM does not see what we write: RAM that keeps a bitmap of changes is told.
fn mark_dirty(ram: &GuestRam, data: &Segments, bytes: u64) {
    let mut left = bytes as usize;
    for segment in data.iter() {
        let bytes = segment.bytes.min(left);
        for slice in ram.get_slices(segment.address, bytes).flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
        left -= bytes;
    }
}
