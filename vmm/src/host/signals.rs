//! Signals become events of the main loop. They are blocked in every thread and read by one.

use std::{
    io, process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

use super::terminal;
use crate::error::{Error, Result};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGUSR1: a checkpoint.
    Checkpoint,
    /// SIGUSR2: a checkpoint, then the end.
    CheckpointAndStop,
    /// SIGTERM, SIGINT, SIGHUP: the power button.
    PowerOff,
}

fn meaning(signal: Signal) -> Option<Asked> {
    match signal {
        Signal::SIGUSR1 => Some(Asked::Checkpoint),
        Signal::SIGUSR2 => Some(Asked::CheckpointAndStop),
        Signal::SIGTERM | Signal::SIGINT | Signal::SIGHUP => Some(Asked::PowerOff),
        _ => None,
    }
}

/// Signals of this process, which from now on do only what is said here. Until there is a main loop to take them
/// (disks are being copied, an image is verified) those that ask for checkpoints are kept, and one that asks for the end
/// ends the process.
pub struct Signals(Arc<Mutex<Taker>>);

enum Taker {
    /// Nobody yet: what was asked so far, each at most once.
    Nobody(Vec<Asked>),
    Main(Box<dyn Fn(Asked) + Send>),
}

impl Signals {
    /// Blocks the signals for this thread and all that it starts. To be called before there are others.
    ///
    /// # Errors
    /// If the system refuses a descriptor or a thread.
    pub fn block() -> Result<Self> {
        let failed = |error: nix::Error| Error::os("taking signals")(io::Error::from(error));
        let mut set = SigSet::empty();
        for signal in Signal::iterator().filter(|signal| meaning(*signal).is_some()) {
            set.add(signal);
        }
        set.thread_block().map_err(failed)?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).map_err(failed)?;
        let taker = Arc::new(Mutex::new(Taker::Nobody(Vec::new())));
        let signals = Signals(Arc::clone(&taker));
        let read = move || {
            while let Ok(info) = descriptor.read_signal() {
                let signal = info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok());
                if let Some(asked) = signal.and_then(meaning) {
                    lock(&taker).take(asked);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(read).map_err(Error::os("starting a thread"))?;
        Ok(signals)
    }

    /// From now on each signal goes to `receive`, those first that came already.
    pub fn deliver(self, receive: impl Fn(Asked) + Send + 'static) {
        let mut taker = lock(&self.0);
        if let Taker::Nobody(kept) = &*taker {
            kept.iter().for_each(|asked| receive(*asked));
        }
        *taker = Taker::Main(Box::new(receive));
    }
}

impl Taker {
    fn take(&mut self, asked: Asked) {
        match self {
            Taker::Nobody(_) if asked == Asked::PowerOff => end_the_start(),
            Taker::Nobody(kept) if kept.contains(&asked) => {}
            Taker::Nobody(kept) => kept.push(asked),
            Taker::Main(receive) => receive(asked),
        }
    }
}

fn lock(taker: &Mutex<Taker>) -> MutexGuard<'_, Taker> {
    taker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a VM that does not run yet.
fn end_the_start() -> ! {
    terminal::say("asked to stop while the VM was still starting; nothing of it is lost");
    exit_now(1)
}

/// Ends the process at once, with the terminal as it was.
fn exit_now(status: i32) -> ! {
    terminal::restore();
    process::exit(status)
}
