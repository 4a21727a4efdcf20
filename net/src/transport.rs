//! What carries packets from one VMM to another.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, sendmsg};

/// A connection to another VMM: each packet arrives whole, once, and after all that were sent before it, or the connection
/// ends.
///
/// Its descriptor is readable when a packet has come or the end, and writable when there is room for one. Both are watched
/// edge-triggered (epoll(7)).
pub trait Transport: AsFd + Debug + Send {
    /// Sends the packet that is `prefix` followed by `frame`. Never waits.
    ///
    /// # Errors
    /// `WouldBlock`: there is no room now. `BrokenPipe` and `ConnectionReset`: the peer is gone; what it has sent can still
    /// be received. ENOBUFS and ENOMEM: the host has no memory for it now, and nothing was sent. Others: the connection is
    /// broken.
    fn send(&mut self, prefix: &[u8], frame: &[u8]) -> io::Result<()>;

    /// Receives a packet, and returns its bytes, 0 at the end; of one longer than `buffer` the rest is lost. Never waits.
    ///
    /// # Errors
    /// `WouldBlock`: none is there now. Others: the connection is broken.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// To a VMM of the same host: a connected unix socket of type SOCK_SEQPACKET, a packet a message (unix(7)).
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

impl SeqPacket {
    /// By way of this socket.
    pub fn new(socket: OwnedFd) -> SeqPacket {
        SeqPacket(socket)
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for SeqPacket {
    fn send(&mut self, prefix: &[u8], frame: &[u8]) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let packet = [IoSlice::new(prefix), IoSlice::new(frame)];
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &packet, &[], flags, None) {
                Err(Errno::EINTR) => {}
                sent => return Ok(sent.map(drop)?),
            }
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                // ECONNRESET: the other end was closed, and there was something for it. What it has sent is still to come.
                Err(Errno::EINTR | Errno::ECONNRESET) => {}
                received => return Ok(received?),
            }
        }
    }
}
