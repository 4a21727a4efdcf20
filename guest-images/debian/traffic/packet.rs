//! A socket for Ethernet frames (packet(7)), which the standard library has not.

use std::{
    ffi::{c_int, c_void},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd},
};

use crate::net_model::ETHERTYPE;

const AF_PACKET: c_int = 17;
const SOCK_RAW: c_int = 3;
const SOL_SOCKET: c_int = 1;
const SO_RCVBUFFORCE: c_int = 33;
const SOL_PACKET: c_int = 263;
const PACKET_STATISTICS: c_int = 6;
const ENOBUFS: i32 = 105;
/// Bytes that may wait in a socket.
static ROOM: c_int = 8 << 20;

/// `struct sockaddr_ll`
#[repr(C)]
struct Address {
    family: u16,
    protocol: [u8; 2],
    interface: c_int,
    hardware: u16,
    kind: u8,
    length: u8,
    address: [u8; 8],
}

/// `struct tpacket_stats`
#[repr(C)]
#[derive(Default)]
struct Statistics {
    packets: u32,
    dropped: u32,
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(socket: c_int, address: *const Address, bytes: u32) -> c_int;
    fn setsockopt(socket: c_int, level: c_int, name: c_int, value: *const c_void, bytes: u32) -> c_int;
    fn getsockopt(socket: c_int, level: c_int, name: c_int, value: *mut c_void, bytes: *mut u32) -> c_int;
}

pub(crate) struct Packet(File);

impl Packet {
    /// Frames of our type, from and to the interface of this number.
    pub(crate) fn open(interface: c_int) -> io::Result<Self> {
        let file = raw_socket(AF_PACKET, u16::from_ne_bytes(ETHERTYPE).into())?;
        widen(file.as_fd())?;
        let address = Address {
            family: AF_PACKET as u16,
            protocol: ETHERTYPE,
            interface,
            hardware: 0,
            kind: 0,
            length: 0,
            address: [0; 8],
        };
        // SAFETY: the address is as long as it says.
        checked(unsafe { bind(file.as_raw_fd(), &address, size_of::<Address>() as u32) })?;
        Ok(Packet(file))
    }

    /// Waits for room.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            match (&self.0).write(frame) {
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => std::thread::yield_now(),
                sent => return sent.map(drop),
            }
        }
    }

    pub(crate) fn receive(&self, to: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(to)
    }

    /// Frames for which there was no room, since this was asked last.
    pub(crate) fn dropped(&self) -> u64 {
        let mut statistics = Statistics::default();
        let mut bytes = size_of::<Statistics>() as u32;
        let to = (&raw mut statistics).cast();
        // SAFETY: the structure is as long as `bytes` says.
        unsafe { getsockopt(self.0.as_raw_fd(), SOL_PACKET, PACKET_STATISTICS, to, &mut bytes) };
        statistics.dropped.into()
    }
}

/// A socket of another family than the standard library knows.
pub(crate) fn raw_socket(family: c_int, protocol: c_int) -> io::Result<File> {
    // SAFETY: takes numbers only.
    let fd = checked(unsafe { socket(family, SOCK_RAW, protocol) })?;
    // SAFETY: it has just been made for us.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Gives a socket room for all that comes while this machine's CPU has other things to do.
pub(crate) fn widen(fd: BorrowedFd<'_>) -> io::Result<()> {
    let (room, bytes) = (&raw const ROOM, size_of_val(&ROOM) as u32);
    // SAFETY: the value is as long as it says.
    checked(unsafe { setsockopt(fd.as_raw_fd(), SOL_SOCKET, SO_RCVBUFFORCE, room.cast(), bytes) }).map(drop)
}

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
