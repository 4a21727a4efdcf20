//! What the coordinator is told, and what it says. `S` is what a member says of its part: sizes, digests.

use std::fmt;

use crate::cut::Why;
use crate::packet::{Colour, Node};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input<S> {
    /// A member has its machine, its links and its preloaded frames, and waits for [`ToMember::Go`].
    Ready(Node),
    /// Somebody wants a checkpoint.
    Requested,
    /// The intent for this cut is durable, and nobody had recorded one.
    IntentRecorded(Colour),
    /// Somebody else had recorded an intent for this cut.
    IntentTaken(Colour),
    /// A member's part is whole and on the disk.
    Prepared(Node, Colour, S),
    /// A member has no part to give.
    Failed(Node, Colour, Why),
    /// A member's guest has powered off, with this colour; it says no more.
    Left(Node, Colour),
    /// A member is gone without a word.
    Lost(Node),
    /// Nothing of this cut has moved for too long.
    Deadline(Colour),
    /// This is what is written as the decision about the cut, by whomever, and it is durable.
    Decided(Colour, Decision),
    /// Intent or decision could not be written.
    StoreFailed(Colour, String),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Output<S> {
    /// To be sent to a member.
    Send(Node, ToMember),
    /// To be made durable, unless somebody else has already; answer with `IntentRecorded` or `IntentTaken`.
    RecordIntent(Colour),
    /// When nothing of this cut moves for too long, answer with `Deadline`.
    StartClock(Colour),
    /// To be made durable, unless somebody else has decided already; answer with `Decided`, saying what is there now.
    Decide(Colour, Verdict<S>),
    /// Whoever wanted a checkpoint has this answer.
    Done(Colour, Outcome),
    /// Checkpoints before this one are no longer needed to go on from: this one is there.
    Prune(Colour),
}

/// What the coordinator says to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToMember {
    /// All are ready: run.
    Go,
    /// Take this cut.
    Cut(Colour),
    /// It is a checkpoint.
    Committed(Colour),
    /// It is none.
    Aborted(Colour),
}

/// What is to be written as the decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict<S> {
    /// It is a checkpoint of these members; the others' guests are off. This is the manifest.
    Commit(Vec<(Node, S)>),
    /// It is none.
    Abort(Reason),
}

/// What a decision is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// A checkpoint.
    Commit,
    /// None.
    Abort,
}

/// How a cut ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A checkpoint.
    Committed,
    /// None.
    Aborted(Reason),
    /// Not known, since the decision cannot be written: it is asked again before the next cut.
    Unknown(String),
    /// Nothing was begun.
    Refused(Reason),
}

/// Why a cut is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A member could not.
    Failed(Node, Why),
    /// A member's guest powered off in the middle of it.
    Left(Node),
    /// A member is gone.
    Lost(Node),
    /// All guests are off: there is nothing to save.
    AllOff,
    /// These have said nothing in time.
    Late(Vec<Node>),
    /// The coordinator that began it is gone.
    Orphaned,
    /// There is another coordinator.
    Deposed,
    /// Another cut is under way.
    Busy,
    /// The store takes nothing.
    Store(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Failed(node, why) => write!(out, "node {node}: {why}"),
            Reason::Left(node) => write!(out, "node {node} powered off in the middle of it"),
            Reason::Lost(node) => write!(out, "node {node} is gone"),
            Reason::AllOff => out.write_str("all guests are off"),
            Reason::Late(nodes) => {
                out.write_str("no answer in time from node")?;
                nodes.iter().try_for_each(|node| write!(out, " {node}"))
            }
            Reason::Orphaned => out.write_str("its coordinator has ended"),
            Reason::Deposed => out.write_str("another coordinator has taken over"),
            Reason::Busy => out.write_str("another checkpoint is under way"),
            Reason::Store(why) => out.write_str(why),
        }
    }
}
