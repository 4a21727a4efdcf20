//! The coordinator of a network's cuts: begins one after the other, collects the members' parts, and has it decided
//! whether they are a checkpoint.
//!
//! ```text
//! start    Ready of all ▶ Go to all
//! cut      Requested ▶ RecordIntent ▶ Cut to all ▶ Prepared of all ▶ Decide Commit ▶ Committed to all, Prune
//!                                                  Failed, Lost, Deadline ▶ Decide Abort ▶ Aborted to all
//! ```
//!
//! There may be two of them, one of which believes the other dead. Intent and decision are therefore written
//! *create-only*: of all who write, one wins, and the others learn what is there.
//!
//! Invariants:
//! - The decision is what is written, not what a coordinator wished. Nobody is told one before it is durable.
//! - A cut begins only after the one before it is decided: a member that sees cut `e` knows that no earlier one wants
//!   anything of it any more.
//! - Nothing older is given up before a cut is committed.
//! - Pure: files, sockets and clocks are at the edge.

mod io;

pub use io::{Decision, Input, Outcome, Output, Reason, ToMember, Verdict};

use crate::packet::{Colour, Node};

/// What is known of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Member {
    /// Takes part.
    On,
    /// Its guest has powered off: the network goes on without.
    Off,
    /// It is gone: the network can only be restored.
    Lost,
}

/// A coordinator. `S` is what a member says of its part.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Coordinator<S> {
    members: Vec<Member>,
    /// The newest cut that was ever intended.
    newest: Colour,
    phase: Phase<S>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase<S> {
    /// Who is ready, by node; and whether a cut has been left undecided.
    Starting(Vec<bool>, bool),
    Idle,
    Intending,
    /// Parts, by node.
    Collecting(Vec<Option<S>>),
    Deciding(Wish),
    /// The newest cut, or its decision, could not be written, and may yet be there, by this coordinator or another.
    Undecided,
    /// There is another coordinator.
    Deposed,
}

/// What was asked to be written as the decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Wish {
    Commit,
    Abort(Reason),
    /// Of an earlier cut, begun or not, and then a new one is to begin.
    AbortAndBegin,
}

impl<S: Clone> Coordinator<S> {
    /// One of a network that begins, or is restored: a lineage of its own. `members` says whose guest was off already.
    pub fn new(members: Vec<Member>) -> Self {
        let phase = Phase::Starting(not_on(&members), false);
        Coordinator { members, newest: Colour::NONE, phase }
    }

    /// One that takes over. The members tell it, too, that they are ready or run already, since nobody knows whom the one
    /// before told to go. `newest` is the newest cut that has an intent or a decision in the store, if there is any, with
    /// its decision, if there is one.
    pub fn succeed(
        members: Vec<Member>,
        newest: Option<(Colour, Option<Decision>)>,
        outputs: &mut Vec<Output<S>>,
    ) -> Self {
        let cut = newest.map_or(Colour::NONE, |(cut, _)| cut);
        let decision = newest.and_then(|(_, decision)| decision);
        let phase = Phase::Starting(not_on(&members), newest.is_some() && decision.is_none());
        let this = Coordinator { members, newest: cut, phase };
        if let Some(decision) = decision {
            // The one before may not have told all.
            this.tell_decision(cut, decision, outputs);
        }
        this
    }

    /// Takes note of what happened, and says what is to be done.
    pub fn handle(&mut self, input: Input<S>, outputs: &mut Vec<Output<S>>) {
        match input {
            Input::Ready(node) => self.ready(node, outputs),
            Input::Requested => self.requested(outputs),
            Input::IntentRecorded(cut) => self.intent_recorded(cut, outputs),
            Input::IntentTaken(cut) if cut == self.newest => self.depose(outputs),
            Input::Prepared(node, cut, part) => self.prepared(node, cut, part, outputs),
            Input::Failed(node, cut, why) if cut == self.newest => self.fail(Reason::Failed(node, why), outputs),
            Input::Left(node, colour) => self.left(node, colour, outputs),
            Input::Lost(node) => self.lost(node, outputs),
            Input::Deadline(cut) if cut == self.newest => self.deadline(outputs),
            Input::Decided(cut, decision) if cut == self.newest => self.decided(decision, outputs),
            Input::StoreFailed(cut, why) if cut == self.newest => self.store_failed(why, outputs),
            // Of a cut that is decided.
            Input::IntentTaken(_) | Input::Failed(..) | Input::Deadline(_) => {}
            Input::Decided(..) | Input::StoreFailed(..) => {}
        }
    }

    /// The members, by node.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether a cut can begin: the members run, and none is under way.
    pub fn may_begin(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Undecided)
    }

    /// Whether it has found that there is another one: it will do nothing any more.
    pub fn is_deposed(&self) -> bool {
        matches!(self.phase, Phase::Deposed)
    }

    fn ready(&mut self, node: Node, outputs: &mut Vec<Output<S>>) {
        let Phase::Starting(ready, _) = &mut self.phase else { return };
        if let Some(ready) = ready.get_mut(node.index()) {
            *ready = true;
        }
        self.go_if_all_are_ready(outputs);
    }

    fn go_if_all_are_ready(&mut self, outputs: &mut Vec<Output<S>>) {
        let Phase::Starting(ready, orphan) = &self.phase else { return };
        if !ready.iter().all(|ready| *ready) {
            return;
        }
        let orphan = *orphan;
        self.phase = Phase::Idle;
        self.tell(ToMember::Go, outputs);
        if orphan {
            self.decide(self.newest, Wish::Abort(Reason::Orphaned), outputs);
        }
    }

    fn requested(&mut self, outputs: &mut Vec<Output<S>>) {
        let lost = self.members.iter().zip(0..).find(|(member, _)| **member == Member::Lost);
        let refusal = match (&self.phase, lost) {
            (Phase::Deposed, _) => Some(Reason::Deposed),
            (Phase::Idle | Phase::Undecided, Some((_, node))) => Some(Reason::Lost(Node(node))),
            (Phase::Idle | Phase::Undecided, None) if !self.members.contains(&Member::On) => Some(Reason::AllOff),
            (Phase::Idle | Phase::Undecided, None) => None,
            _ => Some(Reason::Busy),
        };
        match (refusal, &self.phase) {
            (Some(reason), _) => outputs.push(Output::Done(self.newest, Outcome::Refused(reason))),
            (None, Phase::Undecided) => self.decide(self.newest, Wish::AbortAndBegin, outputs),
            (None, _) => self.begin(outputs),
        }
    }

    fn begin(&mut self, outputs: &mut Vec<Output<S>>) {
        self.newest = Colour(self.newest.0 + 1);
        self.phase = Phase::Intending;
        outputs.push(Output::RecordIntent(self.newest));
    }

    fn intent_recorded(&mut self, cut: Colour, outputs: &mut Vec<Output<S>>) {
        if cut != self.newest || !matches!(self.phase, Phase::Intending) {
            return;
        }
        self.phase = Phase::Collecting(vec![None; self.members.len()]);
        let lost = self.members.iter().zip(0..).find(|(member, _)| **member == Member::Lost);
        if let Some((_, node)) = lost {
            self.fail(Reason::Lost(Node(node)), outputs);
        } else {
            self.tell(ToMember::Cut(cut), outputs);
            outputs.push(Output::StartClock(cut));
        }
    }

    fn prepared(&mut self, node: Node, cut: Colour, part: S, outputs: &mut Vec<Output<S>>) {
        let Phase::Collecting(parts) = &mut self.phase else { return };
        if cut != self.newest {
            return;
        }
        if let Some(place) = parts.get_mut(node.index()) {
            *place = Some(part);
        }
        self.commit_if_whole(outputs);
    }

    fn commit_if_whole(&mut self, outputs: &mut Vec<Output<S>>) {
        let Phase::Collecting(parts) = &self.phase else { return };
        let whole = self.members.iter().zip(parts).all(|(member, part)| *member == Member::Off || part.is_some());
        let given = parts.iter().zip(0..).filter_map(|(part, node)| Some((Node(node), part.clone()?)));
        let given: Vec<_> = given.collect();
        if whole && given.is_empty() {
            self.fail(Reason::AllOff, outputs);
        } else if whole {
            outputs.push(Output::Decide(self.newest, Verdict::Commit(given)));
            self.phase = Phase::Deciding(Wish::Commit);
        }
    }

    fn fail(&mut self, reason: Reason, outputs: &mut Vec<Output<S>>) {
        if matches!(self.phase, Phase::Collecting(_)) {
            self.decide(self.newest, Wish::Abort(reason), outputs);
        }
    }

    fn left(&mut self, node: Node, colour: Colour, outputs: &mut Vec<Output<S>>) {
        let Some(member) = self.members.get_mut(node.index()) else { return };
        *member = Member::Off;
        match &mut self.phase {
            Phase::Starting(ready, _) => {
                ready[node.index()] = true;
                self.go_if_all_are_ready(outputs);
            }
            // Of the cut it was a running machine, and others may have seen what it did after it.
            Phase::Collecting(parts) if colour >= self.newest && parts[node.index()].is_none() => {
                self.fail(Reason::Left(node), outputs);
            }
            // Before its cut it was off: the cut is whole without.
            Phase::Collecting(_) => self.commit_if_whole(outputs),
            _ => {}
        }
    }

    fn lost(&mut self, node: Node, outputs: &mut Vec<Output<S>>) {
        match self.members.get_mut(node.index()) {
            Some(member) if *member == Member::On => *member = Member::Lost,
            _ => return,
        }
        if let Phase::Starting(ready, _) = &mut self.phase {
            ready[node.index()] = true;
            self.go_if_all_are_ready(outputs);
        }
        self.fail(Reason::Lost(node), outputs);
    }

    fn deadline(&mut self, outputs: &mut Vec<Output<S>>) {
        let Phase::Collecting(parts) = &self.phase else { return };
        let late = self.members.iter().zip(parts).zip(0..);
        let late = late.filter(|((member, part), _)| **member == Member::On && part.is_none());
        self.fail(Reason::Late(late.map(|(_, node)| Node(node)).collect()), outputs);
    }

    fn decide(&mut self, cut: Colour, wish: Wish, outputs: &mut Vec<Output<S>>) {
        let reason = match &wish {
            Wish::Abort(reason) => reason.clone(),
            _ => Reason::Orphaned,
        };
        outputs.push(Output::Decide(cut, Verdict::Abort(reason)));
        self.phase = Phase::Deciding(wish);
    }

    fn decided(&mut self, decision: Decision, outputs: &mut Vec<Output<S>>) {
        let Phase::Deciding(wish) = std::mem::replace(&mut self.phase, Phase::Idle) else { return };
        let cut = self.newest;
        self.tell_decision(cut, decision, outputs);
        match (decision, wish) {
            (_, Wish::AbortAndBegin) => self.begin(outputs),
            (Decision::Commit, _) => outputs.push(Output::Done(cut, Outcome::Committed)),
            (Decision::Abort, Wish::Abort(reason)) => outputs.push(Output::Done(cut, Outcome::Aborted(reason))),
            // Only one that has taken over aborts what could be committed.
            (Decision::Abort, Wish::Commit) => self.depose(outputs),
        }
    }

    fn tell_decision(&self, cut: Colour, decision: Decision, outputs: &mut Vec<Output<S>>) {
        match decision {
            Decision::Commit => {
                self.tell(ToMember::Committed(cut), outputs);
                outputs.push(Output::Prune(cut));
            }
            Decision::Abort => self.tell(ToMember::Aborted(cut), outputs),
        }
    }

    fn store_failed(&mut self, why: String, outputs: &mut Vec<Output<S>>) {
        let cut = self.newest;
        match &self.phase {
            // Written or not, this number is not used again. Nor is it left open: another coordinator may have begun it.
            Phase::Intending => {
                self.phase = Phase::Undecided;
                outputs.push(Output::Done(cut, Outcome::Aborted(Reason::Store(why))));
            }
            Phase::Deciding(Wish::Commit) => self.decide(cut, Wish::Abort(Reason::Store(why)), outputs),
            // What was asked for is another one.
            Phase::Deciding(Wish::AbortAndBegin) => {
                self.phase = Phase::Undecided;
                outputs.push(Output::Done(cut, Outcome::Refused(Reason::Store(why))));
            }
            Phase::Deciding(Wish::Abort(_)) => {
                self.phase = Phase::Undecided;
                outputs.push(Output::Done(cut, Outcome::Unknown(why)));
            }
            _ => {}
        }
    }

    fn depose(&mut self, outputs: &mut Vec<Output<S>>) {
        self.phase = Phase::Deposed;
        outputs.push(Output::Done(self.newest, Outcome::Aborted(Reason::Deposed)));
    }

    fn tell(&self, message: ToMember, outputs: &mut Vec<Output<S>>) {
        let on = self.members.iter().zip(0..).filter(|(member, _)| **member == Member::On);
        outputs.extend(on.map(|(_, node)| Output::Send(Node(node), message)));
    }
}

/// Who need not be waited for.
fn not_on(members: &[Member]) -> Vec<bool> {
    members.iter().map(|member| *member != Member::On).collect()
}

#[cfg(test)]
mod tests;
