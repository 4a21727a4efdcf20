//! Whether a checkpoint with which the VM ends is made in time. Whoever asks for it, a batch scheduler say, waits for
//! `checkpoint.stop_deadline` and then kills. It is too late to do something about it when he asks, so a checkpoint that
//! shows it coming says so. Pure.

use std::time::Duration;

use crate::cli::output::time;

/// What is said of it, and when.
#[derive(Debug)]
pub(super) struct Deadline {
    limit: Duration,
    /// It was said, and has been true since.
    warned: bool,
}

impl Deadline {
    pub(super) fn new(limit: Duration) -> Self {
        Deadline { limit, warned: false }
    }

    /// The checkpoint with which the VM ends has been asked for, and will take so long.
    pub(super) fn asked(&self, takes: Duration) -> Option<String> {
        let line = || {
            format!(
                "checkpoint: this one will take about {}, more than \"checkpoint.stop_deadline\" ({}): if the VM is killed \
                 before, the one before it is the last; give it more time if that is possible",
                shown(takes),
                shown(self.limit)
            )
        };
        (takes > self.limit).then(line)
    }

    /// If it were asked for it would take so long: a line, unless that was said already.
    pub(super) fn foreseen(&mut self, takes: Duration) -> Option<String> {
        let before = std::mem::replace(&mut self.warned, takes > self.limit);
        let line = || {
            format!(
                "checkpoint: a checkpoint and stop would take about {}, more than \"checkpoint.stop_deadline\" ({}); \
                 checkpoint more often (\"checkpoint.every\") so that less has changed, name a faster directory, or ask for \
                 more time and set the deadline to that",
                shown(takes),
                shown(self.limit)
            )
        };
        (self.warned && !before).then(line)
    }
}

fn shown(duration: Duration) -> String {
    time(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_fits_is_not_worth_a_word() {
        let mut deadline = Deadline::new(30 * SECOND);
        assert_eq!(deadline.asked(30 * SECOND), None);
        assert_eq!(deadline.foreseen(30 * SECOND), None);
    }

    #[test]
    fn what_does_not_fit_is_said_when_asked_and_once_before() {
        let mut deadline = Deadline::new(30 * SECOND);
        let line = deadline.foreseen(45 * SECOND).unwrap();
        assert!(line.contains("about 45") && line.contains("(30"), "{line}");
        assert_eq!(deadline.foreseen(50 * SECOND), None, "known already");
        assert_eq!(deadline.foreseen(10 * SECOND), None);
        assert!(deadline.foreseen(31 * SECOND).is_some(), "it fitted meanwhile");
        for _ in 0..2 {
            assert!(deadline.asked(45 * SECOND).unwrap().contains("about 45"));
        }
    }
}
