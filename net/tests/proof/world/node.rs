//! A VMM and its guest, as far as the network is concerned.

use std::collections::{BTreeMap, BTreeSet};

use ckvmm_net::coordinator::Member;
use ckvmm_net::{Colour, Cut, Node};

use super::{Frame, Plan};
use crate::mutants::Unheld;

/// What a guest knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Guest {
    /// How much of its script it has sent.
    pub(crate) sent: u16,
    /// The newest frame of each sender that it has taken.
    pub(crate) received: Vec<u16>,
    /// Frames that it has lost, having left its queue full.
    pub(crate) dropped: BTreeSet<(u16, u16)>,
}

/// A VM's part of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Image {
    pub(crate) cut: Colour,
    pub(crate) guest: Guest,
    /// Frames for the guest that were under way, once all have come.
    pub(crate) log: Option<Vec<Frame>>,
}

/// A VMM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Vmm {
    pub(crate) me: u16,
    pub(crate) cut: Cut<Frame>,
    pub(crate) guest: Guest,
    /// Whether the guest runs.
    pub(crate) running: bool,
    /// The cut that is to be taken.
    pub(crate) taking: Option<Colour>,
    /// The image of the open cut.
    pub(crate) writing: Option<Image>,
    /// Images on the disk.
    pub(crate) images: BTreeMap<Colour, Image>,
    /// The guest has powered off …
    pub(crate) off: bool,
    /// … the coordinators know …
    pub(crate) told: bool,
    /// … and the process is gone.
    pub(crate) gone: bool,
    /// The process died.
    pub(crate) lost: bool,
    /// Links that have ended, by node …
    pub(crate) parted: Vec<bool>,
    /// … and those of them that have broken.
    pub(crate) broken: Vec<bool>,
    /// Of the mutant that does not hold.
    pub(crate) unheld: BTreeMap<u16, Unheld>,
}

impl Vmm {
    pub(crate) fn new(cut: Cut<Frame>, me: u16, nodes: u16) -> Vmm {
        let nodes = usize::from(nodes);
        Vmm {
            me,
            cut,
            guest: Guest { received: vec![0; nodes], ..Guest::default() },
            running: false,
            taking: None,
            writing: None,
            images: BTreeMap::new(),
            off: false,
            told: false,
            gone: false,
            lost: false,
            parted: vec![false; nodes],
            broken: vec![false; nodes],
            unheld: BTreeMap::new(),
        }
    }

    /// One whose guest was off when the network was saved, having done what `guest` says.
    pub(crate) fn absent(self, guest: Guest) -> Vmm {
        Vmm { guest, off: true, told: true, gone: true, ..self }
    }

    pub(crate) fn node(&self) -> Node {
        Node(self.me)
    }

    pub(crate) fn member(&self) -> Member {
        match self {
            Vmm { lost: true, .. } => Member::Lost,
            Vmm { off: true, .. } => Member::Off,
            _ => Member::On,
        }
    }

    /// Whether a packet from `from` waits for a cut.
    pub(crate) fn holds(&self, from: u16) -> bool {
        !self.gone && !self.parted[usize::from(from)] && from != self.me && !self.cut.may_read(Node(from))
    }
}

impl Guest {
    /// Takes a frame; `false` if it is not the next one.
    pub(crate) fn take(&mut self, plan: &Plan, me: u16, frame: Frame) -> bool {
        let newest = &mut self.received[usize::from(frame.from)];
        let mut missing = plan.frames(frame.from, me, *newest).take_while(|number| *number < frame.number);
        let good = frame.number > *newest
            && missing.all(|number| self.dropped.contains(&(frame.from, number)))
            && plan.frames(frame.from, me, frame.number - 1).next() == Some(frame.number);
        *newest = frame.number;
        good
    }
}
