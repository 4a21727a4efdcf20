//! Write protection by userfaultfd(2) (kernel document `admin-guide/mm/userfaultfd`, "Write Protect Notifications").
//!
//! Of anonymous memory alone; huge pages stay whole. Faults of the kernel count as well, which takes CAP_SYS_PTRACE, or
//! access to /dev/userfaultfd, or the sysctl `vm.unprivileged_userfaultfd`: a device's request may write to guest RAM in
//! a system call.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const API: u64 = 0xaa;
/// Write protection, which is all that is wanted.
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Most faults that are heard of at once.
const MESSAGES: usize = 16;

/// `struct uffdio_api`.
#[repr(C)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Span {
    start: u64,
    bytes: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    span: Span,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    span: Span,
    mode: u64,
}

/// `struct uffd_msg` of a page fault.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u64,
}

/// Of this process's memory.
#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    pub(super) fn open() -> io::Result<Uffd> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: a system call that takes integers.
        let made = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let made = match made {
            -1 => {
                let refused = io::Error::last_os_error();
                let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").map_err(|_| refused)?;
                // SAFETY: USERFAULTFD_IOC_NEW takes an integer and makes a descriptor.
                unsafe { libc::ioctl(device.as_raw_fd(), request(0, 0, 0), flags) }
            }
            made => made as libc::c_int,
        };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just made this descriptor for us alone.
        let uffd = Uffd(unsafe { OwnedFd::from_raw_fd(made) });
        uffd.call(READ | WRITE, 0x3f, &mut Handshake { api: API, features: FEATURE_PAGEFAULT_FLAG_WP, ioctls: 0 })?;
        Ok(uffd)
    }

    /// Faults in this memory are ours from now on.
    pub(super) fn register(&self, memory: &Range<usize>) -> io::Result<()> {
        self.call(READ | WRITE, 0x00, &mut Register { span: span(memory), mode: REGISTER_MODE_WP, ioctls: 0 })
    }

    /// They are the kernel's again: nothing is protected, and nobody waits.
    pub(super) fn unregister(&self, memory: &Range<usize>) -> io::Result<()> {
        self.call(READ, 0x01, &mut span(memory))
    }

    /// Who writes there waits from now on. Pages that do not exist are not protected.
    pub(super) fn protect(&self, memory: &Range<usize>) -> io::Result<()> {
        self.write_protect(memory, WRITEPROTECT_MODE_WP)
    }

    /// Who waits there goes on.
    pub(super) fn unprotect(&self, memory: &Range<usize>) -> io::Result<()> {
        self.write_protect(memory, 0)
    }

    /// The addresses that somebody waits for, if there are any that were not told of.
    pub(super) fn faults(&self) -> impl Iterator<Item = usize> {
        let mut messages = [Message::default(); MESSAGES];
        // SAFETY: `messages` is integers, and as long as it is said to be.
        let read = unsafe { libc::read(self.0.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages)) };
        let count = usize::try_from(read).unwrap_or(0) / size_of::<Message>();
        let faults = messages.into_iter().take(count).filter(|message| message.event == EVENT_PAGEFAULT);
        faults.map(|message| message.address as usize)
    }

    fn write_protect(&self, memory: &Range<usize>, mode: u64) -> io::Result<()> {
        loop {
            match self.call(READ | WRITE, 0x06, &mut WriteProtect { span: span(memory), mode }) {
                // Its map of memory is just being changed.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }

    fn call<T>(&self, direction: libc::c_ulong, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        let request = request(direction, number, size_of::<T>());
        // SAFETY: `argument` is the structure of integers that this request reads and writes.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn span(memory: &Range<usize>) -> Span {
    Span { start: memory.start as u64, bytes: memory.len() as u64 }
}

const WRITE: libc::c_ulong = 1;
const READ: libc::c_ulong = 2;

/// `_IOC(direction, UFFDIO, number, bytes)`.
const fn request(direction: libc::c_ulong, number: libc::c_ulong, bytes: usize) -> libc::c_ulong {
    direction << 30 | (bytes as libc::c_ulong) << 16 | API << 8 | number
}
