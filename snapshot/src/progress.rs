//! How far a long operation is, and whether it is still wanted: atomics shared between the thread that works and
//! those that watch. Relaxed order suffices, since nothing else is published through them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::error::{Error, Result};

/// What is being worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Nothing has begun.
    Waiting = 0,
    /// Guest RAM is being written.
    Memory = 1,
    /// Disks are being captured.
    Disks = 2,
    /// An image is being compared with its digests.
    Verify = 3,
    /// Captured disks are being read for their digests.
    Digests = 4,
}

impl Phase {
    /// A lower-case word for the API and the terminal.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Memory => "memory",
            Phase::Disks => "disks",
            Phase::Verify => "verify",
            Phase::Digests => "digests",
        }
    }
}

/// Progress and cancellation of one operation. Share it in an `Arc`.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    /// Nothing done, nothing cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is being worked on.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            1 => Phase::Memory,
            2 => Phase::Disks,
            3 => Phase::Verify,
            4 => Phase::Digests,
            _ => Phase::Waiting,
        }
    }

    /// Bytes of this phase that are done.
    pub fn bytes_done(&self) -> u64 {
        self.done.load(Relaxed)
    }

    /// Bytes of this phase in all.
    pub fn bytes_total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Asks the operation to end soon with [`Error::Cancelled`]. What is committed stays.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// True once [`Progress::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    /// Begins a phase of `total` bytes.
    pub(crate) fn begin(&self, phase: Phase, total: u64) {
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
        self.phase.store(phase as u8, Relaxed);
    }

    /// Counts `bytes` as done; an error if the operation was cancelled.
    pub(crate) fn advance(&self, bytes: u64) -> Result<()> {
        self.done.fetch_add(bytes, Relaxed);
        self.goes_on()
    }

    /// Says that `bytes` in all are done; an error if the operation was cancelled.
    pub(crate) fn reach(&self, bytes: u64) -> Result<()> {
        self.done.store(bytes, Relaxed);
        self.goes_on()
    }

    fn goes_on(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_stops() {
        let progress = Progress::new();
        assert_eq!(progress.phase(), Phase::Waiting);
        progress.begin(Phase::Memory, 10);
        progress.advance(4).expect("not cancelled");
        progress.advance(2).expect("not cancelled");
        assert_eq!((progress.phase(), progress.bytes_done(), progress.bytes_total()), (Phase::Memory, 6, 10));
        progress.cancel();
        assert!(matches!(progress.advance(1), Err(Error::Cancelled)));
        progress.begin(Phase::Disks, 1);
        assert_eq!(progress.bytes_done(), 0);
        assert!(progress.is_cancelled(), "a new phase does not revive a cancelled operation");
    }

    #[test]
    fn every_phase_survives_its_number() {
        for phase in [Phase::Waiting, Phase::Memory, Phase::Disks, Phase::Verify, Phase::Digests] {
            let progress = Progress::new();
            progress.begin(phase, 0);
            assert_eq!(progress.phase(), phase);
        }
    }
}
