//! The main loop: it owns the machine, and all that is done to the machine is done here, one thing at a time.

use std::{
    sync::{atomic::Ordering, mpsc::RecvTimeoutError},
    time::Instant,
};

use ckvmm_devices::PowerEvent;

use super::{
    checkpoints::Wanted,
    moving::Move,
    session::{Event, Loaded, Session, deliver},
};
use crate::{
    cli::ExitStatus,
    control::{Command, CommandError, Outcome, Request, VmState},
    error::{Error, Result},
    host::{
        signals::{Asked, Signals},
        terminal::{RawTerminal, say},
    },
    machine::{Machine, events::MachineEvent},
    network::message::FromMember,
};

/// What comes after an event.
pub(super) enum Next {
    Continue,
    Restart,
    End(ExitStatus),
}

/// Why the main loop woke up.
enum Wake {
    Event(Event),
    /// The guest's time to power off is over.
    Deadline,
    /// A checkpoint of `checkpoint.every` is due.
    Due,
    /// It is time to move some more RAM.
    Move,
    /// A cut of the network has waited for too long.
    LateCut,
}

/// One machine's life: from its start to a reset or the VM's end.
pub(super) struct Life<'a> {
    pub(super) session: &'a mut Session,
    pub(super) machine: Machine,
    reboots: bool,
    /// When a guest that was asked to power off is ended.
    deadline: Option<Instant>,
    /// When the next checkpoint of `checkpoint.every` is due.
    pub(super) due: Option<Instant>,
    /// Restored RAM on its way into the VM's own memory.
    pub(super) moving: Option<Move>,
}

impl Session {
    /// Runs the machine, and after each reset of the guest another one, until the VM ends.
    pub(super) fn run(mut self, signals: Signals, machine: Machine, reboots: bool, paused: bool) -> Result<ExitStatus> {
        deliver(signals, &self.shared, &self.sender);
        let terminal = RawTerminal::enter();
        if terminal.is_some() {
            say("the guest has this terminal; Ctrl-A x ends it");
        }
        if let Some(member) = &self.network {
            member.say(&FromMember::Ready);
        }
        // A member waits until all are ready.
        let paused = paused || self.network.is_some();
        let ended = self.live(machine, reboots, paused);
        self.shared.set_state(VmState::Stopping);
        let left = self.leave_network(&ended);
        // Of a cut that is open here nothing comes any more.
        self.gives_up |= self.network.take().is_some();
        self.finish_writing(&ended);
        let ended = self.verification.judge(ended, &self.events);
        if let Some(left) = left {
            left.ends_with(*ended.as_ref().unwrap_or(&ExitStatus::Failed));
        }
        self.shared.set_state(VmState::Off);
        drop(terminal);
        for disk in self.disks.iter().filter(|disk| disk.is_working_copy()) {
            say(&format!("disk {}: the guest's copy is {}", disk.id, disk.path.display()));
        }
        self.server.shutdown();
        ended
    }

    fn live(&mut self, mut machine: Machine, reboots: bool, mut paused: bool) -> Result<ExitStatus> {
        loop {
            let mut life = Life { session: self, machine, reboots, deadline: None, due: None, moving: None };
            life.start(paused)?;
            if let Some(status) = life.run()? {
                return Ok(status);
            }
            // The old machine lets go of disks and TAPs before the new one takes them.
            drop(life);
            self.shared.set_state(VmState::Starting);
            machine = self.boot_machine(Loaded::new(&self.config)?)?;
            paused = false;
        }
    }
}

impl Life<'_> {
    fn start(&mut self, paused: bool) -> Result<()> {
        if !paused {
            self.machine.resume()?;
        }
        self.session.shared.set_state(if paused { VmState::Paused } else { VmState::Running });
        self.plan_next();
        self.begin_moving();
        Ok(())
    }

    /// Until the VM's end, or `None` for a reset.
    fn run(&mut self) -> Result<Option<ExitStatus>> {
        loop {
            let next = match self.wait() {
                Wake::Event(event) => self.handle(event)?,
                Wake::Due if self.machine.is_running() => self.checkpoint_now(false)?,
                // What stands still does not change.
                Wake::Due => {
                    self.plan_next();
                    Next::Continue
                }
                Wake::Move => {
                    self.move_some()?;
                    Next::Continue
                }
                Wake::LateCut => {
                    self.fail_next_cut();
                    Next::Continue
                }
                Wake::Deadline => {
                    let waited = self.session.config.stop_timeout.as_secs_f64();
                    say(&format!("the guest did not power off within {waited} s (\"stop_timeout\"); it is ended"));
                    Next::End(ExitStatus::Failed)
                }
            };
            match next {
                Next::Continue => {}
                Next::Restart => return Ok(None),
                Next::End(status) => return Ok(Some(status)),
            }
        }
    }

    fn wait(&self) -> Wake {
        let due = match self.deadline {
            Some(deadline) => Some((deadline, Wake::Deadline)),
            None => self.due.map(|due| (due, Wake::Due)),
        };
        let next = self.moving.as_ref().map(|moving| (moving.next, Wake::Move));
        let cut = self.next_cut_waits_until().map(|until| (until, Wake::LateCut));
        let Some((until, wake)) = due.into_iter().chain(next).chain(cut).min_by_key(|(until, _)| *until) else {
            // This end holds a sender.
            return self.session.events.recv().map_or(Wake::Deadline, Wake::Event);
        };
        match self.session.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(event) => Wake::Event(event),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => wake,
        }
    }

    fn handle(&mut self, event: Event) -> Result<Next> {
        match event {
            Event::Machine(number, _) if number != self.session.machine.load(Ordering::Relaxed) => Ok(Next::Continue),
            Event::Machine(_, event) => self.machine_event(event),
            Event::Request(request) => self.request(request),
            Event::Signal(asked) => self.signal(asked),
            Event::Leave => Ok(self.end_now()),
            Event::Checkpoint(finished) => self.checkpointed(*finished),
            Event::Network(event) => self.network(event),
            Event::Corrupt(line) => {
                self.machine.pause()?;
                Err(Error::Corrupt { line })
            }
        }
    }

    fn machine_event(&mut self, event: MachineEvent) -> Result<Next> {
        Ok(match event {
            MachineEvent::Power(PowerEvent::Off) => Next::End(ExitStatus::Success),
            MachineEvent::Power(PowerEvent::Reset) if self.deadline.is_none() && self.reboots => Next::Restart,
            MachineEvent::Power(PowerEvent::Reset) => Next::End(ExitStatus::Success),
            MachineEvent::Power(PowerEvent::CrashLoaded) => {
                say("the guest has panicked and runs its crash kernel");
                Next::Continue
            }
            MachineEvent::Power(PowerEvent::Panic) => {
                say("the guest has panicked");
                Next::End(ExitStatus::GuestCrashed)
            }
            MachineEvent::TripleFault { vcpu } => {
                say(&format!("vCPU {vcpu}: triple fault: the guest has crashed"));
                Next::End(ExitStatus::GuestCrashed)
            }
            MachineEvent::GuestError { vcpu, reason } => return Err(Error::Guest { vcpu, reason }),
        })
    }

    fn request(&mut self, Request { command, reply }: Request) -> Result<Next> {
        let failed = |error: Error| CommandError::Failed(error.to_string());
        let (outcome, next): (Outcome, Next) = match command {
            Command::Pause | Command::Resume if self.deadline.is_some() => {
                let line = "power: the VM is ending; wait for that, or end it with `ckvmm kill`";
                (Err(CommandError::Conflict(line.into())), Next::Continue)
            }
            Command::Pause => (self.pause().map_err(failed), Next::Continue),
            Command::Resume => (self.resume().map_err(failed), Next::Continue),
            Command::PowerOff { force: true } => (Ok(()), self.end_now()),
            Command::PowerOff { force: false } => (self.press_power_button().map_err(failed), Next::Continue),
            Command::Checkpoint { operation, .. } if self.session.network.is_some() => {
                self.refuses_alone(Some(operation));
                (Ok(()), Next::Continue)
            }
            Command::Checkpoint { operation, dir, mode, full, stop } => {
                (Ok(()), self.checkpoint(operation, Wanted { dir, mode, full, stop })?)
            }
        };
        reply.send(outcome);
        Ok(next)
    }

    fn signal(&mut self, asked: Asked) -> Result<Next> {
        match asked {
            // Asked twice: whoever asks does not want to wait.
            Asked::PowerOff if self.deadline.is_some() => {
                say("asked again to stop: the guest is ended");
                return Ok(self.end_now());
            }
            Asked::PowerOff => self.press_power_button()?,
            _ if self.is_ending() => say("checkpoint: the VM is ending; there is nothing left to capture"),
            Asked::Checkpoint => return self.checkpoint_now(false),
            Asked::CheckpointAndStop => return self.checkpoint_now(true),
        }
        Ok(Next::Continue)
    }

    /// Whoever asks does not want to wait.
    fn end_now(&mut self) -> Next {
        self.session.gives_up = true;
        Next::End(ExitStatus::Failed)
    }

    /// The guest was asked to power off.
    pub(super) fn is_ending(&self) -> bool {
        self.deadline.is_some()
    }

    fn pause(&mut self) -> Result<()> {
        self.machine.pause()?;
        self.session.shared.set_state(VmState::Paused);
        self.attend_links();
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.machine.resume()?;
        self.session.shared.set_state(VmState::Running);
        Ok(())
    }

    /// A guest that stands still could not power off: it runs again.
    fn press_power_button(&mut self) -> Result<()> {
        self.machine.resume()?;
        self.machine.press_power_button();
        self.session.shared.set_state(VmState::Stopping);
        self.deadline.get_or_insert_with(|| Instant::now() + self.session.config.stop_timeout);
        Ok(())
    }
}
