//! The main loop: it owns the machine, and all that is done to the machine is done here, one thing at a time.

use std::{
    path::PathBuf,
    sync::{atomic::Ordering, mpsc::RecvTimeoutError},
    time::Instant,
};

use ckvmm_devices::PowerEvent;
use ckvmm_snapshot::StagedImage;

use super::session::{Event, Session};
use crate::{
    checkpoint::{self, Plan},
    cli::ExitStatus,
    config::{CheckpointMode, ConfigError},
    control::{Command, CommandError, Outcome, Request, VmState},
    error::{Error, Result},
    host::{
        signals::Asked,
        terminal::{RawTerminal, say},
    },
    machine::{Machine, events::MachineEvent},
    operations::{Asker, CheckpointDone, Running},
};

/// What comes after an event.
enum Next {
    Continue,
    Restart,
    End(ExitStatus),
}

/// One machine's life: from its start to a reset or the VM's end.
struct Life<'a> {
    session: &'a mut Session,
    machine: Machine,
    reboots: bool,
    /// When a guest that was asked to power off is ended.
    deadline: Option<Instant>,
}

impl Session {
    /// Runs the machine, and after each reset of the guest another one, until the VM ends.
    pub(super) fn run(mut self, machine: Machine, reboots: bool, paused: bool) -> Result<ExitStatus> {
        let terminal = RawTerminal::enter();
        if terminal.is_some() {
            say("the guest has this terminal; Ctrl-A x ends it");
        }
        let ended = self.live(machine, reboots, paused);
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
            let mut life = Life { session: self, machine, reboots, deadline: None };
            life.start(paused)?;
            if let Some(status) = life.run()? {
                return Ok(status);
            }
            // The old machine lets go of disks and TAPs before the new one takes them.
            drop(life);
            self.shared.set_state(VmState::Starting);
            machine = self.boot_machine()?;
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
        Ok(())
    }

    /// Until the VM's end, or `None` for a reset.
    fn run(&mut self) -> Result<Option<ExitStatus>> {
        loop {
            let Some(event) = self.next_event() else {
                let waited = self.session.config.stop_timeout.as_secs_f64();
                say(&format!("the guest did not power off within {waited} s (\"stop_timeout\"); it is ended"));
                return Ok(Some(ExitStatus::Failed));
            };
            match self.handle(event)? {
                Next::Continue => {}
                Next::Restart => return Ok(None),
                Next::End(status) => return Ok(Some(status)),
            }
        }
    }

    /// The next event; `None` once the guest's time to power off is over.
    fn next_event(&self) -> Option<Event> {
        let events = &self.session.events;
        let Some(deadline) = self.deadline else {
            // This end holds a sender, so the channel is never closed.
            return events.recv().ok();
        };
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    fn handle(&mut self, event: Event) -> Result<Next> {
        match event {
            Event::Machine(number, _) if number != self.session.machine.load(Ordering::Relaxed) => Ok(Next::Continue),
            Event::Machine(_, event) => self.machine_event(event),
            Event::Request(request) => self.request(request),
            Event::Signal(asked) => self.signal(asked),
            Event::Leave => Ok(Next::End(ExitStatus::Failed)),
            Event::Corrupt(line) => {
                self.machine.pause()?;
                say(&line);
                Ok(Next::End(ExitStatus::Failed))
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
            Command::Pause => (self.pause().map_err(failed), Next::Continue),
            Command::Resume => (self.resume().map_err(failed), Next::Continue),
            Command::PowerOff { force: true } => (Ok(()), Next::End(ExitStatus::Failed)),
            Command::PowerOff { force: false } => (self.press_power_button().map_err(failed), Next::Continue),
            Command::Checkpoint { operation, dir, mode, stop } => (Ok(()), self.checkpoint(operation, dir, mode, stop)),
        };
        reply.send(outcome);
        Ok(next)
    }

    fn signal(&mut self, asked: Asked) -> Result<Next> {
        match asked {
            // Asked twice: whoever asks does not want to wait.
            Asked::PowerOff if self.deadline.is_some() => {
                say("asked again to stop: the guest is ended");
                return Ok(Next::End(ExitStatus::Failed));
            }
            Asked::PowerOff => self.press_power_button()?,
            Asked::Checkpoint | Asked::CheckpointAndStop => {
                let stop = asked == Asked::CheckpointAndStop;
                let mode = self.session.config.checkpoint.mode;
                match self.session.shared.operations().begin(Asker::Signal) {
                    Ok(operation) => return Ok(self.checkpoint(operation, None, mode, stop)),
                    // One that the API asked for waits in the channel: this comes after it.
                    Err(_) if stop => drop(self.session.sender.send(Event::Signal(asked))),
                    Err(error) => say(&error.to_string()),
                }
            }
        }
        Ok(Next::Continue)
    }

    fn pause(&mut self) -> Result<()> {
        self.machine.pause()?;
        self.session.shared.set_state(VmState::Paused);
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

    fn checkpoint(&mut self, operation: Running, dir: Option<PathBuf>, mode: CheckpointMode, stop: bool) -> Next {
        let made = self.make_checkpoint(&operation, dir, mode, stop);
        match made {
            Ok(done) => {
                self.session.origin.parent = Some(done.id);
                say(&format!(
                    "checkpoint {}: {} MiB of RAM, paused {:.1} ms, durable after {:.1} ms",
                    done.dir.display(),
                    done.written_bytes >> 20,
                    done.pause_us as f64 / 1000.0,
                    done.duration_us as f64 / 1000.0,
                ));
                operation.done(done);
                if stop { Next::End(ExitStatus::Checkpointed) } else { Next::Continue }
            }
            Err(error) => {
                say(&format!("checkpoint: {error}; the guest goes on"));
                operation.fail(error.to_string());
                Next::Continue
            }
        }
    }

    fn make_checkpoint(
        &mut self,
        operation: &Running,
        dir: Option<PathBuf>,
        mode: CheckpointMode,
        stop: bool,
    ) -> Result<CheckpointDone> {
        if mode == CheckpointMode::Fork {
            let mend = "use \"stop\" or \"auto\"";
            return Err(ConfigError::field("checkpoint.mode", "\"fork\" is not there yet", mend).into());
        }
        let session = &self.session;
        let staged = match dir {
            Some(dir) => StagedImage::create(&dir)?,
            None => session.store.stage()?,
        };
        let plan = Plan {
            name: session.config.name.to_string(),
            lineage: session.origin.lineage,
            parent: session.origin.parent,
            config: session.config.to_value(),
            stay_paused: stop,
        };
        checkpoint::checkpoint(&mut self.machine, staged, &plan, operation.progress())
    }
}
