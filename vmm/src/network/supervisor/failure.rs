//! A VM is gone, or a link between two: what becomes of the others.
//!
//! Invariant: two copies of a network never run at once. Every VM of a life has ended before the next life begins, and
//! what members of an older life have said is not listened to.

use std::fs;
use std::path::Path;

use ckvmm_net::coordinator::{Input, Member};
use ckvmm_net::{Colour, Node};
use nix::sys::signal::Signal;
use uuid::Uuid;

use super::Supervisor;
use super::end::Ended;
use super::start::{Beginning, OUTPUT};
use crate::config::Id;
use crate::error::{Error, Result};
use crate::host::terminal::say;
use crate::network::failure::Remedy;
use crate::network::member::LeftNote;

impl Supervisor {
    /// A member is gone: without a word, unless its guest has left before.
    pub(super) fn gone(&mut self, node: Node) -> Result<()> {
        if self.stopped || self.goes_back || self.coordinator.members()[node.index()] != Member::On {
            return Ok(());
        }
        let name = &self.seats[node.index()].name;
        // Its word of that may have gone to a supervisor before this one.
        if LeftNote::has_left(&self.state.join(&**name)) {
            self.feed(Input::Left(node, Colour(u64::MAX)));
            return Ok(());
        }
        if self.less_ns.is_none() && self.failures.restores() == 0 && !self.ending {
            let reason = match self.ended(node) {
                Some(Ended::Killed(signal)) => format!("its VM was killed by {signal} at its start; begin again"),
                _ => last_words(&self.state, name),
            };
            return Err(Error::Node { name: name.to_string(), reason });
        }
        self.lost(node)
    }

    /// A member is gone without a word.
    pub(super) fn lost(&mut self, node: Node) -> Result<()> {
        let name = self.seats[node.index()].name.clone();
        if self.ending {
            // It was to end.
            self.feed(Input::Lost(node));
            return Ok(());
        }
        let what = match self.ended(node) {
            Some(Ended::With(status)) => {
                format!("its VM is gone (status {status}: {})", last_words(&self.state, &name))
            }
            Some(Ended::Killed(signal)) => format!("its VM is gone (killed by {signal})"),
            Some(Ended::Unknown) => "its VM is gone".into(),
            None if self.seats[node.index()].runs() => {
                "its VM cannot be understood, as one of another version of ckvmm".into()
            }
            None => "its VM is gone".into(),
        };
        self.remedy(&name, &what, "the others run on")?;
        // Whoever waits for a checkpoint is told.
        self.feed(Input::Lost(node));
        Ok(())
    }

    fn ended(&self, node: Node) -> Option<Ended> {
        self.seats[node.index()].process.as_ref()?.ended
    }

    /// A link is given up by `node`, and frames on it are lost: no cut will be whole any more. Both ends may say so.
    pub(super) fn link_broken(&mut self, node: Node, peer: Node) -> Result<()> {
        let both_run = [node, peer].iter().all(|end| self.coordinator.members().get(end.index()) == Some(&Member::On));
        let pair = (node.min(peer), node.max(peer));
        if self.stopped || self.goes_back || self.ending || !both_run || !self.broken.insert(pair) {
            return Ok(());
        }
        let (name, what) = (
            self.seats[pair.0.index()].name.clone(),
            format!("its link to {} is broken", self.seats[pair.1.index()].name),
        );
        self.remedy(&name, &what, "all run on without it, and make no more checkpoints")?;
        if self.goes_back {
            self.feed(Input::Lost(node));
        }
        Ok(())
    }

    /// `what` has happened to the node `name`: does what net.json says of failures, and says so.
    fn remedy(&mut self, name: &Id, what: &str, run_on: &str) -> Result<()> {
        match self.failures.another(self.last.as_deref()) {
            Remedy::RunOn => {
                let mend = match &self.last {
                    Some(last) => {
                        format!("`ckvmm network restore {}` goes back to the last checkpoint", last.display())
                    }
                    None => "there is no checkpoint to go back to".into(),
                };
                say(&format!("{name}: {what}, {run_on}; {mend}"));
            }
            Remedy::GoBack(last) => {
                let (nth, most) = (self.failures.restores(), self.failures.max_restores());
                let dir = last.display();
                say(&format!("{name}: {what}; all go back to {dir} (restore {nth} of at most {most})"));
                self.goes_back = true;
                self.signal_all(Signal::SIGKILL);
            }
            Remedy::End(reason) => {
                return Err(Error::Node { name: name.to_string(), reason: format!("{what}, and {reason}") });
            }
        }
        Ok(())
    }

    /// Begins another life from the last checkpoint. All VMs have ended.
    pub(super) fn go_back(&mut self) -> anyhow::Result<()> {
        let Some(last) = self.last.clone() else { return Ok(()) };
        // A new life sweeps what another hand would be removing.
        self.finish_pruning();
        let path = self.store.path().to_path_buf();
        let what = "the checkpoints cannot be listed; mend the file system";
        self.store.begin_life().map_err(|source| Error::Io { path, what, source })?;
        for seat in &self.seats {
            // What a guest has written since is not part of the network's past any more.
            let disks = self.state.join(&*seat.name).join("disks");
            match fs::remove_dir_all(&disks) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    let what = "a guest's disks of before cannot be removed; mend the file system";
                    return Err(Error::Io { path: disks, what, source }.into());
                }
                _ => {}
            }
        }
        let beginning = Beginning::of_checkpoint(&last, &self.state, self.terms.set.clone(), self.terms.clock)?;
        self.incarnation = self.incarnation.max(beginning.incarnation) + 1;
        (self.lineage, self.instant) = (Uuid::new_v4(), beginning.instant);
        Ok(self.begin(beginning.nodes)?)
    }
}

/// Why a member has ended, as it said itself.
fn last_words(state: &Path, node: &str) -> String {
    let path = state.join(node).join(OUTPUT);
    let text = fs::read_to_string(&path).unwrap_or_default();
    match text.lines().last() {
        Some(line) => line.trim_start_matches("ckvmm: ").to_owned(),
        None => format!("it said nothing in {}", path.display()),
    }
}
