//! Whether the guest takes frames: whoever sends waits for one that does, and not for one that does not.
//!
//! Invariant: pure, it is told the time. That a guest has taken none says something only if it could have: not while its
//! machine stood still, nor when who looks comes so late that it may have had no CPU either.

use std::time::{Duration, Instant};

use super::PATIENCE;

#[derive(Debug, Default)]
pub(super) struct Guest {
    takes: bool,
    /// It has taken one since somebody began to look.
    took: bool,
    /// Since when somebody looks.
    watched: Option<Instant>,
    stands: bool,
}

impl Guest {
    pub(super) fn takes(&self) -> bool {
        self.takes
    }

    /// Its machine stands still.
    pub(super) fn stands(&self) -> bool {
        self.stands
    }

    /// It has taken a frame.
    pub(super) fn took(&mut self) {
        (self.takes, self.took) = (true, true);
    }

    /// Its machine stands still.
    pub(super) fn stand(&mut self) {
        self.stands = true;
    }

    /// Its machine runs; `true` if it stood still before. It has time to take frames then.
    pub(super) fn run(&mut self) -> bool {
        let stood = self.stands;
        if stood {
            *self = Guest { takes: true, ..Guest::default() };
        }
        stood
    }

    /// Frames wait for it; `true` if somebody is to look after [`PATIENCE`] whether it has taken some.
    pub(super) fn watch(&mut self, now: Instant) -> bool {
        let begins = self.watched.is_none();
        if begins {
            (self.watched, self.took) = (Some(now), false);
        }
        begins
    }

    /// Somebody looks.
    pub(super) fn look(&mut self, now: Instant) {
        if let Some(since) = self.watched.take() {
            self.takes &= self.took || is_late(now.saturating_duration_since(since));
        }
    }
}

fn is_late(passed: Duration) -> bool {
    passed > PATIENCE * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> (Guest, Instant) {
        let (mut guest, now) = (Guest::default(), Instant::now());
        guest.took();
        assert!(guest.watch(now) && !guest.watch(now), "once");
        (guest, now)
    }

    #[test]
    fn who_takes_nothing_for_a_while_takes_nothing() {
        let (mut guest, now) = watched();
        guest.took();
        guest.look(now + PATIENCE);
        assert!(guest.takes() && guest.watch(now));
        guest.look(now + PATIENCE);
        assert!(!guest.takes());
        guest.look(now + PATIENCE * 9);
        assert!(!guest.takes(), "who looks late does not change that");
        guest.took();
        assert!(guest.takes());
    }

    #[test]
    fn who_could_take_nothing_is_looked_at_again() {
        let (mut guest, now) = watched();
        guest.look(now + PATIENCE * 3);
        assert!(guest.takes() && guest.watch(now), "who looked came late");
        guest.stand();
        assert!(guest.run() && !guest.run());
        guest.look(now + PATIENCE);
        assert!(guest.takes(), "of before it stood still");
        assert!(guest.watch(now));
        guest.look(now + PATIENCE);
        assert!(!guest.takes());
    }
}
