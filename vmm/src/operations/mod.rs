//! The table of long operations (checkpoints) that the API shows.
//!
//! Invariants:
//! - at most one operation runs at a time: [`Operations::begin`] refuses a second one;
//! - a begun operation ends exactly once, done or failed: [`Running`] fails it when it is dropped unfinished;
//! - its beginning and its end are told to those who listen, in this order;
//! - at most `KEPT` operations are remembered, the running one always.
//!
//! Lock order: one mutex, held for a few instructions, nothing is called under it.

mod shown;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ckvmm_snapshot::Progress;
use jiff::Timestamp;

use crate::control::CommandError;
use crate::events::{Event, Events};

pub use shown::{CheckpointDone, Operation, OperationId, OperationState};

/// How many operations are remembered.
const KEPT: usize = 64;

/// Who asked for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A client of the API, who will want to read how it ended.
    Api,
    /// A signal: nobody waits.
    Signal,
}

enum End {
    Done(CheckpointDone),
    Failed(String),
}

/// What can do nothing else until an operation ends, be it made or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// The guest stands still.
    Guest,
    /// The VM, which ends with it.
    Vm,
}

struct Entry {
    id: OperationId,
    progress: Arc<Progress>,
    started: Timestamp,
    end: Option<(Timestamp, End)>,
    /// Somebody who asked through the API has not seen its end yet.
    awaited: bool,
    held: Option<Held>,
}

/// The operations of one VM.
pub struct Operations {
    entries: Mutex<VecDeque<Entry>>,
    counts: Mutex<Counts>,
    events: Events,
}

/// How operations ended since the VM began, for `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Checkpoints made.
    pub done: u64,
    /// Checkpoints that failed.
    pub failed: u64,
    /// The last one made.
    pub last: Option<CheckpointDone>,
}

impl Operations {
    /// None yet; `events` will be told of them.
    pub(crate) fn new(events: Events) -> Self {
        Operations { entries: Mutex::default(), counts: Mutex::default(), events }
    }

    /// Begins a checkpoint.
    ///
    /// # Errors
    /// [`CommandError::Conflict`] if one runs already.
    pub fn begin(self: &Arc<Self>, asker: Asker) -> Result<Running, CommandError> {
        let mut entries = self.entries();
        if let Some(running) = entries.iter().find(|e| e.end.is_none()) {
            let line =
                format!("checkpoint: one is being made already (operation {}); wait until it is done", running.id);
            return Err(CommandError::Conflict(line));
        }
        while entries.len() >= KEPT {
            entries.pop_front();
        }
        let id = OperationId::new();
        let progress = Arc::new(Progress::default());
        let awaited = asker == Asker::Api;
        let started = Timestamp::now();
        let entry = Entry { id, progress: progress.clone(), started, end: None, awaited, held: None };
        let begun = entry.show();
        entries.push_back(entry);
        drop(entries);
        self.events.tell(Event::Operation(begun));
        Ok(Running { operations: self.clone(), id, progress, ended: false })
    }

    /// One operation, if it is remembered.
    pub fn get(&self, id: OperationId) -> Option<Operation> {
        self.entries().iter().find(|e| e.id == id).map(Entry::show)
    }

    /// The operation that runs.
    pub fn running(&self) -> Option<Operation> {
        self.entries().iter().find(|e| e.end.is_none()).map(Entry::show)
    }

    /// Whether an operation runs.
    pub fn is_running(&self) -> bool {
        self.entries().iter().any(|e| e.end.is_none())
    }

    /// What the running operation holds.
    pub fn held(&self) -> Option<Held> {
        self.entries().iter().find(|e| e.end.is_none())?.held
    }

    /// Asks the running operation, if there is one, to end early.
    pub fn cancel_running(&self) {
        self.entries().iter().filter(|e| e.end.is_none()).for_each(|e| e.progress.cancel());
    }

    /// Asks a running operation to end early; it fails when it notices.
    ///
    /// # Errors
    /// `None` in place of an operation that is not known; [`CommandError::Conflict`] if it has ended.
    pub fn cancel(&self, id: OperationId) -> Option<Result<Operation, CommandError>> {
        let entries = self.entries();
        let entry = entries.iter().find(|e| e.id == id)?;
        Some(match &entry.end {
            None => {
                entry.progress.cancel();
                Ok(entry.show())
            }
            Some((_, End::Done(done))) => {
                let line = format!("operation {id}: it is done already; its checkpoint is {}", done.dir.display());
                Err(CommandError::Conflict(line))
            }
            Some((_, End::Failed(error))) => {
                Err(CommandError::Conflict(format!("operation {id}: it has ended already ({error})")))
            }
        })
    }

    /// Remembers that who asked for `id` has been told how it ended.
    pub(crate) fn told(&self, id: OperationId) {
        if let Some(entry) = self.entries().iter_mut().find(|e| e.id == id && e.end.is_some()) {
            entry.awaited = false;
        }
    }

    /// Whether somebody probably still waits to be told how an operation ended: who does not ask within `patience`
    /// of its end does not wait.
    pub(crate) fn somebody_waits(&self, patience: Duration) -> bool {
        let now = Timestamp::now();
        let recent = |at: Timestamp| now.duration_since(at).unsigned_abs() < patience;
        self.entries().iter().any(|e| e.awaited && e.end.as_ref().is_none_or(|(at, _)| recent(*at)))
    }

    /// How operations ended so far.
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    fn end(&self, id: OperationId, end: End) {
        {
            let mut counts = lock(&self.counts);
            match &end {
                End::Done(done) => {
                    counts.done += 1;
                    counts.last = Some(done.clone());
                }
                End::Failed(_) => counts.failed += 1,
            }
        }
        let ended = self.entries().iter_mut().find(|e| e.id == id).map(|entry| {
            entry.end = Some((Timestamp::now(), end));
            entry.show()
        });
        let Some(ended) = ended else { return };
        let made = ended.result.clone();
        self.events.tell(Event::Operation(ended));
        made.into_iter().for_each(|made| self.events.tell(Event::Checkpoint(made)));
    }

    fn entries(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        lock(&self.entries)
    }
}

/// A panic elsewhere leaves these tables whole: each change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    fn show(&self) -> Operation {
        let mut shown = Operation {
            id: self.id,
            kind: "checkpoint".into(),
            state: OperationState::Running,
            phase: None,
            done_bytes: self.progress.bytes_done(),
            total_bytes: self.progress.bytes_total(),
            started: self.started,
            finished: self.end.as_ref().map(|(at, _)| *at),
            result: None,
            error: None,
        };
        match &self.end {
            None => shown.phase = Some(self.progress.phase().as_str().to_owned()),
            Some((_, End::Done(done))) => {
                shown.state = OperationState::Done;
                shown.result = Some(done.clone());
            }
            Some((_, End::Failed(error))) => {
                shown.state = OperationState::Failed;
                shown.error = Some(error.clone());
            }
        }
        shown
    }
}

/// The right and the duty to end one operation.
pub struct Running {
    operations: Arc<Operations>,
    id: OperationId,
    progress: Arc<Progress>,
    ended: bool,
}

impl Running {
    /// The operation's id.
    #[must_use]
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// To be given to what does the work; it also carries the wish to cancel.
    #[must_use]
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// What it holds.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        self.operations.entries().iter().find(|e| e.id == self.id)?.held
    }

    /// Says what it holds from now on.
    pub fn hold(&self, held: Option<Held>) {
        if let Some(entry) = self.operations.entries().iter_mut().find(|e| e.id == self.id) {
            entry.held = held;
        }
    }

    /// Ends it: the checkpoint is durable.
    pub fn done(mut self, done: CheckpointDone) {
        self.ended = true;
        self.operations.end(self.id, End::Done(done));
    }

    /// Ends it with an error of one line.
    pub fn fail(mut self, error: impl Into<String>) {
        self.ended = true;
        self.operations.end(self.id, End::Failed(error.into()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let line = "checkpoint: the VM ended before it was made; restore the one before it";
            self.operations.end(self.id, End::Failed(line.into()));
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.id)
    }
}
