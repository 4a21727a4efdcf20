//! A coordinator with its mail, and the store that all coordinators write to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ckvmm_net::coordinator::{Decision, Input, Member, Output, ToMember, Verdict};
use ckvmm_net::{Colour, Coordinator};

use super::{Action, Budget, Image, Vmm};

/// Something to be made durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Errand {
    Intent(Colour),
    Decide(Colour, Verdict<()>),
}

/// A coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Seat {
    pub(crate) brain: Coordinator<()>,
    /// From each node.
    pub(crate) mail: Vec<VecDeque<Input<()>>>,
    /// To each node.
    pub(crate) orders: Vec<VecDeque<ToMember>>,
    pub(crate) errand: Option<Errand>,
    pub(crate) answer: Option<Input<()>>,
    pub(crate) clock: Option<Colour>,
}

/// What is durable, beside images.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Store {
    pub(crate) intents: BTreeSet<Colour>,
    pub(crate) decisions: BTreeMap<Colour, Verdict<()>>,
    /// What this life was restored from, by node; `None` for a guest that was off.
    pub(crate) base: Option<Vec<Option<Image>>>,
    /// Whether there ever was a checkpoint.
    pub(crate) ever: bool,
}

impl Seat {
    /// One to which all nodes say that they are there.
    pub(crate) fn new(brain: Coordinator<()>, nodes: &[Vmm]) -> Seat {
        let ready = |vmm: &Vmm| (vmm.member() == Member::On).then(|| Input::Ready(vmm.node())).into_iter().collect();
        let orders = vec![VecDeque::new(); nodes.len()];
        Seat { brain, mail: nodes.iter().map(ready).collect(), orders, errand: None, answer: None, clock: None }
    }

    /// Whether an action of the coordinator can happen now.
    pub(crate) fn can(&self, left: &Budget, action: Action) -> bool {
        match action {
            Action::Mail(_, from) => !self.mail[usize::from(from)].is_empty(),
            Action::Request(_) => left.cuts > 0 && self.brain.may_begin(),
            Action::Errand(_) => self.errand.is_some(),
            Action::FailErrand(..) => left.store_failures > 0 && self.errand.is_some(),
            Action::Answer(_) => self.answer.is_some(),
            Action::Deadline(_) => left.deadlines > 0 && self.clock.is_some(),
            Action::Die(_) => left.coordinator_deaths > 0,
            _ => false,
        }
    }

    /// Does what the coordinator wants, but for what it wants of others: returns the cut before which all can be
    /// pruned, if there is one.
    pub(crate) fn carry_out(&mut self, outputs: Vec<Output<()>>) -> Option<Colour> {
        let mut prune = None;
        for output in outputs {
            match output {
                Output::Send(node, message) => self.orders[node.index()].push_back(message),
                Output::RecordIntent(cut) => self.errand = Some(Errand::Intent(cut)),
                Output::Decide(cut, verdict) => {
                    self.errand = Some(Errand::Decide(cut, verdict));
                    self.clock = None;
                }
                Output::StartClock(cut) => self.clock = Some(cut),
                Output::Prune(cut) => prune = Some(cut),
                Output::Done(..) => {}
            }
        }
        prune
    }
}

impl Store {
    /// The newest cut that was intended or decided, and what was decided about it.
    pub(crate) fn newest(&self) -> Option<(Colour, Option<Decision>)> {
        let newest = self.intents.last().max(self.decisions.keys().next_back());
        newest.map(|cut| (*cut, self.decisions.get(cut).map(decision)))
    }

    /// The newest cut that is a checkpoint.
    pub(crate) fn committed(&self) -> Option<(Colour, &Vec<(ckvmm_net::Node, ())>)> {
        self.decisions.iter().rev().find_map(|(cut, verdict)| match verdict {
            Verdict::Commit(parts) => Some((*cut, parts)),
            Verdict::Abort(_) => None,
        })
    }
}

pub(crate) fn decision(verdict: &Verdict<()>) -> Decision {
    match verdict {
        Verdict::Commit(_) => Decision::Commit,
        Verdict::Abort(_) => Decision::Abort,
    }
}
