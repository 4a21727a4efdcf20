//! Messages between supervisor and member over a connected SOCK_SEQPACKET pair, with descriptors if need be.
//!
//! Invariant: what comes over it is one JSON value or an error; a descriptor that comes has an owner at once.

#![allow(unsafe_code)] // descriptors come as numbers

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};

/// Largest message, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
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

impl Channel {
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
