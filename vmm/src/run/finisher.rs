//! The thread on which checkpoints are finished while the guest runs, one at a time, in the order they were begun, and
//! old ones removed.

use std::{
    any::Any,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use ckvmm_snapshot::{Image, Progress, Store};
use uuid::Uuid;

use super::{session::Event, verification::Verification};
use crate::{
    checkpoint::Begun,
    config::Id,
    error::{Error, Result},
    host::{heap, terminal::say},
    network::member::Log,
    operations::{CheckpointDone, Running},
};

/// A checkpoint whose last part is still to be done.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) begun: Begun,
    pub(super) operation: Running,
    /// It is to be one of the numbered ones.
    pub(super) in_store: bool,
    /// Of what the guest runs from.
    pub(super) verification: Verification,
    /// Over which comes what was under way to this card of a network.
    pub(super) log: Option<(Id, Receiver<Log>)>,
}

/// A checkpoint that is made, or not.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) operation: Running,
    pub(super) in_store: bool,
    pub(super) made: Result<CheckpointDone>,
    /// For the next one to build on.
    pub(super) image: Option<Arc<Image>>,
    /// Huge pages of the guest's may have been split for it.
    pub(super) splits: bool,
}

impl Finished {
    /// One that came to nothing.
    pub(super) fn failed(operation: Running, in_store: bool, error: Error) -> Self {
        Finished { operation, in_store, made: Err(error), image: None, splits: false }
    }
}

impl Unfinished {
    /// Writes what is still to be written, and commits.
    pub(super) fn finish(self) -> Finished {
        let Unfinished { begun, operation, in_store, verification, log } = self;
        let (progress, splits) = (operation.progress(), begun.splits_huge_pages());
        let under_way = || log.map(|(nic, log)| Ok((nic, log_of(&log)?))).transpose();
        let made = begun.finish(progress, under_way, || is_sound(&verification, progress));
        // Without it the next one is a full one.
        let image = made.as_ref().ok().and_then(|done| Image::open(&done.dir).ok());
        let image = image.map(|image| Arc::new(image.into_base()));
        Finished { operation, in_store, made, image, splits }
    }
}

/// The frames that were under way, once all are known; the cut may come to nothing before.
fn log_of(log: &Receiver<Log>) -> Result<Vec<u8>> {
    let log = log.recv().map_err(|_| ckvmm_snapshot::Error::Cancelled)?;
    Ok(ckvmm_net::log::encode(&log))
}

/// What was restored from a damaged image is not to live on under new digests.
fn is_sound(verification: &Verification, progress: &Progress) -> Result<()> {
    match verification.wait(|| progress.is_cancelled())? {
        true => Ok(()),
        false => Err(ckvmm_snapshot::Error::Cancelled.into()),
    }
}

/// What the thread does besides the VM.
#[derive(Debug)]
enum Work {
    Finish(Box<Unfinished>),
    Prune { store: Store, keep: usize, lineage: Uuid, name: Id },
    LetGo(Box<dyn Any + Send>),
}

/// The thread. When this goes, its work is done.
#[derive(Debug)]
pub(super) struct Finisher {
    /// `None` at the end.
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Finisher {
    /// Starts the thread, which tells `events` of each checkpoint that it has finished.
    pub(super) fn start(events: Sender<Event>) -> Result<Self> {
        let (sender, work) = mpsc::channel();
        let run = move || {
            let mut next = work.recv();
            while let Ok(this) = next {
                match this {
                    // A main loop that has ended needs no word of it.
                    Work::Finish(unfinished) => drop(events.send(Event::Checkpoint(Box::new(unfinished.finish())))),
                    Work::Prune { store, keep, lineage, name } => prune(&store, keep, lineage, &name),
                    Work::LetGo(files) => drop(files),
                }
                next = work.try_recv().or_else(|_| {
                    heap::give_back();
                    work.recv()
                });
            }
        };
        let thread = thread::Builder::new().name("checkpoint".into()).spawn(run);
        Ok(Finisher { work: Some(sender), thread: Some(thread.map_err(Error::os("starting a thread"))?) })
    }

    /// Hands one over.
    pub(super) fn finish(&self, unfinished: Unfinished) {
        self.hand_over(Work::Finish(Box::new(unfinished)));
    }

    /// Removes the oldest numbered checkpoints beyond `keep` that the VM `name` has made in its life `lineage`. To give
    /// back the room of a large one takes time, for which nobody waits.
    pub(super) fn prune(&self, store: Store, keep: usize, lineage: Uuid, name: Id) {
        self.hand_over(Work::Prune { store, keep, lineage, name });
    }

    /// Closes files of an image. It may have been removed: then the room that it took is given back by this.
    pub(super) fn let_go(&self, files: impl Any + Send) {
        self.hand_over(Work::LetGo(Box::new(files)));
    }

    fn hand_over(&self, work: Work) {
        // The thread lives as long as this does: it ends only when the channel is closed.
        let thread = self.work.as_ref().expect("it is there until the end");
        thread.send(work).expect("the thread does not panic");
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        self.work = None;
        // It panics nowhere.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A clone has the lineage of whoever it was cloned from, and another name: what it has made is its own. That one
/// cannot be removed is no reason to disturb the guest.
fn prune(store: &Store, keep: usize, lineage: Uuid, name: &str) {
    if let Err(error) = store.prune(keep, |manifest| manifest.lineage == lineage && manifest.name == name) {
        say(&format!("old checkpoints cannot be removed: {error}"));
    }
}
