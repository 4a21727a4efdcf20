//! What becomes of a cut: the manifest that makes it a checkpoint, and what is said of it.

use ckvmm_net::coordinator::{Decision, Input, Outcome};
use ckvmm_net::{Colour, Node};
use jiff::Timestamp;
use nix::sys::signal::Signal;

use super::pruner::Pruner;
use super::{Part, Seat, Supervisor};
use crate::error::{Error, Result};
use crate::host::terminal::say;
use crate::network::control::Answer;
use crate::network::manifest::{self, Manifest, NodeEntry, PartEntry};

impl Supervisor {
    /// Begins the checkpoint with which the network ends, if one is wanted and can begin.
    pub(super) fn stop_if_it_can(&mut self) {
        if self.stop_wanted && self.coordinator.may_begin() && !self.stopped {
            (self.stop_wanted, self.then_stop) = (false, true);
            self.feed(Input::Requested);
        }
    }

    /// A checkpoint that nobody waits for.
    pub(super) fn request(&mut self) {
        // Who is deposed is told so.
        match self.coordinator.may_begin() || self.coordinator.is_deposed() {
            _ if self.stopped => {}
            true => self.feed(Input::Requested),
            false => say("checkpoint: another one is being made, or VMs are still starting; this makes no second one"),
        }
    }

    /// Writes the manifest, unless somebody has decided already.
    pub(super) fn commit(&self, cut: Colour, parts: &[(Node, Part)]) -> Result<Decision> {
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
            name: self.terms.name.clone(),
            lineage: self.lineage,
            incarnation: self.incarnation,
            cut: cut.0,
            created: Timestamp::now(),
            checkpoint: self.terms.checkpoint.clone(),
            on_failure: self.terms.on_failure,
            max_restores: self.terms.max_restores,
            job: self.terms.job.clone(),
            offloads: self.terms.offloads,
            nodes: self.seats.iter().zip(0..).map(entry).collect::<Result<_>>()?,
        };
        self.store.commit(cut, &manifest)
    }

    /// Has old checkpoints removed.
    pub(super) fn prune(&mut self) {
        let Some(keep) = self.terms.checkpoint.keep else { return };
        if self.pruner.is_none() {
            let started = Pruner::start(self.store.path().into(), self.terms.name.clone(), keep as usize);
            let failed = |error| say(&format!("old checkpoints cannot be removed: starting a thread: {error}"));
            self.pruner = started.map_err(failed).ok();
        }
        self.pruner.iter().for_each(Pruner::prune);
    }

    /// Waits until what is old is removed.
    pub(super) fn finish_pruning(&mut self) {
        if let Some(pruner) = self.pruner.take() {
            pruner.finish();
        }
    }

    /// Says how a checkpoint went.
    pub(super) fn done(&mut self, cut: Colour, outcome: Outcome) {
        let dir = self.store.directory(cut);
        let answer: Answer = match outcome {
            Outcome::Committed => {
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
}
