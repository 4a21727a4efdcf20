//! The supervisor: starts a network's VMs, and runs the coordinator of its checkpoints.
//!
//! Invariants: one thread has all of its state and does one thing at a time; other threads only wait for something and
//! tell it. What is decided about a cut is decided by `Coordinator`, which is pure: here are its store, its members and
//! its clock. When the supervisor ends in order, its VMs have ended; killed, it leaves them running.

mod end;
mod start;
mod status;

pub use start::{Restore, restore, up};

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitStatus as Ended;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use ckvmm_net::coordinator::{Coordinator, Decision, Input, Member, Outcome, Output, ToMember, Verdict};
use ckvmm_net::cut::Why;
use ckvmm_net::{Colour, Node};
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;

use super::channel::Channel;
use super::control::{Answer, Verb};
use super::manifest::{self, Manifest, NodeEntry, PartEntry};
use super::message::{self, FromMember, Part};
use super::store::NetStore;
use crate::cli::ExitStatus;
use crate::config::{CheckpointConfig, Id};
use crate::error::{Error, Result};
use crate::host::signals::Asked;
use crate::host::terminal::say;

/// How long members may be at work on a cut: what a large VM on a slow disk needs to be written.
const CUT_TIME: Duration = Duration::from_secs(600);

/// What the supervisor waits for.
#[derive(Debug)]
pub enum Event {
    /// A member has said something.
    Said(Node, FromMember),
    /// A member will say no more.
    Silent(Node),
    /// A member's process has ended.
    Ended(Node, Ended),
    /// From the system.
    Signal(Asked),
    /// From a command line.
    Asked(Verb, Sender<Answer>),
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
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    channel: Arc<Channel>,
    ended: Option<Ended>,
}

/// A running network.
struct Supervisor {
    name: Id,
    lineage: Uuid,
    incarnation: u64,
    checkpoint: CheckpointConfig,
    store: NetStore,
    state: PathBuf,
    seats: Vec<Seat>,
    coordinator: Coordinator<Part>,
    events: Receiver<Event>,
    /// Who has asked for the checkpoint that is being made.
    asker: Option<Sender<Answer>>,
    /// When the cut that is being collected is too late.
    deadline: Option<(Instant, Colour)>,
    /// When the next checkpoint is due.
    due: Option<Instant>,
    last: Option<Colour>,
    /// Of a restored network: the instant that its guests go on from; absent: from the present.
    from: Option<Timestamp>,
    /// What of the time since their cuts guests do not see, nanoseconds. Known when all were told to go.
    less_ns: Option<i64>,
    /// The network is to end with the checkpoint that is being made.
    then_stop: bool,
    stopped: bool,
}

impl Supervisor {
    fn run(mut self) -> Result<ExitStatus> {
        self.plan_next();
        while self.seats.iter().any(Seat::runs) {
            match self.wait() {
                Some(event) => self.handle(event)?,
                None => self.time_is_over(),
            }
        }
        Ok(self.status())
    }

    fn wait(&self) -> Option<Event> {
        let times = self.deadline.map(|(at, _)| at).into_iter().chain(self.due);
        match times.min() {
            // The listener holds a sender.
            None => self.events.recv().ok(),
            Some(until) => self.events.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
        }
    }

    fn time_is_over(&mut self) {
        let now = Instant::now();
        if let Some((_, cut)) = self.deadline.take_if(|(at, _)| *at <= now) {
            self.feed(Input::Deadline(cut));
        }
        if self.due.is_some_and(|due| due <= now) {
            self.plan_next();
            self.request();
        }
    }

    fn plan_next(&mut self) {
        self.due = self.checkpoint.every.map(|every| Instant::now() + every);
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Said(node, FromMember::Ready) => self.feed(Input::Ready(node)),
            Event::Said(node, FromMember::Prepared(cut, part)) => {
                self.seats[node.index()].part = Some(part);
                self.feed(Input::Prepared(node, Colour(cut), part));
            }
            Event::Said(node, FromMember::Failed(cut, why)) => {
                self.feed(Input::Failed(node, Colour(cut), Why::Image(why)));
            }
            Event::Said(node, FromMember::Left(colour)) => self.feed(Input::Left(node, Colour(colour))),
            Event::Silent(node) => return self.silent(node),
            Event::Ended(node, ended) => self.ended(node, ended),
            Event::Signal(Asked::Checkpoint) => self.request(),
            Event::Signal(Asked::CheckpointAndStop) => {
                self.then_stop = true;
                self.request();
            }
            Event::Signal(Asked::PowerOff) => self.signal_all(Signal::SIGTERM),
            Event::Asked(Verb::Checkpoint, asker) if self.coordinator.may_begin() => {
                self.asker = Some(asker);
                self.feed(Input::Requested);
            }
            Event::Asked(Verb::Checkpoint, asker) => {
                let line = "checkpoint: another one is being made, or VMs are still starting; ask again later";
                // Who has gone needs no answer.
                drop(asker.send(Err(line.into())));
            }
            Event::Asked(Verb::Status, asker) => drop(asker.send(Ok(self.show()))),
            Event::Asked(Verb::Down, asker) => {
                self.signal_all(Signal::SIGTERM);
                drop(asker.send(Ok(Value::Null)));
            }
        }
        Ok(())
    }

    /// A member is gone; without a word, unless its guest has left before.
    fn silent(&mut self, node: Node) -> Result<()> {
        if self.stopped || self.coordinator.members()[node.index()] != Member::On {
            return Ok(());
        }
        let name = &self.seats[node.index()].name;
        if self.less_ns.is_none() {
            return Err(Error::Node { name: name.to_string(), reason: start::last_words(&self.state, name) });
        }
        say(&format!("{name}: its VM is gone; go back to the last checkpoint with `ckvmm network restore`"));
        self.feed(Input::Lost(node));
        Ok(())
    }

    /// A checkpoint that nobody waits for.
    fn request(&mut self) {
        match self.coordinator.may_begin() {
            true => self.feed(Input::Requested),
            false => say("checkpoint: another one is being made, or VMs are still starting; this makes no second one"),
        }
    }

    /// Tells the coordinator, and does what it says, and so on.
    fn feed(&mut self, input: Input<Part>) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut outputs = Vec::new();
            self.coordinator.handle(input, &mut outputs);
            inputs.extend(outputs.into_iter().filter_map(|output| self.perform(output)));
        }
    }

    fn perform(&mut self, output: Output<Part>) -> Option<Input<Part>> {
        match output {
            Output::Send(node, message) => {
                self.tell(node, message);
                None
            }
            Output::RecordIntent(cut) => Some(match self.store.begin(cut) {
                Ok(true) => Input::IntentRecorded(cut),
                Ok(false) => Input::IntentTaken(cut),
                Err(error) => Input::StoreFailed(cut, error.to_string()),
            }),
            Output::StartClock(cut) => {
                self.deadline = Some((Instant::now() + CUT_TIME, cut));
                None
            }
            Output::Decide(cut, verdict) => {
                self.deadline = None;
                let decided = match verdict {
                    Verdict::Commit(parts) => self.commit(cut, &parts),
                    Verdict::Abort(reason) => self.store.abort(cut, &reason.to_string()),
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
            Output::Prune(_) => {
                if let Some(keep) = self.checkpoint.keep {
                    self.store.prune(&self.name, keep as usize);
                }
                None
            }
        }
    }

    fn commit(&self, cut: Colour, parts: &[(Node, Part)]) -> Result<Decision> {
        let dir = self.store.directory(cut);
        let (format, version) = Manifest::format();
        let entry = |(seat, node): (&Seat, u16)| -> Result<NodeEntry> {
            let part = parts.iter().find(|(of, _)| *of == Node(node)).map(|(_, part)| {
                let path = dir.join(&*seat.name).join(manifest::NAME);
                let what = "a part that was said to be whole cannot be read; mend the file system";
                let digest = manifest::digest(&path).map_err(|source| Error::Io { path, what, source })?;
                Ok::<_, Error>(PartEntry { digest, part: *part })
            });
            Ok(NodeEntry { name: seat.name.clone(), nic: seat.nic.clone(), mac: seat.mac, part: part.transpose()? })
        };
        let manifest = Manifest {
            format,
            version,
            name: self.name.clone(),
            lineage: self.lineage,
            incarnation: self.incarnation,
            cut: cut.0,
            created: Timestamp::now(),
            checkpoint: self.checkpoint.clone(),
            nodes: self.seats.iter().zip(0..).map(entry).collect::<Result<_>>()?,
        };
        self.store.commit(cut, &manifest)
    }

    /// Says how a checkpoint went.
    fn done(&mut self, cut: Colour, outcome: Outcome) {
        let dir = self.store.directory(cut);
        let answer: Answer = match outcome {
            Outcome::Committed => {
                self.last = Some(cut);
                say(&format!("checkpoint {}: {}", dir.display(), self.parts()));
                Ok(dir.display().to_string().into())
            }
            Outcome::Aborted(reason) => Err(format!("checkpoint: {reason}; the network goes on")),
            Outcome::Unknown(why) => Err(format!("checkpoint: whether it is one is not known: {why}; ask again")),
            Outcome::Refused(reason) => Err(format!("checkpoint: {reason}; the network goes on")),
        };
        if self.then_stop && answer.is_ok() {
            self.stopped = true;
            self.signal_all(Signal::SIGKILL);
        }
        self.then_stop = false;
        match (self.asker.take(), answer) {
            // Who has gone needs no answer.
            (Some(asker), answer) => drop(asker.send(answer)),
            (None, Err(line)) => say(&line),
            (None, Ok(_)) => {}
        }
    }

    fn tell(&mut self, node: Node, message: ToMember) {
        if message == ToMember::Go && self.less_ns.is_none() {
            // All are told the same, so the clocks of all go on from one instant, whenever each of them hears of it.
            let passed = self.from.map(|from| Timestamp::now().as_nanosecond() - from.as_nanosecond());
            self.less_ns = Some(passed.map_or(0, |passed| passed.try_into().unwrap_or(i64::MAX)));
        }
        if let Some(process) = &self.seats[node.index()].process {
            // That it is gone is heard otherwise.
            let _ = process.channel.send(&message::ToMember::new(message, self.less_ns.unwrap_or(0)), &[]);
        }
    }

    fn signal_all(&self, signal: Signal) {
        let running = self.seats.iter().filter(|seat| seat.runs()).filter_map(|seat| seat.process.as_ref());
        // One that has ended meanwhile is not waited for yet: its pid is nobody else's.
        running.for_each(|process| _ = kill(process.pid, signal));
    }
}

impl Seat {
    fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ended.is_none())
    }
}
