//! The links of a port: packets out of rows into them, packets out of them, perhaps by way of a [`Stretch`], into the cut.
//!
//! Invariant: a line's flags say "perhaps" or "no", never a false "no": its descriptor is watched edge-triggered.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::time::Instant;

use super::poll::{Poll, Ready};
use super::stretch::Stretch;
use super::{AHEAD_BYTES, Fault, Frame, Inner, PATIENCE};
use crate::capture::Capture;
use crate::cut::{Input, Setup};
use crate::packet::{Content, Node, Packet};
use crate::transport::Transport;
use crate::wire::{Hello, PACKET_BYTES_MAX};
use crate::{Error, Result};

/// Packets read from one link before others have their turn.
const PACKETS_PER_TURN: usize = 256;

/// This end of a link.
pub(super) struct Line {
    transport: Box<dyn Transport>,
    readable: bool,
    writable: bool,
    /// Whose other end has said who it is: what it must say.
    expected: Option<Hello>,
    /// What lies before this end, if it is anything.
    stretch: Option<Stretch<Came>>,
}

/// What has come out of a link.
enum Came {
    /// A packet, in the port's buffer.
    Packet(usize),
    /// One that was on a stretch of wire.
    Delayed(Box<[u8]>),
    Nothing,
    End,
    Broken(io::Error),
}

/// Room for the largest packet, and for a byte that tells of a larger one.
pub(super) fn buffer() -> Box<[u8]> {
    vec![0; PACKET_BYTES_MAX + 1].into()
}

impl Line {
    /// Opens this end of the link to `peer`.
    pub(super) fn open(mut transport: Box<dyn Transport>, peer: Node, setup: Setup, poll: &Poll) -> Result<Line> {
        let broken = |source| Error::Connection { peer, source };
        let hello = |node| Hello { node, incarnation: setup.incarnation, expects: 0 };
        transport.send(&hello(setup.me).encode(), &[]).map_err(broken)?;
        poll.add(peer, transport.as_fd()).map_err(broken)?;
        Ok(Line { transport, readable: true, writable: true, expected: Some(hello(peer)), stretch: None })
    }

    /// What becomes of packets that come.
    pub(super) fn set(&mut self, fault: Fault) {
        self.stretch.get_or_insert_with(Stretch::new).set(fault);
    }

    /// The next packet that has come to this end of the link.
    fn next(&mut self, buffer: &mut [u8]) -> Came {
        let Some(stretch) = &mut self.stretch else { return self.read(buffer) };
        match stretch.take(Instant::now()) {
            Some(came) => came,
            None if stretch.is_needless() => {
                self.stretch = None;
                self.read(buffer)
            }
            None => Came::Nothing,
        }
    }

    /// Lets what has come out of the link onto the stretch, if there is one.
    fn let_on(&mut self, buffer: &mut [u8]) {
        while self.readable && self.stretch.as_ref().is_some_and(|stretch| !stretch.is_full()) {
            let came = match self.read(buffer) {
                Came::Packet(bytes) => Came::Delayed(buffer[..bytes].into()),
                Came::Nothing => return,
                last => {
                    self.readable = false;
                    last
                }
            };
            if let Some(stretch) = &mut self.stretch {
                stretch.put(Instant::now(), came);
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Came {
        if !self.readable {
            return Came::Nothing;
        }
        match self.transport.receive(buffer) {
            Ok(0) => Came::End,
            Ok(bytes) => Came::Packet(bytes),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Came::Nothing
            }
            Err(error) => Came::Broken(error),
        }
    }
}

impl Inner {
    /// Notes which links are ready, and moves what can be moved.
    pub(super) fn turn(&mut self, poll: &Poll) {
        if self.guest.run() {
            self.cut.set_guest_stands(false);
        }
        self.note_ready(poll);
        self.receive_all(poll);
        self.send_all(poll);
        if self.cut.next_to_deliver().is_some() || (self.refused && self.cut.may_pop()) {
            poll.tell_card();
        }
    }

    /// The machine stands still: its guest loses nothing of what comes for a cut.
    pub(super) fn stand(&mut self) {
        self.guest.stand();
        self.cut.set_guest_stands(true);
    }

    /// Moves what the open cut waits for, here and at the others; `true` if nothing is left of that, or it is the I/O
    /// thread's matter again.
    pub(super) fn complete_cut(&mut self, poll: &Poll) -> bool {
        if !self.guest.stands() {
            return true;
        }
        self.note_ready(poll);
        self.send_all(poll);
        for node in 0..self.lines.len() {
            let node = Node(node as u16);
            while self.cut.awaits(node) && self.let_on(node) && self.receive_now(node) {}
        }
        self.await_arrivals(poll);
        !self.cut.is_collecting() && !self.has_to_send()
    }

    /// Whether something waits to go out on a link that is there.
    pub(super) fn has_to_send(&self) -> bool {
        let connected = self.lines.iter().zip(0..).filter(|(line, _)| line.is_some());
        connected.into_iter().any(|(_, node)| self.cut.next_to_send(Node(node)).is_some())
    }

    fn note_ready(&mut self, poll: &Poll) {
        for ready in poll.ready() {
            match ready {
                Ready::Line { node, readable, writable } => {
                    let Some(line) = self.lines.get_mut(node.index()).and_then(Option::as_mut) else { continue };
                    line.readable |= readable;
                    if writable && !line.writable {
                        line.writable = true;
                        poll.watch(node, line.transport.as_fd(), false);
                    }
                }
                Ready::Timer => self.guest.look(Instant::now()),
            }
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
            match line.transport.send(&packet.prefix(), frame) {
                Ok(()) => {
                    if let Some(frame) = self.cut.sent(to) {
                        self.traffic[to.index()].sent(&frame);
                        show(&mut self.capture, to, &frame);
                    }
                }
                // Where there is room nevertheless, the descriptor says so at once.
                Err(error) if error.kind() == ErrorKind::WouldBlock || is_short_of_memory(&error) => {
                    line.writable = false;
                    poll.watch(to, line.transport.as_fd(), true);
                }
                // Its end is told when all that it has sent is read; until then nothing is for it.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    line.writable = false;
                }
                Err(source) => return self.give_up(to, Error::Connection { peer: to, source }),
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
        if self.is_far_ahead() && self.guest.watch(Instant::now()) {
            poll.start_timer(PATIENCE);
        }
        self.await_arrivals(poll);
    }

    /// Whether the guest, which takes frames, has enough of them.
    fn is_far_ahead(&self) -> bool {
        self.guest.takes() && self.cut.pending_bytes() >= AHEAD_BYTES
    }

    /// Reads a packet; `false` if none is to be read now.
    fn receive(&mut self, from: Node) -> bool {
        self.let_on(from) && self.cut.may_read(from) && !self.is_far_ahead() && self.receive_now(from)
    }

    /// What travels on a link does so whether it is read or not; `false` if there is no link.
    fn let_on(&mut self, from: Node) -> bool {
        let line = self.lines[from.index()].as_mut();
        line.map(|line| line.let_on(&mut self.buffer)).is_some()
    }

    /// Reads a packet, whether the guest wants one or not.
    fn receive_now(&mut self, from: Node) -> bool {
        let Some(line) = self.lines[from.index()].as_mut() else { return false };
        match line.next(&mut self.buffer) {
            Came::Nothing => false,
            Came::End => {
                self.end(from);
                false
            }
            Came::Packet(bytes) => {
                let buffer = std::mem::take(&mut self.buffer);
                let goes_on = self.arrived(from, &buffer[..bytes]);
                self.buffer = buffer;
                goes_on
            }
            Came::Delayed(packet) => self.arrived(from, &packet),
            Came::Broken(source) => {
                self.give_up(from, Error::Connection { peer: from, source });
                false
            }
        }
    }

    /// A packet has come; `false` if the link is given up for it.
    fn arrived(&mut self, from: Node, packet: &[u8]) -> bool {
        self.take_in(from, packet).map_err(|error| self.give_up(from, error)).is_ok()
    }

    fn take_in(&mut self, from: Node, packet: &[u8]) -> Result<()> {
        if let Some(expected) = self.lines[from.index()].as_mut().and_then(|line| line.expected.take()) {
            let found = Hello::decode(packet)?;
            let what = "it leads to another node, or into another life of the network";
            return if found == expected { Ok(()) } else { Err(Error::Link { peer: from, what }) };
        }
        let packet = Packet::decode(packet)?.map(Frame::from);
        if let Content::Frame(frame) = &packet.content {
            self.traffic[from.index()].received(frame);
            show(&mut self.capture, from, frame);
        }
        self.handle(Input::Arrived(from, packet))
    }

    /// Sees to it that packets on stretches of wire are looked for when they are there.
    fn await_arrivals(&self, poll: &Poll) {
        let now = Instant::now();
        let stretches = self.lines.iter().flatten().filter_map(|line| line.stretch.as_ref());
        if let Some(next) = stretches.filter_map(|stretch| stretch.next(now)).min() {
            poll.wake_after(next - now);
        }
    }

    /// Breaks the link, as a failing host would.
    pub(super) fn break_off(&mut self, node: Node) {
        if self.lines.get(node.index()).is_some_and(Option::is_some) {
            let source = ErrorKind::ConnectionAborted.into();
            self.give_up(node, Error::Connection { peer: node, source });
        }
    }

    fn give_up(&mut self, node: Node, error: Error) {
        (self.say)(super::Event::Broken(node, error));
        self.end(node);
    }

    fn end(&mut self, node: Node) {
        self.lines[node.index()] = None;
        // Only a commit can be refused.
        let _ = self.handle(Input::LinkEnded(node));
    }
}

/// The host had no memory for a packet, and nothing of it was sent.
fn is_short_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// Whoever captures sees each frame that has come over a link, and that has gone.
fn show(capture: &mut Option<Capture>, peer: Node, frame: &Frame) {
    capture.take_if(|capture| !capture.take(peer, frame));
}
