//! A network card's place in its network: the VM's [`Cut`], its [`Switch`], and a link to each other VM.
//!
//! ```text
//! card ─ Link: read, write ─┐                ┌─ turn ─ I/O thread, when poll_fd is ready
//!                           ├─ Cut ─ lines ──┤
//! main loop ─ tell ─────────┘                └─ a Transport to each other VM
//! ```
//!
//! Invariants:
//! - One lock, never held while anything waits; what the cut says goes out under it and in its order.
//! - A card that was refused a frame, or had none to read, is told by its descriptor when that has changed.
//! - A link is read whether the card has a driver or not, else a VM that boots would hold up the others' cuts. While its
//!   guest takes frames a VM reads no further ahead than [`AHEAD_BYTES`], so the senders wait for it. From a guest that
//!   has taken none for [`PATIENCE`] nobody waits: it loses what finds its inbox full. Time in which it could take none,
//!   since its machine stood still, does not count.
//! - Between `CutTaken` and the machine's going on the I/O thread is parked: nothing goes between guest and cut. Whoever
//!   sees to the links meanwhile takes events that were for it, so it turns the port before all else when it goes on.

mod card;
mod guest;
mod line;
mod link_counters;
mod poll;
mod stretch;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::capture::Capture;
use crate::cut::{Counters, Cut, Input, Output, Setup};
use crate::packet::{Colour, Node};
use crate::switch::{Mac, Route, Switch};
use crate::transport::Transport;
use crate::{Error, Result};
use guest::Guest;
use line::Line;
pub use link_counters::LinkCounters;
use poll::Poll;
pub use stretch::Fault;

/// A frame with its virtio-net header: shared by rows, inbox and log.
pub type Frame = Arc<[u8]>;

/// How much is read from links ahead of a guest that takes frames.
pub const AHEAD_BYTES: usize = 1 << 20;
/// How long a guest may take no frames before the others do not wait for it any more.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// What a port is made of.
#[derive(Debug)]
pub struct PortConfig {
    /// Its name in messages.
    pub name: String,
    /// Which node it is, of how many, in which life.
    pub setup: Setup,
    /// All cards of the network, by node.
    pub macs: Vec<Mac>,
    /// Nodes that take part, with a connection to each; the others are off.
    pub links: Vec<(Node, Box<dyn Transport>)>,
    /// What a restore puts back, in its order.
    pub preload: Vec<(Node, Frame)>,
    /// Whether the network's cards may leave checksums and segmentation to whoever receives: all of them, or none.
    pub offloads: bool,
}

/// What a port says to whoever owns it.
#[derive(Debug)]
pub enum Event {
    /// The cut wants something done.
    Cut(Output<Frame>),
    /// The link to this node is given up, since its peer breaks the rules or its connection fails.
    Broken(Node, Error),
}

/// A card's place in its network. Clones are the same.
#[derive(Clone)]
pub struct Port(Arc<Shared>);

struct Shared {
    name: String,
    me: Node,
    offloads: bool,
    poll: Poll,
    inner: Mutex<Inner>,
}

struct Inner {
    cut: Cut<Frame>,
    switch: Switch,
    /// By node.
    lines: Vec<Option<Line>>,
    buffer: Box<[u8]>,
    say: Box<dyn Fn(Event) + Send>,
    /// The card wanted to send a frame, and there was no room.
    refused: bool,
    /// How often that was.
    waits: u64,
    guest: Guest,
    counters: Counters,
    /// As they were at the newest cut.
    at_cut: Counters,
    /// By node.
    traffic: Vec<LinkCounters>,
    capture: Option<Capture>,
}

impl Port {
    /// A port with its links up, in a network whose others may have begun already. What it has to say goes to `say`,
    /// which must not wait or call the port.
    ///
    /// # Errors
    /// [`Error::Port`] if the system has no descriptors left; [`Error::Connection`] if a link is gone already.
    pub fn open(config: PortConfig, say: impl Fn(Event) + Send + 'static) -> Result<Port> {
        let PortConfig { name, setup, macs, links, preload, offloads } = config;
        let poll = Poll::new().map_err(|source| Error::Port { source })?;
        let mut cut = Cut::new(setup);
        let mut lines: Vec<Option<Line>> = (0..setup.nodes).map(|_| None).collect();
        for (node, transport) in links {
            lines[node.index()] = Some(Line::open(transport, node, setup, &poll)?);
        }
        for (line, node) in lines.iter().zip(0..) {
            if line.is_none() {
                cut.absent(Node(node));
            }
        }
        preload.into_iter().for_each(|(from, frame)| cut.preload(from, frame));
        let inner = Inner {
            cut,
            switch: Switch::new(setup.me, &macs),
            lines,
            buffer: line::buffer(),
            say: Box::new(say),
            refused: false,
            waits: 0,
            guest: Guest::default(),
            counters: Counters::default(),
            at_cut: Counters::default(),
            traffic: vec![LinkCounters::default(); setup.nodes.into()],
            capture: None,
        };
        Ok(Port(Arc::new(Shared { name, me: setup.me, offloads, poll, inner: Mutex::new(inner) })))
    }

    /// Tells the cut something that comes from elsewhere than the card or a link.
    ///
    /// # Errors
    /// [`Error::Coordinator`].
    pub fn tell(&self, input: Input<Frame>) -> Result<()> {
        let mut inner = self.lock();
        if let Input::CutTaken(_) = input {
            // For a moment at least, and its guest could take nothing meanwhile.
            inner.stand();
            inner.at_cut = inner.counters();
        }
        let done = inner.handle(input);
        drop(inner);
        // What it has changed (markers to send, packets no longer held) is seen to on the I/O thread.
        self.0.poll.wake();
        done
    }

    /// Moves what can be moved between links and cut. To be called whenever [`Port::poll_fd`] is readable.
    pub fn turn(&self) {
        self.lock().turn(&self.0.poll);
    }

    /// Readable when there is something to do for [`Port::turn`].
    pub fn poll_fd(&self) -> RawFd {
        self.0.poll.as_raw_fd()
    }

    /// The colour of the VM.
    pub fn colour(&self) -> Colour {
        self.lock().cut.colour()
    }

    /// What has happened since it was opened.
    pub fn counters(&self) -> Counters {
        self.lock().counters()
    }

    /// Frames dropped of those that were sent before the newest cut: one that is restored from it has lost these.
    pub fn dropped_before_cut(&self) -> u64 {
        let mut inner = self.lock();
        inner.at_cut.dropped + inner.counters().dropped_late - inner.at_cut.dropped_late
    }

    /// How often the guest had to wait, since a link was full.
    pub fn waits(&self) -> u64 {
        self.lock().waits
    }

    /// The number of its node.
    pub fn node(&self) -> Node {
        self.0.me
    }

    /// The links to other nodes, whether frames still go over each, and what has gone over it since it was opened.
    pub fn links(&self) -> Vec<(Node, bool, LinkCounters)> {
        let inner = self.lock();
        let others = (0..).map(Node).zip(&inner.traffic).filter(|(node, _)| *node != self.0.me);
        others.map(|(node, counters)| (node, inner.cut.is_up(node), *counters)).collect()
    }

    /// What becomes of packets that come over the link to `peer` from now on. Without such a link: nothing.
    pub fn set_fault(&self, peer: Node, fault: Fault) {
        let mut inner = self.lock();
        match (fault, inner.lines.get_mut(peer.index())) {
            (Fault::Break, _) => inner.break_off(peer),
            (fault, Some(Some(line))) => line.set(fault),
            (_, _) => {}
        }
        drop(inner);
        self.0.poll.wake();
    }

    /// From now on frames that go and come are shown to `capture`, instead of to an earlier one, which ends.
    pub fn set_capture(&self, capture: Option<Capture>) {
        self.lock().capture = capture;
    }

    /// The machine stands still, and its I/O thread does too: until that calls [`Port::turn`] again.
    pub fn stand(&self) {
        self.lock().stand();
    }

    /// Sees to the links of the open cut until it is complete or given up, or the machine does not stand still any more.
    /// What is not of the cut stays where it is. To be called on another thread than the one that is to be told of it.
    pub fn complete_cut(&self) {
        while !self.lock().complete_cut(&self.0.poll) {
            // Not for ever: the machine may run again, and its I/O thread have taken what there was to wait for.
            self.0.poll.wait(PATIENCE);
        }
        // What was found here and is not of the cut is for the I/O thread, which was not told of it.
        self.0.poll.wake();
    }

    /// The guest has powered off: says so to the others, behind all that waits to go out, and waits for that.
    pub fn leave(&self, patience: Duration) {
        let until = Instant::now() + patience;
        // Only a commit can be refused.
        let _ = self.tell(Input::GuestOff);
        loop {
            self.turn();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.lock().has_to_send() {
                return;
            }
            self.0.poll.wait(left);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn handle(&mut self, input: Input<Frame>) -> Result<()> {
        let mut outputs = Vec::new();
        let done = self.cut.handle(input, &mut outputs);
        outputs.into_iter().for_each(|output| (self.say)(Event::Cut(output)));
        done
    }

    fn counters(&mut self) -> Counters {
        self.counters += self.cut.take_counters();
        self.counters
    }

    fn write(&mut self, frame: &[u8], poll: &Poll) -> io::Result<usize> {
        if !self.may_write() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let route = self.switch.route(frame);
        self.handle(Input::GuestFrame(route, frame.into())).map_err(io::Error::other)?;
        match route {
            Route::To(node) => self.send(node, poll),
            Route::Everyone => self.send_all(poll),
            Route::Nowhere => {}
        }
        Ok(frame.len())
    }

    fn may_write(&mut self) -> bool {
        let may = self.cut.may_pop();
        self.waits += u64::from(!may && !self.refused);
        self.refused = !may;
        may
    }

    fn read(&mut self, buffer: &mut [u8], poll: &Poll) -> io::Result<usize> {
        if self.cut.next_to_deliver().is_none() {
            self.receive_all(poll);
        }
        let frame = self.cut.delivered().ok_or(io::ErrorKind::WouldBlock)?;
        self.guest.took();
        let length = frame.len().min(buffer.len());
        buffer[..length].copy_from_slice(&frame[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests;
