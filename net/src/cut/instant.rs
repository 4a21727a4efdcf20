//! The instant: a cut is wanted, taken or failed, completed and decided.
//!
//! Invariant: whatever becomes of a cut, the colour changes and markers go, and what was held for it comes in.

use super::inbox::Open;
use super::{Cut, Output, Why};
use crate::packet::{Colour, Content, Node, Payload};

impl<F: Payload> Cut<F> {
    pub(super) fn want(&mut self, cut: Colour, outputs: &mut Vec<Output<F>>) {
        if cut <= self.wanted || self.guest_is_off {
            return;
        }
        self.wanted = cut;
        self.fail_open(Why::Superseded(cut), outputs);
        outputs.push(Output::TakeCut(cut));
    }

    pub(super) fn cut_taken(&mut self, cut: Colour, outputs: &mut Vec<Output<F>>) {
        if cut <= self.colour || self.guest_is_off {
            // It was aborted meanwhile, or the guest has left.
            outputs.push(Output::Discard(cut));
            return;
        }
        debug_assert!(cut <= self.wanted, "nobody wanted this cut");
        self.take_colour(cut);
        let mut open = Open::new(cut);
        let limit = self.limits.log_bytes;
        let fits = self.inbox.iter().all(|(from, frame)| open.add(*from, frame, limit));
        self.open = Some(open);
        if self.wanted > cut {
            self.fail_open(Why::Superseded(self.wanted), outputs);
        } else if !fits {
            self.fail_open(Why::LogFull { limit }, outputs);
        }
        self.go_on(outputs);
        let lost = self.links.iter().zip(0..).find(|(link, _)| link.is_lost() && link.colour < cut);
        if let Some((_, node)) = lost {
            self.fail_open(Why::LinkLost(Node(node)), outputs);
        }
    }

    pub(super) fn cut_failed(&mut self, cut: Colour, why: Why, outputs: &mut Vec<Output<F>>) {
        if self.is_open(cut) {
            self.fail_open(why, outputs);
        } else if cut > self.colour && !self.guest_is_off {
            self.take_colour(cut);
            outputs.extend([Output::Failed(cut, why), Output::Discard(cut)]);
            self.go_on(outputs);
        }
    }

    pub(super) fn image_durable(&mut self, cut: Colour, outputs: &mut Vec<Output<F>>) {
        match self.open.take_if(|open| open.cut == cut) {
            Some(open) => {
                assert!(open.closed, "an image without its log is not whole");
                outputs.push(Output::Prepared(cut));
            }
            None => outputs.push(Output::Discard(cut)),
        }
    }

    pub(super) fn aborted(&mut self, cut: Colour, outputs: &mut Vec<Output<F>>) {
        self.open.take_if(|open| open.cut == cut);
        outputs.push(Output::Discard(cut));
        if cut > self.colour && !self.guest_is_off {
            // Nobody needs it taken, but some may hold for it.
            self.fail_open(Why::Superseded(cut), outputs);
            self.take_colour(cut);
            self.let_in_held(cut, outputs);
        }
    }

    pub(super) fn take_colour(&mut self, colour: Colour) {
        self.colour = colour;
        self.wanted = self.wanted.max(colour);
        for link in self.links.iter_mut().filter(|link| link.connected) {
            link.put(colour, Content::Marker);
        }
    }

    /// After a change of colour: what was held for it comes in, and a cut beyond it is next.
    pub(super) fn go_on(&mut self, outputs: &mut Vec<Output<F>>) {
        self.let_in_held(self.colour, outputs);
        if let Some(next) = self.wanted() {
            outputs.push(Output::TakeCut(next));
        }
        self.close_if_done(outputs);
    }

    pub(super) fn let_in_held(&mut self, up_to: Colour, outputs: &mut Vec<Output<F>>) {
        for node in 0..self.links.len() {
            let held = self.links[node].held.take_if(|(colour, _)| *colour <= up_to);
            if let Some((colour, content)) = held {
                self.let_in(Node(node as u16), colour, content, outputs);
            }
        }
    }

    pub(super) fn is_open(&self, cut: Colour) -> bool {
        self.open.as_ref().is_some_and(|open| open.cut == cut)
    }

    pub(super) fn fail_open(&mut self, why: Why, outputs: &mut Vec<Output<F>>) {
        if let Some(Open { cut, .. }) = self.open.take() {
            outputs.extend([Output::Failed(cut, why), Output::Discard(cut)]);
        }
    }

    pub(super) fn close_if_done(&mut self, outputs: &mut Vec<Output<F>>) {
        let Some(open) = self.open.as_mut().filter(|open| !open.closed) else { return };
        if self.links.iter().all(|link| link.is_closed_for(open.cut)) {
            open.closed = true;
            outputs.push(Output::LinksClosed { cut: open.cut, log: std::mem::take(&mut open.log) });
        }
    }
}
