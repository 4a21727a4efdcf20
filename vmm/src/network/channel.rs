//! Messages between supervisor and member over a connected SOCK_SEQPACKET pair, with descriptors if need be.
//!
//! Invariant: what comes over it is one JSON value or an error; a descriptor that comes has an owner at once.

#![allow(unsafe_code)] // descriptors come as numbers

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4,
    bind, connect, getsockopt, recvmsg, sendmsg, socket, socketpair,
};
use nix::unistd::Pid;
use serde::{Serialize, de::DeserializeOwned};

/// Largest message, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Name of the socket where a member waits for a supervisor that takes over.
const SOCKET: &str = "supervisor.sock";
/// Most descriptors in a message: less than Linux allows (SCM_MAX_FD).
pub const DESCRIPTORS_MAX: usize = 250;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// Two connected sockets that keep messages apart; they are not inherited.
///
/// # Errors
/// If the system has none left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// A socket in the directory `dir`, which is private, where a member waits for a supervisor.
///
/// # Errors
/// It cannot be made there.
pub fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let _ = std::fs::remove_file(dir.join(SOCKET));
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    at(dir, |address| bind(listener.as_raw_fd(), address))?;
    socket::listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

/// A socket's address is short; a path by way of an open directory is, too.
fn at(dir: &Path, make: impl FnOnce(&UnixAddr) -> nix::Result<()>) -> io::Result<()> {
    let dir = File::open(dir)?;
    Ok(make(&UnixAddr::new(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET))?)?)
}

impl Channel {
    /// To the member whose state directory is `dir`, and the number of its process.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(dir: &Path) -> io::Result<(Channel, Pid)> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        at(dir, |address| connect(socket.as_raw_fd(), address))?;
        let pid = getsockopt(&socket, PeerCredentials)?.pid();
        Ok((Channel(socket), Pid::from_raw(pid)))
    }

    /// Waits for somebody who connects.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn accept(listener: &OwnedFd) -> io::Result<Channel> {
        let socket = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the kernel has just made this descriptor for this process, and nobody else knows it.
        Ok(Channel(unsafe { OwnedFd::from_raw_fd(socket) }))
    }

    /// The channel over this socket.
    pub fn new(socket: OwnedFd) -> Channel {
        Channel(socket)
    }

    /// The end that a member has as its standard input.
    ///
    /// # Errors
    /// If that is closed.
    pub fn of_member() -> io::Result<Channel> {
        io::stdin().as_fd().try_clone_to_owned().map(Channel)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the other end is gone.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        assert!(bytes.len() <= MESSAGE_BYTES_MAX && descriptors.len() <= DESCRIPTORS_MAX, "messages have bounds");
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Waits for a message; `None` when the other end is gone.
    ///
    /// # Errors
    /// What comes is no message of this kind.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let message = match recvmsg::<()>(self.0.as_raw_fd(), &mut buffer, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
        {
            Ok(message) => message,
            Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = message.bytes;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..length])?, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_message_brings_descriptors_and_an_end_is_seen() {
        let (one, other) = pair().unwrap();
        let (one, other) = (Channel::new(one), Channel::new(other));
        let (mut near, far) = UnixStream::pair().unwrap();
        one.send(&"first", &[far.as_fd()]).unwrap();
        one.send(&"second", &[]).unwrap();
        drop(far);
        let (text, mut descriptors) = other.receive::<String>().unwrap().unwrap();
        assert_eq!((text.as_str(), descriptors.len()), ("first", 1));
        UnixStream::from(descriptors.remove(0)).write_all(b"it is there").unwrap();
        let mut said = String::new();
        near.read_to_string(&mut said).unwrap();
        assert_eq!(said, "it is there", "and it was the last");
        assert_eq!(other.receive::<String>().unwrap().unwrap().0, "second");
        one.send(&7, &[]).unwrap();
        assert!(other.receive::<String>().is_err(), "not of this kind");
        drop(one);
        assert!(other.receive::<String>().unwrap().is_none());
    }
}
