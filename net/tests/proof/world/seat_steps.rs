//! What a coordinator does, and what is durable of it.

use ckvmm_net::Colour;
use ckvmm_net::coordinator::{self, Coordinator, Decision, Verdict};

use super::seat::decision;
use super::{Action, Errand, Plan, Seat, Vmm, World};
use crate::mutants::Mutant;
use crate::oracle;

impl World {
    pub(super) fn step_of_seat(&mut self, plan: &Plan, action: Action) {
        match action {
            Action::Mail(seat, from) => {
                let mail = self.seats[seat].mail[usize::from(from)].pop_front().expect("there is some");
                self.advise(plan, seat, mail);
            }
            Action::Request(seat) => {
                self.left.cuts -= 1;
                self.advise(plan, seat, coordinator::Input::Requested);
            }
            Action::Errand(seat) => self.errand(plan, seat, None),
            Action::FailErrand(seat, done) => {
                self.left.store_failures -= 1;
                self.errand(plan, seat, Some(done));
            }
            Action::Answer(seat) => {
                let answer = self.seats[seat].answer.take().expect("there is one");
                self.advise(plan, seat, answer);
            }
            Action::Deadline(seat) => {
                self.left.deadlines -= 1;
                let cut = self.seats[seat].clock.take().expect("it runs");
                self.advise(plan, seat, coordinator::Input::Deadline(cut));
            }
            Action::Die(seat) => {
                self.left.coordinator_deaths -= 1;
                self.seats.remove(seat);
                self.succeed(plan);
            }
            Action::Usurp => {
                self.left.usurpations -= 1;
                self.succeed(plan);
            }
            _ => unreachable!("it is no coordinator's"),
        }
    }

    pub(super) fn report(&mut self, me: u16, report: coordinator::Input<()>) {
        for seat in &mut self.seats {
            seat.mail[usize::from(me)].push_back(report.clone());
        }
    }

    /// Tells a coordinator something, and does what it says.
    pub(super) fn advise(&mut self, plan: &Plan, seat: usize, input: coordinator::Input<()>) {
        let mut outputs = Vec::new();
        self.seats[seat].brain.handle(input, &mut outputs);
        self.carry_out(plan, seat, outputs);
    }

    pub(super) fn carry_out(&mut self, plan: &Plan, seat: usize, outputs: Vec<coordinator::Output<()>>) {
        let prune = self.seats[seat].carry_out(outputs);
        let early = match &self.seats[seat].errand {
            Some(Errand::Decide(cut, Verdict::Commit(_))) if plan.mutant == Some(Mutant::PruneEarly) => Some(*cut),
            _ => None,
        };
        if let Some(cut) = prune.or(early) {
            self.prune(cut);
        }
    }

    pub(super) fn prune(&mut self, before: Colour) {
        self.store.base = None;
        for vmm in &mut self.nodes {
            vmm.images = vmm.images.split_off(&before);
        }
    }

    /// Makes something durable; `fails` if the coordinator is not to know whether it is.
    pub(super) fn errand(&mut self, plan: &Plan, seat: usize, fails: Option<bool>) {
        let errand = self.seats[seat].errand.take().expect("there is one");
        let (Errand::Intent(cut) | Errand::Decide(cut, _)) = errand;
        let answer = match (fails, errand) {
            (Some(false), _) => None,
            (_, Errand::Intent(cut)) if self.store.intents.insert(cut) => Some(coordinator::Input::IntentRecorded(cut)),
            (_, Errand::Intent(cut)) => Some(coordinator::Input::IntentTaken(cut)),
            (_, Errand::Decide(cut, verdict)) => Some(self.decide(plan, cut, verdict)),
        };
        let failed = coordinator::Input::StoreFailed(cut, String::new());
        self.seats[seat].answer = Some(answer.filter(|_| fails.is_none()).unwrap_or(failed));
    }

    pub(super) fn decide(&mut self, plan: &Plan, cut: Colour, verdict: Verdict<()>) -> coordinator::Input<()> {
        match self.store.decisions.get(&cut) {
            Some(first) if plan.mutant != Some(Mutant::DecisionOverwritten) => {
                return coordinator::Input::Decided(cut, decision(first));
            }
            Some(first) if decision(first) != decision(&verdict) => self.is_wrong("a decision was changed"),
            _ => {}
        }
        let written = decision(&verdict);
        if let Verdict::Commit(parts) = &verdict {
            self.store.ever = true;
            let frames = parts.iter().filter_map(|(node, ())| self.nodes[node.index()].images.get(&cut)?.log.as_ref());
            let frames = frames.map(|log| log.len() as u64).sum();
            self.count("frames in checkpoints", frames);
            self.count("cuts committed", 1);
            if let Err(what) = oracle::check_checkpoint(plan, self, cut, parts) {
                self.is_wrong(what);
            }
        }
        self.count("cuts aborted", u64::from(written == Decision::Abort));
        self.store.decisions.insert(cut, verdict);
        coordinator::Input::Decided(cut, written)
    }

    pub(super) fn succeed(&mut self, plan: &Plan) {
        let members = self.nodes.iter().map(Vmm::member).collect();
        let mut outputs = Vec::new();
        let brain = Coordinator::succeed(members, self.store.newest(), &mut outputs);
        self.seats.push(Seat::new(brain, &self.nodes));
        self.carry_out(plan, self.seats.len() - 1, outputs);
    }
}
