//! When checkpoints are made, what they are called, and which are kept.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use ckvmm_snapshot::{StagedImage, Store};

use super::{
    auto::{self, Known},
    finisher::{Finished, Unfinished},
    main_loop::{Life, Next},
    network,
    session::{Event, Session, sweep},
    verification::ends_now,
};
use crate::{
    checkpoint::{self, Begun, Plan},
    cli::ExitStatus,
    config::CheckpointMode,
    error::{Error, Result},
    host::{memory, terminal::say},
    machine::Machine,
    operations::{Asker, Held, Running},
};

/// A checkpoint as somebody wants it.
#[derive(Debug)]
pub(super) struct Wanted {
    /// What it will be called; else it gets a number.
    pub(super) dir: Option<PathBuf>,
    /// As whoever asks says; `auto` is what the configuration says.
    pub(super) mode: CheckpointMode,
    /// It is to build on no other one.
    pub(super) full: bool,
    /// The VM is to end when it is made.
    pub(super) stop: bool,
}

impl Life<'_> {
    /// Counts the time of `checkpoint.every` from now.
    pub(super) fn plan_next(&mut self) {
        self.due = self.session.config.checkpoint.every.map(|every| Instant::now() + every);
    }

    /// A checkpoint that a signal or the clock asks for, as the configuration says.
    pub(super) fn checkpoint_now(&mut self, stop: bool) -> Result<Next> {
        self.plan_next();
        if self.refuses_alone(None) {
            return Ok(Next::Continue);
        }
        match self.session.shared.operations().begin(Asker::Signal) {
            Ok(operation) => {
                let wanted = Wanted { dir: None, mode: CheckpointMode::Auto, full: false, stop };
                return self.checkpoint(operation, wanted);
            }
            // It comes after the one that is being made.
            Err(_) if stop => {
                self.session.then_stop = true;
                self.warn_if_it_takes_long();
            }
            Err(error) => say(&error.to_string()),
        }
        Ok(Next::Continue)
    }

    /// Captures the machine. The checkpoint is finished while the guest runs, unless the VM is to end with it.
    pub(super) fn checkpoint(&mut self, operation: Running, wanted: Wanted) -> Result<Next> {
        let (in_store, stop) = (wanted.dir.is_none(), wanted.stop);
        if stop {
            operation.hold(Some(Held::Vm));
            self.warn_if_it_takes_long();
        }
        let ran = self.machine.is_running();
        let begun = match self.begin(&operation, wanted, || {}) {
            Ok(begun) => begun,
            Err(error) => return self.checkpointed(Finished::failed(operation, in_store, error)),
        };
        let verification = self.session.verification.clone();
        let unfinished = Unfinished { begun, operation, in_store, verification, log: None };
        if !stop {
            self.session.writing = true;
            self.session.finisher.finish(unfinished);
            return Ok(Next::Continue);
        }
        let finished = unfinished.finish();
        if self.session.checkpointed(finished, "; the guest goes on") {
            return Ok(Next::End(ExitStatus::Checkpointed));
        }
        if ran {
            self.machine.resume()?;
        }
        self.after_checkpoint()
    }

    /// Captures the machine; `taken` is called while it stands still.
    pub(super) fn begin(&mut self, operation: &Running, wanted: Wanted, taken: impl FnOnce()) -> Result<Begun> {
        if wanted.dir.as_deref().unwrap_or(self.session.store.path()).starts_with(self.session.state.path()) {
            self.session.state.make_lasting()?;
        }
        self.machine.aside().step();
        let session = &mut *self.session;
        let mut staged = match wanted.dir {
            Some(dir) => {
                dir.parent().map(Store::new).iter().for_each(sweep);
                StagedImage::create(&dir)?
            }
            None => session.store.stage()?,
        };
        if let Some(base) = session.base.as_ref().filter(|_| !wanted.full)
            && let Err(error) = staged.build_on(base)
        {
            tracing::info!(%error, "the checkpoint will be a full one");
        }
        let mode = match wanted.mode {
            CheckpointMode::Auto => session.config.checkpoint.mode,
            mode => mode,
        };
        let resident = session.resident();
        let known = Known { stop: wanted.stop, resident, free: memory::free(), history: &session.history };
        let writer = auto::writer(mode, &known);
        let (now, disks) = (Instant::now(), bytes_to_capture(&self.machine));
        session.history.begin(now, session.history.work(now, resident, disks));
        let plan = Plan {
            name: session.config.name.to_string(),
            lineage: session.origin.lineage,
            parent: session.origin.parent,
            config: session.config.to_value(),
            writer,
            hurried: session.network.is_some(),
            stay_paused: wanted.stop,
        };
        checkpoint::begin(&mut self.machine, staged, plan, operation, taken)
    }

    /// Somebody waits for the VM to stop, and not for ever.
    fn warn_if_it_takes_long(&self) {
        let (session, disks) = (&*self.session, bytes_to_capture(&self.machine));
        let takes = session.history.time_to_stop(Instant::now(), session.resident(), disks);
        session.deadline.asked(takes).iter().for_each(|line| say(line));
    }

    /// What comes after a checkpoint that is made, or not.
    pub(super) fn checkpointed(&mut self, finished: Finished) -> Result<Next> {
        network::finished(self.session.network.as_mut(), &finished);
        let splits = finished.splits;
        if self.session.checkpointed(finished, "; the guest goes on") {
            self.session.foresee();
        }
        self.move_all();
        if splits && let Err(error) = self.machine.collapse_huge_pages() {
            tracing::warn!(%error, "the next pause may be longer");
        }
        self.after_checkpoint()
    }

    fn after_checkpoint(&mut self) -> Result<Next> {
        self.plan_next();
        if std::mem::take(&mut self.session.then_stop) && !self.is_ending() {
            return self.checkpoint_now(true);
        }
        self.take_next_cut()
    }
}

/// Of all disks, about.
fn bytes_to_capture(machine: &Machine) -> u64 {
    machine.captured_disks().iter().map(|(_, disk)| disk.bytes_to_capture()).sum()
}

impl Session {
    /// Bytes of RAM that the guest has touched, about.
    fn resident(&self) -> u64 {
        // During a checkpoint there are copies as well.
        memory::own_bytes().unwrap_or(u64::MAX).min(self.config.memory.0)
    }

    /// Says if a checkpoint with which the VM ends would take too long, as far as those tell that were made.
    fn foresee(&mut self) {
        let regular = self.config.checkpoint.every.is_some();
        let Some(work) = self.history.usual_work(self.resident(), regular) else { return };
        let takes = self.history.time_for(work);
        self.deadline.foreseen(takes).iter().for_each(|line| say(line));
    }

    /// Says how a checkpoint went; true if it is made. One that failed changes nothing, and `then` says what comes next.
    pub(super) fn checkpointed(
        &mut self,
        Finished { operation, in_store, made, image, .. }: Finished,
        then: &str,
    ) -> bool {
        self.writing = false;
        match made {
            Ok(done) => {
                self.origin.parent = Some(done.id);
                let incremental = image.as_ref().is_some_and(|image| image.manifest().is_incremental());
                self.history.made(done.written_bytes, incremental, Duration::from_micros(done.duration_us));
                let line = format!(
                    "checkpoint {}: {} MiB of RAM, paused {:.1} ms, durable after {:.1} ms",
                    done.dir.display(),
                    done.written_bytes >> 20,
                    done.pause_us as f64 / 1000.0,
                    done.duration_us as f64 / 1000.0,
                );
                // Whoever reads the line may ask for the next one.
                operation.done(done);
                say(&line);
                // Not before the line: the finisher's thread may be on this CPU, and busy with it for long.
                self.finisher.let_go(std::mem::replace(&mut self.base, image));
                if in_store {
                    self.prune();
                }
                true
            }
            Err(error) => {
                self.history.failed();
                if matches!(error, Error::Snapshot(ckvmm_snapshot::Error::Base { .. })) {
                    self.base = None;
                }
                let error = error.to_string();
                let line = format!("checkpoint: {}{then}", error.trim_start_matches("checkpoint: "));
                operation.fail(error);
                say(&line);
                false
            }
        }
    }

    /// The VM has ended: a checkpoint that is still being written becomes one, unless the VM's end was forced, or is
    /// now, or what the guest ran from is damaged.
    pub(super) fn finish_writing(&mut self, ended: &Result<ExitStatus>) {
        if !self.writing {
            return;
        }
        if self.gives_up || matches!(ended, Err(Error::Corrupt { .. })) {
            self.shared.operations().cancel_running();
        } else {
            say("the checkpoint is still being written; ask again to stop, and it is given up");
        }
        while self.writing {
            // This session holds a sender: there is always a next event, of the finisher if of nobody else.
            match self.events.recv() {
                Ok(Event::Checkpoint(finished)) => drop(self.checkpointed(*finished, "; the VM has ended")),
                Ok(event) => {
                    if ends_now(event) {
                        self.shared.operations().cancel_running();
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Has those removed that are one too many.
    fn prune(&self) {
        let Some(keep) = self.config.checkpoint.keep else { return };
        let name = self.config.name.clone();
        self.finisher.prune(self.store.clone(), keep as usize, self.origin.lineage, name);
    }
}
