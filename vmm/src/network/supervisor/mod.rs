//! The supervisor: starts a network's VMs, and runs the coordinator of its checkpoints.
//!
//! Invariants: one thread has all of its state and does one thing at a time; other threads only wait for something and
//! tell it, or remove what is old. What is decided about a cut is decided by `Coordinator`, which is pure: here are its
//! store, its members and its clock. When the supervisor ends in order, its VMs have ended; killed, it leaves them running.

mod adopt;
mod cut;
mod deadline;
mod end;
mod failure;
mod job;
mod links;
mod pruner;
mod seed;
mod start;
mod state;
mod status;
mod terms;

pub use adopt::{adopt, has_run};
pub use start::{Restore, restore, run, up};

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Instant;

use ckvmm_net::coordinator::{Coordinator, Input, Output, Verdict};
use ckvmm_net::cut::Why;
use ckvmm_net::{Colour, Node};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;
use uuid::Uuid;

use self::deadline::Deadline;
use self::end::Ended;
use self::job::Followed;
use self::pruner::Pruner;
use self::terms::Terms;
use super::channel::Channel;
use super::control::{Answer, Verb};
use super::failure::Failures;
use super::message::{self, FromMember, Part};
use super::store::NetStore;
use crate::cli::ExitStatus;
use crate::config::Id;
use crate::error::Result;
use crate::host::terminal::say;
use crate::host::{self, signals::Asked};

/// What the supervisor waits for.
#[derive(Debug)]
pub enum Event {
    /// Of a member in this life of the network.
    Member(u64, Node, Heard),
    /// The job has ended in this life, by itself with this status, or with its VM.
    Job(u64, Option<u8>),
    /// From the system.
    Signal(Asked),
    /// From a command line.
    Asked(Verb, Sender<Answer>),
}

/// What is heard of a member.
#[derive(Debug)]
pub enum Heard {
    /// It has said something.
    Said(FromMember),
    /// It will say no more.
    Silence,
    /// What it says cannot be read, and nothing more is listened to.
    Unreadable,
    /// Its process has ended.
    End(Ended),
}

/// A node.
#[derive(Debug)]
struct Seat {
    name: Id,
    nic: Id,
    mac: [u8; 6],
    /// Absent: its guest was off when the network was saved.
    process: Option<Process>,
    /// What it said of its part of the last cut.
    part: Option<Part>,
    /// With this status its VM had ended before this supervisor took over.
    before: Option<u8>,
}

#[derive(Debug)]
struct Process {
    process: host::process::Process,
    channel: Arc<Channel>,
    /// It has said its last word.
    silent: bool,
    ended: Option<Ended>,
}

/// A running network.
struct Supervisor {
    terms: Terms,
    lineage: Uuid,
    /// The number of this life.
    incarnation: u64,
    failures: Failures,
    /// What is followed in this life.
    job: Option<Followed>,
    store: NetStore,
    state: PathBuf,
    seats: Vec<Seat>,
    coordinator: Coordinator<Part>,
    events: Receiver<Event>,
    sender: Sender<Event>,
    /// Who has asked for the checkpoint that is being made.
    asker: Option<Sender<Answer>>,
    /// Of the cut that is being collected.
    deadline: Option<Deadline>,
    /// When the next checkpoint is due.
    due: Option<Instant>,
    /// Who removes old checkpoints, once there are any.
    pruner: Option<Pruner>,
    /// The last checkpoint: of this life, or the one that it began from.
    last: Option<PathBuf>,
    /// Of a restored network: the instant that its guests go on from; absent: from the present.
    instant: Option<Timestamp>,
    /// What of the time since their cuts guests do not see, nanoseconds. Known when all were told to go.
    less_ns: Option<i64>,
    /// A checkpoint is to be made with which the network ends.
    stop_wanted: bool,
    /// The network is to end with the checkpoint that is being made.
    then_stop: bool,
    stopped: bool,
    /// All were asked to power off.
    ending: bool,
    /// All are being ended, to begin again from the last checkpoint.
    goes_back: bool,
    /// Links of this life that are broken.
    broken: BTreeSet<(Node, Node)>,
}

impl Supervisor {
    fn run(mut self) -> anyhow::Result<ExitStatus> {
        loop {
            while self.seats.iter().any(Seat::runs) || self.waits_for_job() {
                match self.wait() {
                    Some(event) => self.handle(event)?,
                    None => self.time_is_over(),
                }
                self.stop_if_it_can();
            }
            if !self.goes_back || self.ending {
                self.remove_record();
                self.finish_pruning();
                return Ok(self.status());
            }
            self.go_back()?;
        }
    }

    fn wait(&self) -> Option<Event> {
        let times = self.deadline.as_ref().map(Deadline::next_look).into_iter().chain(self.due);
        match times.min() {
            // This holds a sender.
            None => self.events.recv().ok(),
            Some(until) => self.events.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
        }
    }

    fn time_is_over(&mut self) {
        let now = Instant::now();
        self.look_at_cut(now);
        if self.due.is_some_and(|due| due <= now) {
            self.plan_next();
            self.request();
        }
    }

    fn plan_next(&mut self) {
        self.due = self.terms.checkpoint.every.map(|every| Instant::now() + every);
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Member(life, node, heard) if life == self.incarnation => return self.hear(node, heard),
            Event::Job(life, verdict) if life == self.incarnation => self.job_ended(verdict),
            Event::Member(..) | Event::Job(..) => {}
            Event::Signal(Asked::Checkpoint) => self.request(),
            Event::Signal(Asked::CheckpointAndStop) => {
                self.stop_wanted = true;
                if !self.coordinator.may_begin() && !self.stopped {
                    say("the network ends with a checkpoint of its own, once this one is made or all VMs run");
                }
            }
            Event::Signal(Asked::PowerOff) => self.end(Signal::SIGTERM),
            Event::Asked(Verb::Checkpoint, asker) if self.coordinator.may_begin() || self.coordinator.is_deposed() => {
                self.asker = Some(asker);
                self.feed(Input::Requested);
            }
            Event::Asked(Verb::Checkpoint, asker) => {
                let line = "checkpoint: another one is being made, or VMs are still starting; ask again later";
                // Who has gone needs no answer.
                drop(asker.send(Err(line.into())));
            }
            Event::Asked(Verb::Status, asker) => drop(asker.send(Ok(self.show()))),
            Event::Asked(verb @ (Verb::Down | Verb::Kill), asker) => {
                self.end(if verb == Verb::Kill { Signal::SIGKILL } else { Signal::SIGTERM });
                drop(asker.send(Ok(Value::Null)));
            }
            Event::Asked(Verb::Fault(links, fault), asker) => drop(asker.send(self.fault(links.as_ref(), fault))),
            Event::Asked(Verb::Capture(links, file), asker) => {
                drop(asker.send(self.capture(&links, file.as_deref())));
            }
        }
        Ok(())
    }

    fn hear(&mut self, node: Node, heard: Heard) -> Result<()> {
        self.note_end(node, &heard);
        if let Some(deadline) = &mut self.deadline {
            deadline.heard(node, &heard);
        }
        let unreadable = matches!(heard, Heard::Unreadable);
        match heard {
            Heard::Said(FromMember::Ready) => self.feed(Input::Ready(node)),
            Heard::Said(FromMember::Prepared(cut, part)) => {
                self.seats[node.index()].part = Some(part);
                self.feed(Input::Prepared(node, Colour(cut), part));
            }
            Heard::Said(FromMember::Failed(cut, why)) => {
                self.feed(Input::Failed(node, Colour(cut), Why::Image(why)));
            }
            Heard::Said(FromMember::Left(colour)) => self.feed(Input::Left(node, Colour(colour))),
            Heard::Said(FromMember::LinkBroken(peer)) => self.link_broken(node, Node(peer))?,
            Heard::Said(FromMember::SoFar(_)) | Heard::Silence | Heard::Unreadable | Heard::End(_) => {}
        }
        let runs = self.seats[node.index()].runs();
        if unreadable || !runs {
            self.gone(node)?;
        }
        if !runs {
            self.job_is_over_on(node);
        }
        Ok(())
    }

    /// The network ends, by power button or now. A guest asked twice is ended by its VMM: by another signal, since two of
    /// one kind are one until somebody has read the first.
    fn end(&mut self, how: Signal) {
        let again = std::mem::replace(&mut self.ending, true);
        self.signal_all(if again && how == Signal::SIGTERM { Signal::SIGINT } else { how });
    }

    /// Tells the coordinator, and does what it says, and so on.
    fn feed(&mut self, input: Input<Part>) {
        let mut outputs = Vec::new();
        self.coordinator.handle(input, &mut outputs);
        self.perform_all(outputs);
    }

    fn perform_all(&mut self, mut outputs: Vec<Output<Part>>) {
        let mut inputs = VecDeque::new();
        loop {
            inputs.extend(outputs.drain(..).filter_map(|output| self.perform(output)));
            let Some(input) = inputs.pop_front() else { return };
            self.coordinator.handle(input, &mut outputs);
        }
    }

    fn perform(&mut self, output: Output<Part>) -> Option<Input<Part>> {
        match output {
            Output::Send(node, message) => {
                self.send(node, message);
                None
            }
            Output::RecordIntent(cut) => Some(match self.store.begin(cut) {
                Ok(true) => Input::IntentRecorded(cut),
                Ok(false) => Input::IntentTaken(cut),
                Err(error) => Input::StoreFailed(cut, error.to_string()),
            }),
            Output::StartClock(cut) => {
                self.seats.iter_mut().for_each(|seat| seat.part = None);
                self.deadline = Some(Deadline::new(cut, self.seats.len(), Instant::now()));
                None
            }
            Output::Decide(cut, verdict) => {
                self.deadline = None;
                let decided = match verdict {
                    Verdict::Commit(parts) => self.commit(cut, &parts),
                    Verdict::Abort(_) => self.store.abort(cut),
                };
                Some(match decided {
                    Ok(decision) => Input::Decided(cut, decision),
                    Err(error) => Input::StoreFailed(cut, error.to_string()),
                })
            }
            Output::Done(cut, outcome) => {
                self.done(cut, outcome);
                None
            }
            Output::Prune(cut) => {
                self.last = Some(self.store.directory(cut));
                self.prune();
                None
            }
        }
    }

    fn tell(&self, node: Node, message: &message::ToMember, descriptors: &[BorrowedFd<'_>]) {
        if let Some(process) = &self.seats[node.index()].process {
            // That it is gone is heard otherwise.
            let _ = process.channel.send(message, descriptors);
        }
    }

    fn signal_all(&self, signal: Signal) {
        self.seats.iter().filter_map(|seat| seat.process.as_ref()).for_each(|member| member.process.signal(signal));
    }
}

impl Seat {
    fn new(name: Id, nic: Id, mac: [u8; 6]) -> Seat {
        Seat { name, nic, mac, process: None, part: None, before: None }
    }

    fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ended.is_none() || !process.silent)
    }
}
