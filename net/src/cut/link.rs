//! A link as the cut sees it: how far its packets have come, and what waits to go out.

use std::collections::VecDeque;

use crate::packet::{Colour, Content, Packet, Payload};

/// What a peer did that a peer never does.
pub(super) type Broken = &'static str;

/// The two directions of a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Link<F> {
    /// Whether packets can go and come.
    pub(super) connected: bool,
    /// Whether the peer's guest is off.
    pub(super) bye: bool,
    /// Colour of the newest packet that was let in: all of a lower one have come.
    pub(super) colour: Colour,
    /// A packet that has to wait for a cut; behind it, nothing is read.
    pub(super) held: Option<(Colour, Content<F>)>,
    /// `link_seq` of the next packet to come.
    expects: u64,
    /// What waits to go out, each with the colour of its origin. Between two frames there is at most one marker.
    row: VecDeque<(Colour, Content<F>)>,
    /// How many frames are in `row`.
    frames: usize,
    /// `link_seq` of the first in `row`.
    next_seq: u64,
}

impl<F: Payload> Link<F> {
    pub(super) fn new() -> Self {
        Link {
            connected: true,
            bye: false,
            colour: Colour::NONE,
            held: None,
            expects: 0,
            row: VecDeque::new(),
            frames: 0,
            next_seq: 0,
        }
    }

    /// A node's link to itself: there is nobody.
    pub(super) fn to_nobody() -> Self {
        Link { connected: false, bye: true, ..Link::new() }
    }

    /// Whether nothing older than `cut` comes any more.
    pub(super) fn is_closed_for(&self, cut: Colour) -> bool {
        self.bye || self.colour >= cut
    }

    /// Whether what was under way on it may be lost.
    pub(super) fn is_lost(&self) -> bool {
        !self.connected && !self.bye
    }

    /// Checks a packet's place; `false` if it has been here before.
    pub(super) fn take_place(&mut self, packet: &Packet<F>) -> Result<bool, Broken> {
        if packet.link_seq < self.expects {
            return Ok(false);
        }
        if packet.link_seq > self.expects {
            return Err("a packet is missing");
        }
        if self.bye {
            return Err("a packet follows its end");
        }
        if packet.colour < self.colour {
            return Err("its colour fell");
        }
        self.expects += 1;
        Ok(true)
    }

    /// Whether the peer can still take frames.
    pub(super) fn takes_frames(&self) -> bool {
        self.connected && !self.bye
    }

    /// Whether all of `slots` are taken by frames that wait to go out.
    pub(super) fn is_full(&self, slots: usize) -> bool {
        self.takes_frames() && self.frames >= slots
    }

    /// Puts something behind all that waits to go out.
    pub(super) fn put(&mut self, colour: Colour, content: Content<F>) {
        match (&content, self.row.back_mut()) {
            // The later marker says all that the earlier one did.
            (Content::Marker, Some((of_last, Content::Marker))) => *of_last = colour,
            _ => {
                self.frames += usize::from(matches!(content, Content::Frame(_)));
                self.row.push_back((colour, content));
            }
        }
    }

    /// The next to go out: colour, place and content.
    pub(super) fn first(&self) -> Option<(Colour, u64, Content<&F>)> {
        self.row.front().map(|(colour, content)| (*colour, self.next_seq, content.as_ref()))
    }

    /// Takes it away: it has gone out.
    pub(super) fn take_first(&mut self) -> Option<F> {
        let (_, content) = self.row.pop_front()?;
        self.next_seq += 1;
        match content {
            Content::Frame(frame) => {
                self.frames -= 1;
                Some(frame)
            }
            Content::Marker | Content::Bye => None,
        }
    }

    /// The connection has ended: nothing goes out any more.
    pub(super) fn end(&mut self) {
        self.connected = false;
        self.row.clear();
        self.frames = 0;
    }
}
