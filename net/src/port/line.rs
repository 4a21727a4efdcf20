//! The sockets of a port: packets out of rows into them, packets out of them into the cut.
//!
//! Invariant: a line's flags say "perhaps" or "no", never a false "no": its descriptor is watched edge-triggered.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, sendmsg};

use super::poll::{Poll, Ready};
use super::{AHEAD_BYTES, Frame, Inner, PATIENCE};
use crate::cut::{Input, Setup};
use crate::packet::{Content, Node, Packet};
use crate::wire::{Hello, PACKET_BYTES_MAX};
use crate::{Error, Result};

/// Packets read from one link before others have their turn.
const PACKETS_PER_TURN: usize = 256;

/// A link's socket.
pub(super) struct Line {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    /// Whose other end has said who it is: what it must say.
    expected: Option<Hello>,
}

/// Room for the largest packet, and for a byte that tells of a larger one.
pub(super) fn buffer() -> Box<[u8]> {
    vec![0; PACKET_BYTES_MAX + 1].into()
}

impl Line {
    /// Opens this end of the link to `peer`.
    pub(super) fn open(socket: OwnedFd, peer: Node, setup: Setup, poll: &Poll) -> Result<Line> {
        let hello = |node| Hello { node, incarnation: setup.incarnation, expects: 0 };
        send(&socket, &hello(setup.me).encode(), &[]).map_err(|errno| broken(peer, errno))?;
        poll.add(peer, &socket).map_err(|source| Error::Connection { peer, source })?;
        Ok(Line { socket, readable: true, writable: true, expected: Some(hello(peer)) })
    }
}

impl Inner {
    /// Notes which links are ready, and moves what can be moved.
    pub(super) fn turn(&mut self, poll: &Poll) {
        for ready in poll.ready() {
            match ready {
                Ready::Line { node, readable, writable } => {
                    let Some(line) = self.lines.get_mut(node.index()).and_then(Option::as_mut) else { continue };
                    line.readable |= readable;
                    if writable && !line.writable {
                        line.writable = true;
                        poll.watch(node, &line.socket, false);
                    }
                }
                Ready::Timer => {
                    self.guest.takes = self.guest.took;
                    self.guest.watched = false;
                }
            }
        }
        self.receive_all(poll);
        self.send_all(poll);
        if self.cut.next_to_deliver().is_some() || (self.refused && self.cut.may_pop()) {
            poll.tell_card();
        }
    }

    pub(super) fn send_all(&mut self, poll: &Poll) {
        (0..self.lines.len()).for_each(|node| self.send(Node(node as u16), poll));
    }

    /// Sends what waits for a link, as much as it takes.
    pub(super) fn send(&mut self, to: Node, poll: &Poll) {
        let Some(line) = self.lines.get_mut(to.index()).and_then(Option::as_mut) else { return };
        while let (true, Some(packet)) = (line.writable, self.cut.next_to_send(to)) {
            let frame: &[u8] = if let Content::Frame(frame) = packet.content { frame } else { &[] };
            match send(&line.socket, &packet.prefix(), frame) {
                Ok(()) => drop(self.cut.sent(to)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    line.writable = false;
                    poll.watch(to, &line.socket, true);
                }
                // Its end is told when all that it has sent is read; until then nothing is for it.
                Err(_) => line.writable = false,
            }
        }
    }

    /// Reads the links as far as cut and guest let it.
    pub(super) fn receive_all(&mut self, poll: &Poll) {
        for node in 0..self.lines.len() {
            let node = Node(node as u16);
            let share = (0..PACKETS_PER_TURN).try_for_each(|_| self.receive(node).then_some(()));
            if share.is_some() {
                // Some is left, perhaps.
                poll.wake();
            }
        }
        if self.is_far_ahead() && !self.guest.watched {
            self.guest.watched = true;
            self.guest.took = false;
            poll.start_timer(PATIENCE);
        }
    }

    /// Whether the guest, which takes frames, has enough of them.
    fn is_far_ahead(&self) -> bool {
        self.guest.takes && self.cut.pending_bytes() >= AHEAD_BYTES
    }

    /// Reads a packet; `false` if none is to be read now.
    fn receive(&mut self, from: Node) -> bool {
        if !self.cut.may_read(from) || self.is_far_ahead() {
            return false;
        }
        let Some(line) = self.lines[from.index()].as_mut().filter(|line| line.readable) else { return false };
        match recv(line.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EINTR) => true,
            Err(Errno::EAGAIN) => {
                line.readable = false;
                false
            }
            Ok(0) => {
                self.end(from);
                false
            }
            Ok(bytes) => self.arrived(from, bytes).map_err(|error| self.give_up(from, error)).is_ok(),
            Err(errno) => {
                self.give_up(from, broken(from, errno));
                false
            }
        }
    }

    fn arrived(&mut self, from: Node, bytes: usize) -> Result<()> {
        let packet = &self.buffer[..bytes];
        if let Some(expected) = self.lines[from.index()].as_mut().and_then(|line| line.expected.take()) {
            let found = Hello::decode(packet)?;
            let what = "it leads to another node, or into another life of the network";
            return if found == expected { Ok(()) } else { Err(Error::Link { peer: from, what }) };
        }
        let packet = Packet::decode(packet)?.map(Frame::from);
        self.handle(Input::Arrived(from, packet))
    }

    fn give_up(&mut self, node: Node, error: Error) {
        (self.say)(super::Event::Broken(error));
        self.end(node);
    }

    fn end(&mut self, node: Node) {
        self.lines[node.index()] = None;
        // Only a commit can be refused.
        let _ = self.handle(Input::LinkEnded(node));
    }
}

fn send(socket: &OwnedFd, prefix: &[u8], frame: &[u8]) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(prefix), IoSlice::new(frame)], &[], flags, None).map(drop)
}

fn broken(peer: Node, errno: Errno) -> Error {
    Error::Connection { peer, source: io::Error::from(errno) }
}
