//! A VM's part in cuts of its network: an instant for each VM, such that together they are one of the whole, without
//! any VM waiting for another.
//!
//! ```text
//!  guest ─GuestFrame─▶ row of each link ─next_to_send─▶ wire            a frame has its colour from here on
//!  wire ─Arrived─▶ colour > mine: held, and a cut is wanted
//!                  colour = mine: inbox ─next_to_deliver─▶ guest
//!                  colour < mine: inbox, and the log of the open cut
//!  TakeCut ▶ machine stands still ▶ CutTaken ▶ markers behind each row, held packets let in ▶ machine runs on
//! ```
//!
//! These are Lai and Yang's colours: a cut is consistent if no VM takes a frame into its state that was sent after the
//! sender's cut (it is held), and whole if what was sent before one cut and came after the other is kept (in the log).
//!
//! Invariants:
//! - Colours only grow, whatever fails, so nobody holds for ever: a packet is held only while a cut is wanted.
//! - At most one cut is open. It is the newest: a later one means that it is decided, and it was not prepared here.
//! - Every frame that was taken from the guest or a link is in exactly one place: a row, held, the inbox; a log has a
//!   copy. A frame that finds the inbox full is dropped and counted, and goes into no log either: the guest lost it. A
//!   guest that stands still can lose none: what comes for a cut meanwhile is bounded by the cut's log.
//! - A link that is full makes the guest wait; one that is off or lost does not.
//! - Pure: no clock, no I/O. Which bytes a frame has is not looked at.

mod inbox;
mod instant;
mod io;
mod link;

use inbox::{Inbox, Open};
pub use io::{Counters, Input, Limits, Output, Setup, Why};
use link::Link;

use crate::packet::{Colour, Content, Incarnation, Node, Packet, Payload};
use crate::switch::Route;
use crate::{Error, Result};

/// A VM's part in the cuts of its network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cut<F> {
    incarnation: Incarnation,
    colour: Colour,
    /// The cut to be taken next; `colour` if none.
    wanted: Colour,
    /// By node.
    links: Vec<Link<F>>,
    inbox: Inbox<F>,
    open: Option<Open<F>>,
    guest_is_off: bool,
    guest_stands: bool,
    limits: Limits,
    counters: Counters,
}

impl<F: Payload> Cut<F> {
    /// A VM with all its links up and nothing on them.
    pub fn new(setup: Setup) -> Self {
        let Setup { me, nodes, incarnation, limits } = setup;
        let link = |node| if node == me.0 { Link::to_nobody() } else { Link::new() };
        Cut {
            incarnation,
            colour: Colour::NONE,
            wanted: Colour::NONE,
            links: (0..nodes).map(link).collect(),
            inbox: Inbox::new(limits.pending_bytes),
            open: None,
            guest_is_off: false,
            guest_stands: false,
            limits,
            counters: Counters::default(),
        }
    }

    /// A node whose guest was off when the network was saved: there is no link to it.
    pub fn absent(&mut self, node: Node) {
        if let Some(link) = self.links.get_mut(node.index()) {
            *link = Link::to_nobody();
        }
    }

    /// Puts back a frame of a saved log, in its order, before anything else happens.
    pub fn preload(&mut self, from: Node, frame: F) {
        self.inbox.preload(from, frame);
    }

    /// Whether the guest can take no frame whatever it would: its machine stands still. Only what the open cut awaits is
    /// to be read for it then.
    pub fn set_guest_stands(&mut self, stands: bool) {
        self.guest_stands = stands;
    }

    /// Takes note of what happened, and says what is to be done.
    ///
    /// # Errors
    /// A peer or the coordinator did what it never does: [`Error::Link`], [`Error::Coordinator`]. Nothing has changed.
    pub fn handle(&mut self, input: Input<F>, outputs: &mut Vec<Output<F>>) -> Result<()> {
        match input {
            Input::GuestFrame(route, frame) => self.guest_frame(route, frame),
            Input::Arrived(from, packet) => return self.arrived(from, packet, outputs),
            Input::LinkEnded(node) => self.link_ended(node, outputs),
            Input::CutRequested(cut) => self.want(cut, outputs),
            Input::CutTaken(cut) => self.cut_taken(cut, outputs),
            Input::CutFailed(cut, why) => self.cut_failed(cut, Why::Image(why), outputs),
            Input::ImageDurable(cut) => self.image_durable(cut, outputs),
            Input::Committed(cut) if self.is_open(cut) => return Err(Error::Coordinator { cut }),
            Input::Committed(_) => {}
            Input::Aborted(cut) => self.aborted(cut, outputs),
            Input::GuestOff => self.guest_off(outputs),
        }
        Ok(())
    }

    /// Whether a frame may be taken from the guest: wherever it goes, there is room for it.
    pub fn may_pop(&self) -> bool {
        !self.guest_is_off && !self.links.iter().any(|link| link.is_full(self.limits.slots))
    }

    /// Whether frames still go over the link to `node`.
    pub fn is_up(&self, node: Node) -> bool {
        self.links.get(node.index()).is_some_and(Link::takes_frames)
    }

    /// How many bytes wait for the guest.
    pub fn pending_bytes(&self) -> usize {
        self.inbox.bytes()
    }

    /// The next frame for the guest.
    pub fn next_to_deliver(&self) -> Option<&F> {
        self.inbox.first()
    }

    /// The guest has it, or will never take it.
    pub fn delivered(&mut self) -> Option<F> {
        self.inbox.take_first()
    }

    /// Whether the next packet of a link may be read.
    pub fn may_read(&self, from: Node) -> bool {
        self.links.get(from.index()).is_some_and(|link| link.connected && link.held.is_none())
    }

    /// Whether a cut is open and not all of its links are closed.
    pub fn is_collecting(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.closed)
    }

    /// Whether the open cut waits for the next packet of a link.
    pub fn awaits(&self, from: Node) -> bool {
        let open = self.open.as_ref().zip(self.links.get(from.index()));
        self.may_read(from) && open.is_some_and(|(open, link)| !open.closed && !link.is_closed_for(open.cut))
    }

    /// The next packet to go out on a link. Once a part of it has gone, it counts as sent.
    pub fn next_to_send(&self, to: Node) -> Option<Packet<&F>> {
        let (colour, link_seq, content) = self.links.get(to.index())?.first()?;
        Some(Packet { incarnation: self.incarnation, colour, link_seq, content })
    }

    /// It has gone out. Gives the frame back, for its memory.
    pub fn sent(&mut self, to: Node) -> Option<F> {
        self.links.get_mut(to.index())?.take_first()
    }

    /// The VM's colour: the last cut that is behind it.
    pub fn colour(&self) -> Colour {
        self.colour
    }

    /// The cut that is to be taken.
    pub fn wanted(&self) -> Option<Colour> {
        (self.wanted > self.colour).then_some(self.wanted)
    }

    /// What has happened since this was last called.
    pub fn take_counters(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }

    fn guest_frame(&mut self, route: Route, frame: F) {
        debug_assert!(self.may_pop(), "no frame is taken from the guest for which there may be no room");
        let (colour, counters) = (self.colour, &mut self.counters);
        let mut put = |link: &mut Link<F>, frame| match link.takes_frames() {
            true => link.put(colour, Content::Frame(frame)),
            false => counters.unreachable += 1,
        };
        match route {
            Route::To(node) => {
                if let Some(link) = self.links.get_mut(node.index()) {
                    put(link, frame);
                }
            }
            Route::Everyone => {
                self.links.iter_mut().filter(|link| link.takes_frames()).for_each(|link| put(link, frame.clone()));
            }
            Route::Nowhere => {}
        }
    }

    fn arrived(&mut self, from: Node, packet: Packet<F>, outputs: &mut Vec<Output<F>>) -> Result<()> {
        if packet.incarnation != self.incarnation {
            self.counters.fenced += 1;
            return Ok(());
        }
        let broken = |what| Error::Link { peer: from, what };
        let link = self.links.get_mut(from.index()).ok_or(broken("there is no such node"))?;
        assert!(link.held.is_none(), "nothing is read behind a packet that is held");
        if !link.take_place(&packet).map_err(broken)? {
            self.counters.repeated += 1;
            return Ok(());
        }
        let Packet { colour, content, .. } = packet;
        if colour > self.colour && !self.guest_is_off {
            link.held = Some((colour, content));
            self.counters.held += 1;
            // Now, and not when the coordinator says so: it may be dead.
            self.want(colour, outputs);
        } else {
            self.let_in(from, colour, content, outputs);
            self.close_if_done(outputs);
        }
        Ok(())
    }

    fn let_in(&mut self, from: Node, colour: Colour, content: Content<F>, outputs: &mut Vec<Output<F>>) {
        let link = &mut self.links[from.index()];
        link.colour = colour;
        match content {
            Content::Frame(frame) => self.receive(from, colour, frame, outputs),
            Content::Marker => {}
            Content::Bye => link.bye = true,
        }
    }

    fn receive(&mut self, from: Node, colour: Colour, frame: F, outputs: &mut Vec<Output<F>>) {
        if !self.guest_is_off && !self.guest_stands && !self.inbox.has_room_for(&frame) {
            self.counters.dropped += 1;
            self.counters.dropped_late += u64::from(colour < self.colour);
            return;
        }
        if let Some(open) = self.open.as_mut().filter(|open| colour < open.cut) {
            self.counters.logged += 1;
            let limit = self.limits.log_bytes;
            if !open.add(from, &frame, limit) {
                self.fail_open(Why::LogFull { limit }, outputs);
            }
        }
        if !self.guest_is_off {
            self.inbox.put(from, frame);
        }
    }

    fn link_ended(&mut self, node: Node, outputs: &mut Vec<Output<F>>) {
        let Some(link) = self.links.get_mut(node.index()) else { return };
        link.end();
        let (lost, colour) = (link.is_lost(), link.colour);
        // What has come is enough for a cut that this link is closed for.
        if lost && self.open.as_ref().is_some_and(|open| colour < open.cut) {
            self.fail_open(Why::LinkLost(node), outputs);
        }
    }

    fn guest_off(&mut self, outputs: &mut Vec<Output<F>>) {
        self.guest_is_off = true;
        self.wanted = self.colour;
        self.inbox.clear();
        for link in self.links.iter_mut().filter(|link| link.connected) {
            link.put(self.colour, Content::Bye);
        }
        // No cut comes that anything could be held for; what is open may still be completed.
        self.let_in_held(Colour(u64::MAX), outputs);
        self.close_if_done(outputs);
    }
}

#[cfg(test)]
mod tests;
