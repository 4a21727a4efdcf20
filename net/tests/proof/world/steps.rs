//! What each action is: when it can happen, and what it does.

use ckvmm_net::cut::Input;
use ckvmm_net::{Node, coordinator};

use super::{Action, Plan, World};
use crate::mutants::Mutant;

impl World {
    /// Whether `action` can happen now.
    pub(crate) fn can(&self, plan: &Plan, action: Action) -> bool {
        let node = |me: u16| &self.nodes[usize::from(me)];
        let left = &self.left;
        match action {
            Action::Send(me) => {
                let vmm = node(me);
                let more = usize::from(vmm.guest.sent) < plan.scripts[usize::from(me)].len();
                vmm.running && !vmm.off && more && vmm.cut.may_pop()
            }
            Action::Deliver(me) => node(me).running && node(me).cut.next_to_deliver().is_some(),
            Action::Wire(from, to) => {
                let room = self.wires[self.wire(from, to)].len() < plan.wire;
                room && node(from).cut.next_to_send(Node(to)).is_some()
            }
            Action::Arrive(from, to) => {
                let waits = !self.wires[self.wire(from, to)].is_empty()
                    || plan.wire == 0 && node(from).cut.next_to_send(Node(to)).is_some();
                waits && node(to).cut.may_read(Node(from))
            }
            Action::TakeCut(me) => node(me).taking.is_some(),
            Action::FailCut(me) => left.cut_failures > 0 && node(me).taking.is_some(),
            Action::Write(me) => {
                let early = plan.mutant == Some(Mutant::PrepareEarly);
                node(me).writing.as_ref().is_some_and(|image| early || image.log.is_some())
            }
            Action::FailWrite(me) => left.writer_failures > 0 && node(me).writing.is_some(),
            Action::PowerOff(me) => left.power_offs > 0 && node(me).running && !node(me).off,
            Action::Leave(me) => node(me).off && !node(me).gone && !node(me).told && node(me).writing.is_none(),
            Action::HangUp(me) => {
                let out =
                    |to| node(me).cut.next_to_send(Node(to)).is_some() || !self.wires[self.wire(me, to)].is_empty();
                node(me).told && !node(me).gone && !(0..plan.nodes()).any(|to| out(to) || node(to).holds(me))
            }
            Action::Break(one, other) => {
                left.breaks > 0 && !node(one).off && !node(other).off && !node(one).parted[usize::from(other)]
            }
            Action::Lose(me) => left.losses > 0 && !node(me).gone,
            Action::Kill => left.kills > 0,
            Action::Usurp => left.usurpations > 0,
            Action::Order(at, to) => {
                !node(to).gone && self.seats.get(at).is_some_and(|seat| seat.orders[usize::from(to)].front().is_some())
            }
            Action::Mail(at, _)
            | Action::Request(at)
            | Action::Errand(at)
            | Action::FailErrand(at, _)
            | Action::Answer(at)
            | Action::Deadline(at)
            | Action::Die(at) => self.seats.get(at).is_some_and(|seat| seat.can(left, action)),
        }
    }

    /// Does it.
    pub(crate) fn step(&mut self, plan: &Plan, action: Action) {
        match action {
            Action::Send(me) => self.send(plan, me),
            Action::Deliver(me) => self.deliver(plan, me),
            Action::Wire(from, to) => {
                let wire = self.wire(from, to);
                let packet = self.take_from_row(from, to);
                self.wires[wire].extend(packet);
            }
            Action::Arrive(from, to) => self.arrive(plan, from, to),
            Action::TakeCut(me) => self.take_cut(plan, me),
            Action::FailCut(me) => {
                self.left.cut_failures -= 1;
                let cut = self.node(me).taking.take().expect("one is to be taken");
                self.tell(plan, me, Input::CutFailed(cut, String::new()));
            }
            Action::Write(me) => self.write(plan, me),
            Action::FailWrite(me) => {
                self.left.writer_failures -= 1;
                let image = self.node(me).writing.take().expect("one is written");
                self.tell(plan, me, Input::CutFailed(image.cut, String::new()));
            }
            Action::PowerOff(me) => {
                self.left.power_offs -= 1;
                self.count("guests off", 1);
                self.node(me).off = true;
                self.node(me).taking = None;
                self.tell(plan, me, Input::GuestOff);
            }
            Action::Leave(me) => {
                self.node(me).told = true;
                let left = coordinator::Input::Left(Node(me), self.node(me).cut.colour());
                self.report(me, left);
            }
            Action::HangUp(me) => {
                self.node(me).gone = true;
                (0..plan.nodes()).filter(|other| *other != me).for_each(|other| self.end_link(plan, other, me));
            }
            Action::Break(one, other) => {
                self.left.breaks -= 1;
                for (here, there) in [(one, other), (other, one)] {
                    self.node(here).broken[usize::from(there)] = true;
                    self.end_link(plan, here, there);
                }
            }
            Action::Lose(me) => {
                self.left.losses -= 1;
                self.lose(plan, me);
            }
            Action::Order(seat, to) => self.order(plan, seat, to),
            Action::Kill => {
                self.left.kills -= 1;
                self.restore(plan);
            }
            _ => self.step_of_seat(plan, action),
        }
    }
}
