//! What a VMM does.

use ckvmm_net::coordinator::{self, ToMember, Verdict};
use ckvmm_net::cut::{Input, Output};
use ckvmm_net::{Colour, Content, Node, Packet};

use super::{Action, Frame, Image, Plan, Vmm, World};
use crate::mutants::{self, Mutant};

impl World {
    pub(super) fn node(&mut self, me: u16) -> &mut Vmm {
        &mut self.nodes[usize::from(me)]
    }

    pub(super) fn send(&mut self, plan: &Plan, me: u16) {
        let vmm = self.node(me);
        let route = plan.scripts[usize::from(me)][usize::from(vmm.guest.sent)];
        vmm.guest.sent += 1;
        let frame = Frame { from: me, number: vmm.guest.sent };
        self.tell(plan, me, Input::GuestFrame(route, frame));
    }

    pub(super) fn deliver(&mut self, plan: &Plan, me: u16) {
        let vmm = self.node(me);
        let frame = vmm.cut.delivered().expect("one waits");
        if !vmm.guest.take(plan, me, frame) {
            self.is_wrong("a guest got a frame that is not the next one");
        }
        self.count("frames delivered", 1);
    }

    pub(super) fn take_from_row(&mut self, from: u16, to: u16) -> Option<Packet<Frame>> {
        let cut = &mut self.node(from).cut;
        let packet = cut.next_to_send(Node(to))?.map(Frame::clone);
        cut.sent(Node(to));
        Some(packet)
    }

    pub(super) fn arrive(&mut self, plan: &Plan, from: u16, to: u16) {
        let wire = self.wire(from, to);
        let packet = self.wires[wire].pop_front().or_else(|| self.take_from_row(from, to)).expect("one comes");
        let packet = match plan.mutant {
            Some(Mutant::NoHold) => mutants::let_in_early(self.node(to), packet, from),
            _ => packet,
        };
        self.tell(plan, to, Input::Arrived(Node(from), packet));
    }

    pub(super) fn take_cut(&mut self, plan: &Plan, me: u16) {
        let vmm = self.node(me);
        let cut = vmm.taking.take().expect("one is to be taken");
        vmm.writing = Some(Image { cut, guest: vmm.guest.clone(), log: None });
        self.tell(plan, me, Input::CutTaken(cut));
        if plan.mutant == Some(Mutant::NoHold) {
            let incarnation = self.incarnation;
            for (from, packet) in mutants::close_late(self.node(me), cut, incarnation) {
                self.tell(plan, me, Input::Arrived(from, packet));
            }
        }
    }

    pub(super) fn write(&mut self, plan: &Plan, me: u16) {
        let vmm = self.node(me);
        let image = vmm.writing.take().expect("one is written");
        let cut = image.cut;
        let early = image.log.is_none();
        vmm.images.insert(cut, image);
        if early {
            self.report(me, coordinator::Input::Prepared(Node(me), cut, ()));
        } else {
            self.tell(plan, me, Input::ImageDurable(cut));
        }
    }

    pub(super) fn end_link(&mut self, plan: &Plan, here: u16, there: u16) {
        for wire in [self.wire(here, there), self.wire(there, here)] {
            self.wires[wire].clear();
        }
        self.node(here).parted[usize::from(there)] = true;
        if !self.node(here).gone {
            self.tell(plan, here, Input::LinkEnded(Node(there)));
        }
    }

    /// A VMM dies. What it has on the disk stays.
    pub(super) fn lose(&mut self, plan: &Plan, me: u16) {
        self.count("VMMs lost", 1);
        let cut = plan.cut(me, self.incarnation);
        let vmm = self.node(me);
        (vmm.cut, vmm.taking, vmm.writing) = (cut, None, None);
        (vmm.running, vmm.gone, vmm.lost) = (false, true, true);
        for other in (0..plan.nodes()).filter(|other| *other != me) {
            self.node(other).broken[usize::from(me)] = true;
            self.end_link(plan, other, me);
        }
        self.report(me, coordinator::Input::Lost(Node(me)));
    }

    pub(super) fn order(&mut self, plan: &Plan, seat: usize, to: u16) {
        match self.seats[seat].orders[usize::from(to)].pop_front().expect("there is one") {
            ToMember::Go => {
                self.node(to).running = true;
                self.drain(plan, to);
            }
            ToMember::Cut(cut) => self.tell(plan, to, Input::CutRequested(cut)),
            ToMember::Committed(cut) => self.tell(plan, to, Input::Committed(cut)),
            ToMember::Aborted(cut) => self.tell(plan, to, Input::Aborted(cut)),
        }
    }

    /// Tells a VMM's cut something, and does what it says.
    pub(super) fn tell(&mut self, plan: &Plan, me: u16, input: Input<Frame>) {
        let packet = match &input {
            Input::Arrived(_, packet) => Some(*packet),
            _ => None,
        };
        let mut outputs = Vec::new();
        if self.node(me).cut.handle(input, &mut outputs).is_err() {
            self.is_wrong("a peer or the coordinator was found to have broken the rules");
        }
        for output in outputs {
            match output {
                Output::TakeCut(_) if packet.is_some() && plan.mutant == Some(Mutant::NoForcedCut) => {}
                Output::TakeCut(cut) => self.node(me).taking = Some(cut),
                Output::LinksClosed { cut, log } => self.links_closed(plan, me, cut, log),
                Output::Prepared(cut) => self.report(me, coordinator::Input::Prepared(Node(me), cut, ())),
                Output::Failed(cut, why) => self.report(me, coordinator::Input::Failed(Node(me), cut, why)),
                Output::Discard(cut) => self.discard(me, cut),
            }
        }
        // Taken always: how often what happened is not part of the state.
        let counters = self.node(me).cut.take_counters();
        self.count("packets held", counters.held);
        self.count("frames logged", counters.logged);
        self.count("frames dropped", counters.dropped);
        self.count("frames unreachable", counters.unreachable);
        self.count("packets fenced", counters.fenced);
        if counters.dropped > 0 {
            match packet.map(|packet| packet.content) {
                Some(Content::Frame(frame)) => _ = self.node(me).guest.dropped.insert((frame.from, frame.number)),
                _ => self.is_wrong("a frame was dropped that had not come"),
            }
        }
        self.drain(plan, me);
    }

    pub(super) fn drain(&mut self, plan: &Plan, me: u16) {
        while !plan.guests_wait && self.can(plan, Action::Deliver(me)) {
            self.deliver(plan, me);
        }
    }

    pub(super) fn links_closed(&mut self, plan: &Plan, me: u16, cut: Colour, log: Vec<(Node, Frame)>) {
        let vmm = self.node(me);
        let Some(image) = vmm.writing.as_mut().filter(|image| image.cut == cut) else {
            if plan.mutant != Some(Mutant::PrepareEarly) {
                self.is_wrong("the links of a cut were closed that is not being written");
            }
            return;
        };
        image.guest.dropped.clone_from(&vmm.guest.dropped);
        let kept = log.into_iter().map(|(_, frame)| frame).filter(|_| plan.mutant != Some(Mutant::NoLog));
        image.log = Some(kept.collect());
    }

    pub(super) fn discard(&mut self, me: u16, cut: Colour) {
        let vmm = self.node(me);
        vmm.writing.take_if(|image| image.cut == cut);
        vmm.images.remove(&cut);
        if matches!(self.store.decisions.get(&cut), Some(Verdict::Commit(_))) {
            self.is_wrong("a part of a checkpoint was thrown away");
        }
    }
}
