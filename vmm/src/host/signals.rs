//! Signals become events of the main loop. They are blocked in every thread and read by one.

use std::{io, process, thread};

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

/// Signals that wait for somebody to take them: from now on none of them ends the process.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals for this thread and all that it starts. To be called before there are others.
    ///
    /// # Errors
    /// If the system refuses a descriptor.
    pub fn block() -> Result<Self> {
        let failed = |error: nix::Error| Error::os("taking signals")(io::Error::from(error));
        let mut set = SigSet::empty();
        for signal in Signal::iterator().filter(|signal| meaning(*signal).is_some()) {
            set.add(signal);
        }
        set.thread_block().map_err(failed)?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC).map(Signals).map_err(failed)
    }

    /// Starts the thread that hands each signal to `receive`.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn deliver(self, receive: impl Fn(Asked) + Send + 'static) -> Result<()> {
        let read = move || {
            while let Ok(info) = self.0.read_signal() {
                let signal = info.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok());
                if let Some(asked) = signal.and_then(meaning) {
                    receive(asked);
                }
            }
        };
        thread::Builder::new().name("signals".into()).spawn(read).map_err(Error::os("starting a thread"))?;
        Ok(())
    }
}

/// Ends the process at once, with the terminal as it was.
pub fn exit_now(status: i32) -> ! {
    terminal::restore();
    process::exit(status)
}
