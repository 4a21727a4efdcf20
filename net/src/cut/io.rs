//! What the cut is told, and what it says.

use std::fmt;
use std::ops::AddAssign;

use crate::packet::{Colour, Incarnation, Node, Packet};
use crate::switch::Route;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input<F> {
    /// The guest's card has sent a frame. Only when [`Cut::may_pop`](super::Cut::may_pop).
    GuestFrame(Route, F),
    /// A packet came over a link. Only when [`Cut::may_read`](super::Cut::may_read).
    Arrived(Node, Packet<F>),
    /// A link's connection has ended, and all that came over it has been told. After a bye that is in order.
    LinkEnded(Node),
    /// The coordinator wants this cut.
    CutRequested(Colour),
    /// The machine stands still, its state is saved and its writer forked. This must be told before it runs on, and
    /// nothing may go between guest and cut meanwhile: what is not in the guest's ring yet is saved from here.
    CutTaken(Colour),
    /// The cut could not be taken, or its image not be written.
    CutFailed(Colour, String),
    /// The image is on the disk, with the log of [`Output::LinksClosed`].
    ImageDurable(Colour),
    /// The coordinator's decision: it is a checkpoint.
    Committed(Colour),
    /// The coordinator's decision: it is none.
    Aborted(Colour),
    /// The guest has powered off.
    GuestOff,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output<F> {
    /// Take this cut now, instead of any lower one; answer with `CutTaken` or `CutFailed`.
    TakeCut(Colour),
    /// No more frames belong to this cut. `log` is what the guest had not got: to be saved in this order, and put back
    /// with [`Cut::preload`](super::Cut::preload). Answer with `ImageDurable` or `CutFailed`.
    LinksClosed {
        /// The cut.
        cut: Colour,
        /// Frames, and where they came from.
        log: Vec<(Node, F)>,
    },
    /// Report to the coordinator: this VM's part of the cut is whole and on the disk.
    Prepared(Colour),
    /// Report to the coordinator: this VM has no part in the cut to give.
    Failed(Colour, Why),
    /// Stop writing the image of this cut and remove what there is of it, if any.
    Discard(Colour),
}

/// Why a VM cannot take part in a cut.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Why {
    /// More was under way than a log may hold.
    LogFull {
        /// What it may hold, bytes.
        limit: usize,
    },
    /// A link has broken: what was under way on it is lost.
    LinkLost(Node),
    /// A later cut has begun, so this one is decided.
    Superseded(Colour),
    /// The machine or its writer could not do it.
    Image(String),
}

/// Bounds of a VM's part in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Most frames that wait to go out on one link.
    pub slots: usize,
    /// Most bytes that wait for a guest that runs; a frame beyond is dropped. What was put back by a restore comes on top,
    /// and what came while it stood still.
    pub pending_bytes: usize,
    /// Most bytes of frames in one cut; beyond, it fails here.
    pub log_bytes: usize,
}

/// How a VM's part in the network begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Which node it is.
    pub me: Node,
    /// How many there are.
    pub nodes: u16,
    /// The network's life.
    pub incarnation: Incarnation,
    /// Bounds.
    pub limits: Limits,
}

/// What has happened, since it was last asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Packets that were held until the cut they belong to was taken.
    pub held: u64,
    /// Frames that were under way at a cut and went into its log.
    pub logged: u64,
    /// Frames dropped since the guest had left its queue full.
    pub dropped: u64,
    /// Of these, frames that were under way at a cut: sent before it, come after it.
    pub dropped_late: u64,
    /// Frames for a node that is off or lost.
    pub unreachable: u64,
    /// Packets of another life of the network.
    pub fenced: u64,
    /// Packets that had come before: a broken connection was taken up.
    pub repeated: u64,
}

impl AddAssign for Counters {
    fn add_assign(&mut self, more: Self) {
        let Counters { held, logged, dropped, dropped_late, unreachable, fenced, repeated } = more;
        self.held += held;
        self.logged += logged;
        self.dropped += dropped;
        self.dropped_late += dropped_late;
        self.unreachable += unreachable;
        self.fenced += fenced;
        self.repeated += repeated;
    }
}

impl Default for Limits {
    fn default() -> Self {
        // A log holds what waits for the guest and, of each of a dozen links, all slots with the largest frames.
        Limits { slots: 64, pending_bytes: 16 << 20, log_bytes: 128 << 20 }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::LogFull { limit } => write!(out, "more than {limit} bytes of frames were under way"),
            Why::LinkLost(node) => write!(out, "the link to node {node} broke"),
            Why::Superseded(cut) => write!(out, "cut {cut} has begun"),
            Why::Image(why) => out.write_str(why),
        }
    }
}
