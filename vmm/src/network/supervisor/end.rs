//! The end of VMs, and of a supervisor that fails: what it has started ends before it does.

use std::time::{Duration, Instant};

use ckvmm_net::Node;
use nix::sys::signal::Signal;

use super::{Event, Heard, Seat, Supervisor};

/// How long processes that were killed may take to end.
const END_TIME: Duration = Duration::from_secs(10);

impl Supervisor {
    /// Keeps what is heard of a member's end.
    pub(super) fn note_end(&mut self, node: Node, heard: &Heard) {
        // While VMs are being started there are places without one.
        let Some(process) = self.seats.get_mut(node.index()).and_then(|seat| seat.process.as_mut()) else { return };
        match heard {
            Heard::Said(_) => {}
            Heard::Silence => process.silent = true,
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
