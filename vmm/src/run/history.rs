//! What the checkpoints that a VM has made say of the next one: how much the guest changes, how fast it is written, how
//! long a checkpoint takes. Estimates, and pure.
//!
//! ```text
//! time = RAM to be read / READ_RATE + (RAM and disks to be written) / rate of the last one
//! ```

use std::time::{Duration, Instant};

/// RAM is read and digested at least so fast, bytes a second: a third of what one core of a small host does, or less.
const READ_RATE: u64 = 2 << 30;
/// What is written and flushed in a second before a checkpoint has told: what a disk of a cloud's cheaper sort does.
const RATE_BEFORE: u64 = 200 << 20;
/// Fewer bytes than this say nothing of how fast they are written: that is the time of a few fsyncs.
const TELLING_BYTES: u64 = 32 << 20;

/// What a checkpoint has to do, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Work {
    /// RAM that the guest has, all of which is looked at.
    pub(super) resident: u64,
    /// What of it is to be written.
    pub(super) ram: u64,
    /// What of disks is to be written.
    pub(super) disks: u64,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The cut that the next checkpoint's changes are counted from.
    cut: Option<Instant>,
    /// The cut of the checkpoint that is being made, and its work as far as it was known.
    begun: Option<(Instant, Work)>,
    /// Bytes of RAM that the guest changed between two cuts, the last two of which that is known, and the time between.
    changed: Option<(u64, Duration)>,
    /// Of disks, the same.
    disks: u64,
    rate: Option<u64>,
}

impl History {
    /// Of a VM that was restored `now`: what changes is counted from here.
    pub(super) fn restored(now: Instant) -> Self {
        History { cut: Some(now), ..History::default() }
    }

    /// A checkpoint begins.
    pub(super) fn begin(&mut self, now: Instant, work: Work) {
        self.begun = Some((now, work));
    }

    /// The one that began is made: it took so long, and wrote `ram` bytes of RAM; `incremental` if that is what has
    /// changed.
    pub(super) fn made(&mut self, ram: u64, incremental: bool, took: Duration) {
        let Some((cut, work)) = self.begun.take() else { return };
        let before = self.cut.replace(cut).filter(|_| incremental);
        self.changed = before.map(|before| (ram, cut.duration_since(before))).or(self.changed);
        self.disks = work.disks;
        let written = ram + work.disks;
        if written >= TELLING_BYTES {
            // However wrong the rest is: writing was not all of the time, and not none of it.
            let writing = took.saturating_sub(seconds(work.resident, READ_RATE)).max(took / 4);
            self.rate = Some((written as f64 / writing.as_secs_f64().max(0.001)) as u64);
        }
    }

    /// The one that began is not.
    pub(super) fn failed(&mut self) {
        self.begun = None;
    }

    /// How long it takes from `now` until a checkpoint is made, after the one that is being made if there is one.
    pub(super) fn time_to_stop(&self, now: Instant, resident: u64, disks: u64) -> Duration {
        let left = self.begun.map_or(Duration::ZERO, |(began, work)| {
            self.time_for(work).saturating_sub(now.saturating_duration_since(began))
        });
        left + self.time_for(self.work(now, resident, disks))
    }

    /// The work of a checkpoint that begins `now`.
    pub(super) fn work(&self, now: Instant, resident: u64, disks: u64) -> Work {
        let since = self.cut.map_or(Duration::ZERO, |cut| now.saturating_duration_since(cut));
        Work { resident, ram: self.changes_in(since, resident).unwrap_or(resident), disks }
    }

    /// The work of one that is made just before the next is due, as far as the last one tells; `None` if that is not
    /// yet known. Where none is due, all may have changed by then.
    pub(super) fn usual_work(&self, resident: u64, regular: bool) -> Option<Work> {
        let ram = match self.changed {
            Some((bytes, _)) => bytes.min(resident),
            None if regular => return None,
            None => resident,
        };
        Some(Work { resident, ram, disks: self.disks })
    }

    /// Bytes of RAM that the guest changes in `time`, at most `resident`: at least what it changed between the last two
    /// cuts, since nobody knows in what part of that time it did.
    pub(super) fn changes_in(&self, time: Duration, resident: u64) -> Option<u64> {
        let (bytes, between) = self.changed?;
        let times = (time.as_secs_f64() / between.as_secs_f64().max(0.001)).max(1.0);
        Some(((bytes as f64 * times) as u64).min(resident))
    }

    /// How long that work takes.
    pub(super) fn time_for(&self, work: Work) -> Duration {
        let rate = self.rate.unwrap_or(RATE_BEFORE);
        seconds(work.resident, READ_RATE) + seconds(work.ram.saturating_add(work.disks), rate)
    }
}

fn seconds(bytes: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const SECOND: Duration = Duration::from_secs(1);

    fn work(resident: u64, ram: u64, disks: u64) -> Work {
        Work { resident, ram, disks }
    }

    #[test]
    fn before_the_first_all_is_written_at_a_modest_rate() {
        let history = History::default();
        let first = history.work(Instant::now(), 2 * GIB, 200 * MIB);
        assert_eq!(first, work(2 * GIB, 2 * GIB, 200 * MIB));
        assert_eq!(history.time_for(first).as_millis(), 1000 + 10_240 + 1000);
        assert_eq!(history.usual_work(GIB, true), None, "the next one will tell");
        assert_eq!(history.usual_work(GIB, false), Some(work(GIB, GIB, 0)));
    }

    #[test]
    fn the_next_writes_what_changes_as_fast_as_the_last() {
        let (mut history, start) = (History::default(), Instant::now());
        history.begin(start, work(2 * GIB, 2 * GIB, 0));
        history.made(2 * GIB, false, 5 * SECOND);
        assert_eq!(history.work(start + SECOND, 2 * GIB, 0).ram, 2 * GIB, "what changes is not known yet");
        // one second to read, four to write: 512 MiB/s
        assert_eq!(history.time_for(work(0, GIB, 0)), 2 * SECOND);

        history.begin(start + 10 * SECOND, work(2 * GIB, 2 * GIB, 0));
        history.made(100 * MIB, true, 2 * SECOND);
        let after = |seconds: u64| history.work(start + Duration::from_secs(10 + seconds), 2 * GIB, 0).ram;
        assert_eq!([after(1), after(10), after(30), after(3000)], [100 * MIB, 100 * MIB, 300 * MIB, 2 * GIB]);
        assert_eq!(history.usual_work(2 * GIB, true), Some(work(2 * GIB, 100 * MIB, 0)));
        assert_eq!(history.usual_work(50 * MIB, true).unwrap().ram, 50 * MIB);
    }

    #[test]
    fn little_that_was_written_tells_nothing_of_the_rate() {
        let (mut history, start) = (History::restored(Instant::now()), Instant::now());
        history.begin(start, work(GIB, GIB, 0));
        history.made(MIB, true, 3 * SECOND);
        assert_eq!(history.time_for(work(0, 200 * MIB, 0)), SECOND);
        history.begin(start, work(0, 0, 63 * MIB));
        history.made(MIB, true, SECOND);
        assert_eq!(history.time_for(work(0, 0, 128 * MIB)), 2 * SECOND);
    }

    #[test]
    fn whoever_wants_to_stop_waits_for_the_one_that_is_being_made() {
        let (mut history, start) = (History::default(), Instant::now());
        let alone = history.time_to_stop(start, 0, 200 * MIB);
        assert_eq!(alone, SECOND);
        history.begin(start, work(0, 0, 2000 * MIB));
        assert_eq!(history.time_to_stop(start + 3 * SECOND, 0, 200 * MIB), 8 * SECOND);
        assert_eq!(history.time_to_stop(start + 60 * SECOND, 0, 200 * MIB), SECOND, "longer than was thought");
        history.failed();
        assert_eq!(history.time_to_stop(start + SECOND, 0, 200 * MIB), SECOND);
    }

    #[test]
    fn one_that_fails_changes_nothing() {
        let (mut history, start) = (History::restored(Instant::now()), Instant::now());
        history.begin(start, work(GIB, GIB, 0));
        assert_eq!((history.changed, history.rate), (None, None));
        history.begin(start + 9 * SECOND, work(GIB, GIB, 0));
        history.made(64 * MIB, true, SECOND);
        assert!(history.changed.unwrap().1 >= 9 * SECOND, "since the last that was made");
    }
}
