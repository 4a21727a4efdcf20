//! Frames of one ethertype on a network interface: what it takes to be a machine of its network.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, poll},
};

/// The socket.
#[derive(Debug)]
pub struct Packets(File);

impl Packets {
    /// Frames of this ethertype that come from `interface` of the calling thread's network namespace.
    ///
    /// # Panics
    /// If that cannot be had (it takes root).
    pub fn of(interface: &str, ethertype: [u8; 2]) -> Self {
        let protocol = u16::from_ne_bytes(ethertype);
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket(2) takes three integers and touches no memory of ours.
        let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, protocol.into()) });
        // SAFETY: the kernel just made this descriptor for us alone.
        let socket = unsafe { OwnedFd::from_raw_fd(fd.expect("a packet socket takes root")) };
        let index = if_nametoindex(interface).expect("the interface is there");
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of_val(&address) as u32;
        // SAFETY: the address is as long as it says, and bind(2) only reads it.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        Errno::result(bound).expect("a packet socket is bound");
        Packets(File::from(socket))
    }

    /// Sends a frame. It may be lost, as on any wire: an interface that has just been plugged takes none for a while.
    ///
    /// # Panics
    /// If the socket does not take it.
    pub fn send(&self, frame: &[u8]) {
        let sent = (&self.0).write(frame).expect("a packet socket takes what has a place in its buffer");
        assert_eq!(sent, frame.len(), "a frame is sent as a whole");
    }

    /// The next frame, as it fills `buffer`; `None` if none comes within `limit`.
    pub fn receive<'a>(&self, buffer: &'a mut [u8], limit: Duration) -> Option<&'a [u8]> {
        if let Ok(length) = (&self.0).read(buffer) {
            return Some(&buffer[..length]);
        }
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let limit = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        poll(&mut fds, limit).ok().filter(|ready| *ready > 0)?;
        (&self.0).read(buffer).ok().map(|length| &buffer[..length])
    }
}
