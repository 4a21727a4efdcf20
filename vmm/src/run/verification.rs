//! The comparison of an image with its digests while the guest runs from it.
//!
//! Invariant: nothing that came of an image is called good before all of the image has been compared: no checkpoint is
//! committed, and no guest's power-off ends the VM with status 0. Else damage would live on under new digests.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender},
    },
    thread,
    time::Duration,
};

use ckvmm_snapshot::{Image, Progress};

use super::session::Event;
use crate::{
    cli::ExitStatus,
    control::{Command, Request},
    error::{Error, Result},
    host::{heap, priority, signals::Asked, terminal::say},
};

/// How often somebody who waits looks whether he is still to wait.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// For how long a restored VM has the CPUs to itself. However low its priority, from a thread that computes already the
/// scheduler takes the CPU only at its next tick, for which a vCPU that is to run for the first time would wait: 4 ms at
/// 250 Hz. It serves a VM that is restored alone: one of a network waits for the others, which may take longer.
const HEAD_START: Duration = Duration::from_millis(50);

/// How the comparison stands. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Verification(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` while it goes on; what is wrong, once it is known.
    outcome: Mutex<Option<Result<(), String>>>,
    changed: Condvar,
}

impl Verification {
    /// Nothing is to be compared, or all has been.
    pub(super) fn done() -> Self {
        Verification(Arc::new(Inner { outcome: Mutex::new(Some(Ok(()))), changed: Condvar::new() }))
    }

    /// Compares `image` on a thread of its own; damage becomes an event at once, and `progress` says how far it is.
    pub(super) fn begin(image: Arc<Image>, progress: Arc<Progress>, events: Sender<Event>) -> Result<Self> {
        let begun = Verification(Arc::new(Inner { outcome: Mutex::new(None), changed: Condvar::new() }));
        let verification = begun.clone();
        let verify = move || {
            priority::stand_back();
            thread::sleep(HEAD_START);
            let outcome = image.verify(&progress).and_then(|()| image.sync());
            let outcome = outcome.map_err(|error| format!("{error}; the guest runs from it and is stopped"));
            if let Err(line) = &outcome {
                // A main loop that has ended needs no bad news.
                drop(events.send(Event::Corrupt(line.clone())));
            }
            // The states that were restored, for one, are free now.
            heap::give_back();
            *verification.lock() = Some(outcome);
            verification.0.changed.notify_all();
        };
        thread::Builder::new().name("verify".into()).spawn(verify).map_err(Error::os("starting a thread"))?;
        Ok(begun)
    }

    /// Waits for the end of the comparison, at most until `gives_up` says so: then `Ok(false)`.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub(super) fn wait(&self, gives_up: impl Fn() -> bool) -> Result<bool> {
        let mut outcome = self.lock();
        loop {
            match &*outcome {
                Some(Ok(())) => return Ok(true),
                Some(Err(line)) => return Err(Error::Corrupt { line: line.clone() }),
                None if gives_up() => return Ok(false),
                None => {}
            }
            let waited = self.0.changed.wait_timeout(outcome, LOOK_EVERY);
            outcome = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the VM's end means once all is compared: a guest that powered off or crashed may have done so for the
    /// damage. Whoever does not want to wait says so as he does to a running VM.
    ///
    /// # Errors
    /// [`Error::Corrupt`], or what the VM ended with.
    pub(super) fn judge(&self, ended: Result<ExitStatus>, events: &Receiver<Event>) -> Result<ExitStatus> {
        match ended {
            Ok(ExitStatus::Success | ExitStatus::GuestCrashed) | Err(Error::Guest { .. }) => {}
            other => return other,
        }
        if !self.wait(|| end_is_asked_for(events))? {
            say(
                "the checkpoint that the guest ran from was not compared with its digests to the end; see ckvmm verify",
            );
            return Ok(ExitStatus::Failed);
        }
        ended
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<(), String>>> {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether somebody asks for the end at once.
fn end_is_asked_for(events: &Receiver<Event>) -> bool {
    events.try_iter().any(ends_now)
}

/// Whether this event asks for the end at once.
pub(super) fn ends_now(event: Event) -> bool {
    match event {
        Event::Leave | Event::Signal(Asked::PowerOff) => true,
        Event::Request(Request { command: Command::PowerOff { force: true }, reply }) => {
            reply.send(Ok(()));
            true
        }
        Event::Request(_) | Event::Signal(_) | Event::Machine(..) | Event::Corrupt(_) => false,
        Event::Checkpoint(_) | Event::Network(_) => false,
    }
}
