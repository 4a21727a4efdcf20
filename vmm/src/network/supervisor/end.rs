//! The end of VMs, and of a supervisor that fails: what it has started ends before it does.

use std::process::ExitStatus as Ended;
use std::time::{Duration, Instant};

use ckvmm_net::Node;
use nix::sys::signal::Signal;

use super::{Event, Seat, Supervisor};

/// How long processes that were killed may take to end.
const END_TIME: Duration = Duration::from_secs(10);

impl Supervisor {
    /// A member's process has ended.
    pub(super) fn ended(&mut self, node: Node, ended: Ended) {
        // While VMs are being started there are places without one.
        if let Some(process) = self.seats.get_mut(node.index()).and_then(|seat| seat.process.as_mut()) {
            process.ended = Some(ended);
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
                Ok(Event::Ended(node, ended)) => self.ended(node, ended),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}
