//! A network of VMs without VMs: the crate's own `Cut` and `Coordinator`, and around them as little as it takes to run
//! them: guests that send numbered frames by a script, wires, images, a store. Each [`Action`] is one step of one party.
//!
//! The model checker takes every action in every state, the simulator one at random. What goes wrong is noted in
//! `wrong`, by the [`oracle`](super::oracle) or by the step that saw it.

mod node;
mod restore;
mod seat;
mod seat_steps;
mod steps;
mod tally;
mod vmm_steps;

use std::collections::VecDeque;

use ckvmm_net::cut::{Limits, Setup};
use ckvmm_net::{Coordinator, Cut, Incarnation, Node, Packet, Payload, Route};

pub(crate) use node::{Image, Vmm};
pub(crate) use seat::{Errand, Seat, Store};
pub(crate) use tally::Tally;

use super::mutants::Mutant;

/// A frame: the sender, and its place in the sender's script, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Frame {
    pub(crate) from: u16,
    pub(crate) number: u16,
}

impl Payload for Frame {
    fn bytes(&self) -> usize {
        1
    }
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) cuts: u8,
    /// A cut cannot be taken.
    pub(crate) cut_failures: u8,
    /// A writer dies.
    pub(crate) writer_failures: u8,
    /// A coordinator dies, and another takes over.
    pub(crate) coordinator_deaths: u8,
    /// Another takes over from a coordinator that lives.
    pub(crate) usurpations: u8,
    /// A deadline passes.
    pub(crate) deadlines: u8,
    /// The store fails, before or after it has written.
    pub(crate) store_failures: u8,
    /// A VMM dies, and the others run on.
    pub(crate) losses: u8,
    /// All VMMs die, and the network is restored.
    pub(crate) kills: u8,
    /// A guest powers off.
    pub(crate) power_offs: u8,
    /// A link breaks.
    pub(crate) breaks: u8,
}

/// What a world is made of, and does not change.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Where each guest's frames go, one after the other.
    pub(crate) scripts: Vec<Vec<Route>>,
    /// How many packets are on a wire at most; 0: they go straight from one end to the other.
    pub(crate) wire: usize,
    /// Whether a frame waits for the guest until the guest takes it, a step of its own.
    pub(crate) guests_wait: bool,
    /// Bounds of the cuts.
    pub(crate) limits: Limits,
    /// What may happen.
    pub(crate) budget: Budget,
    /// What is wrong with the code.
    pub(crate) mutant: Option<Mutant>,
    /// What must come about in some order of events, or the plan is none for what it is to show.
    pub(crate) aim: fn(&World) -> bool,
}

/// A step of one party. Coordinators are named by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// The guest sends its next frame.
    Send(u16),
    /// The guest takes its next frame.
    Deliver(u16),
    /// A packet goes onto the wire.
    Wire(u16, u16),
    /// A packet comes off the wire.
    Arrive(u16, u16),
    TakeCut(u16),
    FailCut(u16),
    /// The image is on the disk.
    Write(u16),
    FailWrite(u16),
    PowerOff(u16),
    /// The VMM of a guest that is off tells so.
    Leave(u16),
    /// It ends.
    HangUp(u16),
    Break(u16, u16),
    /// A VMM dies.
    Lose(u16),
    /// A VMM reads what a coordinator sent.
    Order(usize, u16),
    /// A coordinator reads what a VMM sent.
    Mail(usize, u16),
    Request(usize),
    /// A coordinator's write is done.
    Errand(usize),
    /// It fails, having been done or not.
    FailErrand(usize, bool),
    /// A coordinator reads what came of its write.
    Answer(usize),
    Deadline(usize),
    Die(usize),
    Usurp,
    /// All VMMs are ended and restored from the last commit.
    Kill,
}

/// The state of everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) nodes: Vec<Vmm>,
    /// From one node to another: at from × nodes + to.
    pub(crate) wires: Vec<VecDeque<Packet<Frame>>>,
    pub(crate) seats: Vec<Seat>,
    pub(crate) store: Store,
    pub(crate) left: Budget,
    pub(crate) incarnation: Incarnation,
    /// What has been lost, doubled, mixed up or broken.
    pub(crate) wrong: Option<&'static str>,
    /// What has happened, if somebody counts.
    pub(crate) tally: Option<Tally>,
}

impl Plan {
    pub(crate) fn nodes(&self) -> u16 {
        self.scripts.len() as u16
    }

    /// The numbers of the frames from one node to another, after `number`.
    pub(crate) fn frames(&self, from: u16, to: u16, after: u16) -> impl Iterator<Item = u16> + '_ {
        let script = self.scripts[usize::from(from)].iter().zip(1_u16..).skip(usize::from(after));
        script
            .filter(move |(route, _)| matches!(route, Route::Everyone) || **route == Route::To(Node(to)))
            .map(|(_, n)| n)
    }

    fn cut(&self, me: u16, incarnation: Incarnation) -> Cut<Frame> {
        let (me, nodes, limits) = (Node(me), self.nodes(), self.limits);
        Cut::new(Setup { me, nodes, incarnation, limits })
    }
}

impl World {
    /// A network that is about to start.
    pub(crate) fn new(plan: &Plan) -> World {
        let nodes = plan.nodes();
        let mut world = World {
            nodes: (0..nodes).map(|me| Vmm::new(plan.cut(me, Incarnation(1)), me, nodes)).collect(),
            wires: vec![VecDeque::new(); usize::from(nodes) * usize::from(nodes)],
            seats: Vec::new(),
            store: Store::default(),
            left: plan.budget,
            incarnation: Incarnation(1),
            wrong: None,
            tally: None,
        };
        world.start();
        world
    }

    /// A coordinator of the new life, to which all have said that they are ready.
    fn start(&mut self) {
        let members = self.nodes.iter().map(Vmm::member).collect();
        self.seats = vec![Seat::new(Coordinator::new(members), &self.nodes)];
    }

    pub(crate) fn wire(&self, from: u16, to: u16) -> usize {
        usize::from(from) * self.nodes.len() + usize::from(to)
    }

    /// Whether a packet of an older life is on a wire.
    pub(crate) fn is_any_packet_stale(&self) -> bool {
        self.wires.iter().flatten().any(|packet| packet.incarnation != self.incarnation)
    }

    /// Whether there is a checkpoint with frames that were under way.
    pub(crate) fn has_logs(&self) -> bool {
        let Some((cut, _)) = self.store.committed() else { return false };
        let images = self.nodes.iter().filter_map(|vmm| vmm.images.get(&cut));
        images.filter_map(|image| image.log.as_ref()).any(|log| !log.is_empty())
    }

    pub(crate) fn is_wrong(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    pub(crate) fn count(&mut self, what: &'static str, times: u64) {
        if let Some(tally) = self.tally.as_mut().filter(|_| times > 0) {
            tally.count(what, times);
        }
    }

    /// All that can happen now.
    pub(crate) fn actions(&self, plan: &Plan, actions: &mut Vec<Action>) {
        self.all_actions(plan, actions);
        actions.retain(|action| self.can(plan, *action));
    }

    /// All that can ever happen, with as many coordinators as there are.
    pub(crate) fn all_actions(&self, plan: &Plan, actions: &mut Vec<Action>) {
        let every = 0..plan.nodes();
        for me in every.clone() {
            let of_node = [Action::Send(me), Action::Deliver(me), Action::TakeCut(me), Action::FailCut(me)];
            let of_image = [Action::Write(me), Action::FailWrite(me)];
            let of_end = [Action::PowerOff(me), Action::Leave(me), Action::HangUp(me), Action::Lose(me)];
            actions.extend(of_node.into_iter().chain(of_image).chain(of_end));
            for other in every.clone().filter(|other| *other != me) {
                actions.extend([Action::Wire(me, other), Action::Arrive(me, other), Action::Break(me, other)]);
            }
        }
        for seat in 0..self.seats.len() {
            let of_store = [Action::Errand(seat), Action::FailErrand(seat, false), Action::FailErrand(seat, true)];
            let of_seat = [Action::Request(seat), Action::Answer(seat), Action::Deadline(seat), Action::Die(seat)];
            actions.extend(of_store.into_iter().chain(of_seat));
            actions.extend(every.clone().flat_map(|node| [Action::Order(seat, node), Action::Mail(seat, node)]));
        }
        actions.extend([Action::Usurp, Action::Kill]);
    }
}
