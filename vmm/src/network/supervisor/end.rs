//! The end of VMs, and of a supervisor that fails: what it has started ends before it does.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process;
use std::time::{Duration, Instant};

use ckvmm_net::Node;
use nix::sys::signal::Signal;

use super::{Event, Heard, Seat, Supervisor};
use crate::cli::ExitStatus;

/// How long processes that were killed may take to end.
const END_TIME: Duration = Duration::from_secs(10);

/// How a member's process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    With(u8),
    /// By this signal.
    Killed(Signal),
    /// It is not known: it was another's child and has left no note of it, or could not be waited for.
    Unknown,
}

impl Ended {
    /// A child that was waited for.
    pub(super) fn of(child: io::Result<process::ExitStatus>) -> Ended {
        let Ok(status) = child else { return Ended::Unknown };
        let signal = status.signal().and_then(|signal| Signal::try_from(signal).ok());
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        // By a signal without a name, at worst.
        code.map(Ended::With).or(signal.map(Ended::Killed)).unwrap_or(Ended::With(ExitStatus::Failed.code()))
    }

    /// Its status; one that was killed has failed.
    pub(super) fn status(self) -> Option<u8> {
        match self {
            Ended::With(status) => Some(status),
            Ended::Killed(_) => Some(ExitStatus::Failed.code()),
            Ended::Unknown => None,
        }
    }
}

impl Supervisor {
    /// Keeps what is heard of a member's end.
    pub(super) fn note_end(&mut self, node: Node, heard: &Heard) {
        // While VMs are being started there are places without one.
        let Some(process) = self.seats.get_mut(node.index()).and_then(|seat| seat.process.as_mut()) else { return };
        match heard {
            Heard::Said(_) => {}
            Heard::Silence | Heard::Unreadable => process.silent = true,
            Heard::End(ended) => process.ended = Some(*ended),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Only when it fails: what it has started goes with it, and when all has gone its names are free.
        self.signal_all(Signal::SIGKILL);
        let until = Instant::now() + END_TIME;
        while self.seats.iter().any(Seat::runs) {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Event::Member(life, node, heard)) if life == self.incarnation => self.note_end(node, &heard),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}
