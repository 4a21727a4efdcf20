//! A VM's part in its network, in the main loop: what the supervisor and the port say, and what follows for the machine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ckvmm_net::Colour;
use ckvmm_net::cut::{Input, Output};
use ckvmm_net::port;
use ckvmm_snapshot::Image;

use super::{
    checkpoints::Wanted,
    finisher::{Finished, Unfinished},
    main_loop::{Life, Next},
    session::{Event as SessionEvent, Session},
    verification::ends_now,
};
use crate::{
    cli::ExitStatus,
    config::CheckpointMode,
    control::{NOT_ALONE, VmState},
    error::{Error, Result},
    host::terminal::say,
    network::{
        member::{Event, Invitation, LeftNote, Member},
        message::{FromMember, Part, SoFar, ToMember},
    },
    operations::{Asker, CheckpointDone, Operation, Running},
    state::clock::ClockPolicy,
};

/// For so long a cut waits for an image that is given up, whose disk may hang: the others' frames wait with it.
const PATIENCE: Duration = Duration::from_secs(5);

impl Life<'_> {
    /// What comes of an event of the network.
    pub(super) fn network(&mut self, event: Event) -> Result<Next> {
        let Some(member) = &mut self.session.network else { return Ok(Next::Continue) };
        match event {
            // Whoever takes over tells all to go: nobody knows whom the one before has told.
            Event::Told(ToMember::Go { .. }) if std::mem::replace(&mut member.has_gone, true) => {}
            Event::Told(ToMember::Go { less_ns }) => {
                self.machine.set_clock_policy(ClockPolicy::Passed { less_ns });
                self.machine.resume()?;
                self.session.shared.set_state(VmState::Running);
            }
            Event::Told(ToMember::Cut(cut)) => member.tell(Input::CutRequested(Colour(cut))),
            Event::Told(ToMember::Committed(cut)) => member.tell(Input::Committed(Colour(cut))),
            Event::Told(ToMember::Aborted(cut)) => member.tell(Input::Aborted(Colour(cut))),
            // These are for nobody, for the links, or answered already.
            Event::Told(ToMember::Place(_) | ToMember::Fault(..) | ToMember::Capture(_) | ToMember::HowFar) => {}
            Event::Port(port::Event::Cut(output)) => return self.cut(output),
            Event::Port(port::Event::Broken(peer, error)) => {
                say(&error.to_string());
                member.say(&FromMember::LinkBroken(peer.0));
            }
            Event::Supervised(channel) => {
                member.supervised(channel);
                say("another supervisor has taken over");
            }
            Event::Alone => {
                say("the network's supervisor has ended; the VM runs on, without checkpoints of the network")
            }
        }
        Ok(Next::Continue)
    }

    fn cut(&mut self, output: Output<port::Frame>) -> Result<Next> {
        match (output, &mut self.session.network) {
            // It may be asked for twice.
            (Output::TakeCut(cut), Some(member)) if cut <= member.port.colour() => {}
            (Output::TakeCut(cut), Some(member)) if self.session.writing => {
                member.next = Some((cut, Instant::now() + PATIENCE));
            }
            (Output::TakeCut(cut), Some(_)) => return self.take_cut(cut),
            (output, _) => self.session.cut_goes_on(output),
        }
        Ok(Next::Continue)
    }

    /// Takes the cut that had to wait for the end of another image.
    pub(super) fn take_next_cut(&mut self) -> Result<Next> {
        match self.session.network.as_mut().and_then(|member| member.next.take()) {
            Some((cut, _)) => self.take_cut(cut),
            None => Ok(Next::Continue),
        }
    }

    /// Until when a cut waits.
    pub(super) fn next_cut_waits_until(&self) -> Option<Instant> {
        let (_, until) = self.session.network.as_ref()?.next?;
        Some(until)
    }

    /// The cut has waited for too long.
    pub(super) fn fail_next_cut(&mut self) {
        let Some(member) = &mut self.session.network else { return };
        let colour = member.port.colour();
        if let Some((cut, _)) = member.next.take().filter(|(cut, _)| *cut > colour) {
            let why = "the image of the cut before is given up, and its disk has not let go of it yet";
            member.tell(Input::CutFailed(cut, why.into()));
        }
    }

    fn take_cut(&mut self, cut: Colour) -> Result<Next> {
        let Some(member) = &mut self.session.network else { return Ok(Next::Continue) };
        if cut <= member.port.colour() {
            // It was aborted meanwhile.
            return Ok(Next::Continue);
        }
        let operation = match self.session.shared.operations().begin(Asker::Signal) {
            Ok(operation) => operation,
            Err(error) => {
                member.tell(Input::CutFailed(cut, error.to_string()));
                return Ok(Next::Continue);
            }
        };
        let dir = Some(member.directory(cut).as_ref().to_path_buf());
        let log = member.opened(cut);
        let port = member.port.clone();
        let taken = move || {
            // Only a commit can be refused.
            let _ = port.tell(Input::CutTaken(cut));
        };
        let wanted = Wanted { dir, mode: CheckpointMode::Auto, full: false, stop: false };
        match self.begin(&operation, wanted, taken) {
            Ok(begun) => {
                let verification = self.session.verification.clone();
                self.session.writing = true;
                let unfinished = Unfinished { begun, operation, in_store: false, verification, log: Some(log) };
                self.session.finisher.finish(unfinished);
                self.attend_links();
                Ok(Next::Continue)
            }
            Err(error) => self.checkpointed(Finished::failed(operation, false, error)),
        }
    }

    /// A cut that is open waits for its links, and in a paused machine nobody sees to them.
    pub(super) fn attend_links(&self) {
        if let Some(member) = self.session.network.as_ref().filter(|_| !self.machine.is_running()) {
            member.attend();
        }
    }

    /// A VM of a network is captured with all of it, or not at all.
    pub(super) fn refuses_alone(&self, operation: Option<Running>) -> bool {
        let refuses = self.session.network.is_some();
        if refuses {
            match operation {
                Some(operation) => operation.fail(NOT_ALONE),
                None => say(NOT_ALONE),
            }
        }
        refuses
    }
}

impl Session {
    /// Takes the VM's place in a network, if it has one there.
    pub(super) fn join(&mut self, invitation: Option<Invitation>, image: Option<&Image>) -> Result<()> {
        let Some(invitation) = invitation else { return Ok(()) };
        let (sender, shared, verified) = (self.sender.clone(), Arc::clone(&self.shared), Arc::clone(&self.verified));
        // A main loop that has ended needs no events.
        let events = move |event| drop(sender.send(SessionEvent::Network(event)));
        let so_far = move || {
            let Operation { phase, done_bytes, total_bytes, .. } = shared.operations().running()?;
            let verified_bytes = verified.bytes_done();
            Some(SoFar { phase: phase.unwrap_or_default(), done_bytes, total_bytes, verified_bytes })
        };
        let member = invitation.accept(image, self.state.path(), events, so_far)?;
        self.shared.set_port(member.port.clone());
        self.network = Some(member);
        Ok(())
    }

    /// What the cut says once it is taken.
    fn cut_goes_on(&mut self, output: Output<port::Frame>) {
        let Some(member) = &mut self.network else { return };
        match output {
            // The guest is off.
            Output::TakeCut(_) => {}
            Output::LinksClosed { cut, log } => member.closed(cut, log),
            Output::Prepared(cut) => member.prepared(cut),
            Output::Failed(cut, why) => member.failed(cut, &why),
            // What is made already goes with the others' parts.
            Output::Discard(cut) => {
                if member.discard(cut) {
                    self.shared.operations().cancel_running();
                }
            }
        }
    }

    /// The guest has ended: its links close in order, and the network goes on without it, unless it crashed: that is a
    /// failure. Of a cut that it has taken it is a part, as a machine that ran: that is completed first, unless the end
    /// was forced, or is now.
    pub(super) fn leave_network(&mut self, ended: &Result<ExitStatus>) -> Option<LeftNote> {
        let (Some(member), Ok(status)) = (&self.network, ended) else { return None };
        member.close_links();
        if !self.gives_up {
            member.attend();
            self.complete_cut();
        }
        let end = if *status == ExitStatus::GuestCrashed { Member::crash } else { Member::leave };
        self.network.take().map(end)
    }

    fn complete_cut(&mut self) {
        while let Some(member) = self.network.as_ref().filter(|member| member.is_cutting()) {
            // This session holds a sender: there is always a next event.
            match self.events.recv() {
                Ok(SessionEvent::Network(Event::Port(port::Event::Cut(output)))) => self.cut_goes_on(output),
                Ok(SessionEvent::Network(Event::Told(ToMember::Aborted(cut)))) => {
                    member.tell(Input::Aborted(Colour(cut)));
                }
                Ok(SessionEvent::Network(Event::Alone)) | Err(_) => return,
                Ok(SessionEvent::Checkpoint(image)) => {
                    finished(self.network.as_mut(), &image);
                    self.checkpointed(*image, "; the VM has ended");
                }
                Ok(event) => {
                    if ends_now(event) {
                        self.gives_up = true;
                        return;
                    }
                }
            }
        }
    }
}

/// Tells the member, if the VM is one, what has become of its image.
pub(super) fn finished(member: Option<&mut Member>, Finished { made, .. }: &Finished) {
    let Some(member) = member else { return };
    let part = |done: &CheckpointDone| {
        let CheckpointDone { created, written_bytes, pause_us, pause_cpu_us, .. } = *done;
        Part { created, written_bytes, pause_us, pause_cpu_us, ..Part::default() }
    };
    member.finished(made.as_ref().map(part).map_err(Error::to_string));
}
