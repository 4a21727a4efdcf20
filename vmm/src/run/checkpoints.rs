//! When checkpoints are made, what they are called, and which are kept.

use std::{path::PathBuf, time::Instant};

use ckvmm_snapshot::{Entry, StagedImage, Store};

use super::{
    main_loop::{Life, Next},
    session::{Event, sweep},
};
use crate::{
    checkpoint::{self, Plan},
    cli::ExitStatus,
    error::Result,
    host::{signals::Asked, terminal::say},
    operations::{Asker, CheckpointDone, Running},
};

impl Life<'_> {
    /// Counts the time of `checkpoint.every` from now.
    pub(super) fn plan_next(&mut self) {
        self.due = self.session.config.checkpoint.every.map(|every| Instant::now() + every);
    }

    /// A checkpoint that a signal or the clock asks for, as the configuration says.
    pub(super) fn checkpoint_now(&mut self, stop: bool) -> Next {
        match self.session.shared.operations().begin(Asker::Signal) {
            Ok(operation) => return self.checkpoint(operation, None, stop),
            // One that the API asked for waits in the channel: this one comes after it.
            Err(_) if stop => drop(self.session.sender.send(Event::Signal(Asked::CheckpointAndStop))),
            Err(error) => say(&error.to_string()),
        }
        self.plan_next();
        Next::Continue
    }

    /// Makes a checkpoint and says how it went. One that fails changes nothing.
    pub(super) fn checkpoint(&mut self, operation: Running, dir: Option<PathBuf>, stop: bool) -> Next {
        let in_store = dir.is_none();
        let made = self.make_checkpoint(&operation, dir, stop);
        self.plan_next();
        match made {
            Ok(done) => {
                self.session.origin.parent = Some(done.id);
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
                if in_store {
                    self.prune();
                }
                if stop { Next::End(ExitStatus::Checkpointed) } else { Next::Continue }
            }
            Err(error) => {
                let error = error.to_string();
                let line = format!("checkpoint: {}; the guest goes on", error.trim_start_matches("checkpoint: "));
                operation.fail(error);
                say(&line);
                Next::Continue
            }
        }
    }

    fn make_checkpoint(&mut self, operation: &Running, dir: Option<PathBuf>, stop: bool) -> Result<CheckpointDone> {
        let session = &self.session;
        let staged = match dir {
            Some(dir) => {
                dir.parent().map(Store::new).iter().for_each(sweep);
                StagedImage::create(&dir)?
            }
            None => session.store.stage()?,
        };
        let plan = Plan {
            name: session.config.name.to_string(),
            lineage: session.origin.lineage,
            parent: session.origin.parent,
            config: session.config.to_value(),
            stay_paused: stop,
        };
        let progress = operation.progress();
        // What was restored from a damaged image is not to live on under new digests.
        let sound = || match session.verification.wait(|| progress.is_cancelled())? {
            true => Ok(()),
            false => Err(ckvmm_snapshot::Error::Cancelled.into()),
        };
        checkpoint::checkpoint(&mut self.machine, staged, &plan, progress, sound)
    }

    /// Removes the oldest numbered checkpoints of this VM's life beyond `checkpoint.keep`. That one cannot be removed
    /// is no reason to disturb the guest.
    fn prune(&self) {
        let Some(keep) = self.session.config.checkpoint.keep else { return };
        if let Err(error) = self.remove_all_but(keep as usize) {
            say(&format!("old checkpoints cannot be removed: {error}"));
        }
    }

    fn remove_all_but(&self, keep: usize) -> Result<()> {
        let store = &self.session.store;
        let is_ours = |entry: &Entry| {
            let lineage = entry.manifest.as_ref().map(|manifest| manifest.lineage);
            entry.number.is_some() && lineage.is_ok_and(|lineage| lineage == self.session.origin.lineage)
        };
        let ours: Vec<_> = store.list()?.into_iter().filter(is_ours).collect();
        for old in &ours[..ours.len().saturating_sub(keep)] {
            let name = old.path.file_name().unwrap_or_default().to_string_lossy();
            store.remove(&name)?;
        }
        Ok(())
    }
}
