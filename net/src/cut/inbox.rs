//! Frames that wait for the guest, and the cut that is being completed.

use std::collections::VecDeque;

use crate::packet::{Colour, Node, Payload};

/// Frames that have come and are not in the guest's ring yet, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Inbox<F> {
    frames: VecDeque<(Node, F)>,
    bytes: usize,
    /// How much it may hold beside what a restore put in.
    limit: usize,
    /// What is left of that, at the front.
    preloaded: usize,
}

impl<F: Payload> Inbox<F> {
    pub(super) fn new(limit: usize) -> Self {
        Inbox { frames: VecDeque::new(), bytes: 0, limit, preloaded: 0 }
    }

    pub(super) fn has_room_for(&self, frame: &F) -> bool {
        self.bytes + frame.bytes() <= self.limit + self.preloaded
    }

    pub(super) fn put(&mut self, from: Node, frame: F) {
        self.bytes += frame.bytes();
        self.frames.push_back((from, frame));
    }

    pub(super) fn preload(&mut self, from: Node, frame: F) {
        debug_assert_eq!(self.bytes, self.preloaded, "before anything else comes");
        self.preloaded += frame.bytes();
        self.put(from, frame);
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn first(&self) -> Option<&F> {
        self.frames.front().map(|(_, frame)| frame)
    }

    pub(super) fn take_first(&mut self) -> Option<F> {
        let (_, frame) = self.frames.pop_front()?;
        self.bytes -= frame.bytes();
        self.preloaded = self.preloaded.saturating_sub(frame.bytes());
        Some(frame)
    }

    pub(super) fn clear(&mut self) {
        *self = Inbox::new(self.limit);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Node, F)> {
        self.frames.iter()
    }
}

/// A cut of which this VM's state is taken, and its links are not all closed or its image is not on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Open<F> {
    pub(super) cut: Colour,
    /// What the guest had not got at the cut, and then what comes that was sent before it.
    pub(super) log: Vec<(Node, F)>,
    bytes: usize,
    /// All links are closed, and the log has been handed out.
    pub(super) closed: bool,
}

impl<F: Payload> Open<F> {
    pub(super) fn new(cut: Colour) -> Self {
        Open { cut, log: Vec::new(), bytes: 0, closed: false }
    }

    /// `false` if that would be more than `limit`.
    pub(super) fn add(&mut self, from: Node, frame: &F, limit: usize) -> bool {
        debug_assert!(!self.closed, "nothing older comes over a closed link");
        self.bytes += frame.bytes();
        if self.bytes > limit {
            return false;
        }
        self.log.push((from, frame.clone()));
        true
    }
}
