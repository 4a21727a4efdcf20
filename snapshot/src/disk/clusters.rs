//! Which clusters of a disk are captured. Pure: who asks does the copying.

use std::ops::Range;

use crate::limits::CLUSTER_BYTES;

/// Every cluster is open, claimed by one thread, or captured.
#[derive(Debug)]
pub(super) struct Clusters {
    disk_bytes: u64,
    captured: Bits,
    claimed: Bits,
}

/// What somebody who needs a range captured has to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: all of it is captured.
    Done,
    /// Wait: another thread has the first cluster that is not.
    Wait,
    /// Capture these bytes of the disk, then say so with [`Clusters::captured`].
    Capture(Range<u64>),
}

impl Clusters {
    /// None of a disk of `disk_bytes` is captured. The memory for this is untouched, so that it costs no time.
    pub(super) fn new(disk_bytes: u64) -> Self {
        let count = disk_bytes.div_ceil(CLUSTER_BYTES);
        Clusters { disk_bytes, captured: Bits::new(count), claimed: Bits::new(count) }
    }

    /// Claims the first clusters of `bytes` that are open, at most `most` bytes of them.
    pub(super) fn claim(&mut self, bytes: &Range<u64>, most: u64) -> Next {
        let end = bytes.end.min(self.disk_bytes).div_ceil(CLUSTER_BYTES);
        let Some(first) = self.captured.first_clear(bytes.start / CLUSTER_BYTES..end) else { return Next::Done };
        if self.claimed.get(first) {
            return Next::Wait;
        }
        let stop = end.min(first + (most / CLUSTER_BYTES).max(1));
        let last = (first..stop).find(|&cluster| self.captured.get(cluster) || self.claimed.get(cluster));
        let run = first..last.unwrap_or(stop);
        run.clone().for_each(|cluster| self.claimed.set(cluster));
        Next::Capture(run.start * CLUSTER_BYTES..(run.end * CLUSTER_BYTES).min(self.disk_bytes))
    }

    /// What was claimed is captured.
    pub(super) fn captured(&mut self, bytes: &Range<u64>) {
        (bytes.start / CLUSTER_BYTES..bytes.end.div_ceil(CLUSTER_BYTES)).for_each(|cluster| self.captured.set(cluster));
    }
}

#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: u64) -> Self {
        Bits(vec![0; count.div_ceil(64) as usize])
    }

    fn get(&self, index: u64) -> bool {
        self.0[(index / 64) as usize] >> (index % 64) & 1 != 0
    }

    fn set(&mut self, index: u64) {
        self.0[(index / 64) as usize] |= 1 << (index % 64);
    }

    fn first_clear(&self, range: Range<u64>) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let word = self.0[(at / 64) as usize] >> (at % 64);
            let ones = u64::from(word.trailing_ones());
            if ones < 64 - at % 64 {
                return Some(at + ones).filter(|at| *at < range.end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_claimed_in_runs_around_what_others_have() {
        let mut clusters = Clusters::new(10 * CLUSTER_BYTES - 5);
        let all = 0..u64::MAX;
        assert_eq!(clusters.claim(&(CLUSTER_BYTES + 1..CLUSTER_BYTES + 2), u64::MAX), Next::Capture(65536..131_072));
        assert_eq!(clusters.claim(&all, u64::MAX), Next::Capture(0..CLUSTER_BYTES));
        clusters.captured(&(0..CLUSTER_BYTES));
        assert_eq!(clusters.claim(&all, u64::MAX), Next::Wait);
        clusters.captured(&(CLUSTER_BYTES..2 * CLUSTER_BYTES));
        assert_eq!(clusters.claim(&all, 3 * CLUSTER_BYTES), Next::Capture(2 * CLUSTER_BYTES..5 * CLUSTER_BYTES));
        clusters.captured(&(2 * CLUSTER_BYTES..5 * CLUSTER_BYTES));
        let rest = 5 * CLUSTER_BYTES..10 * CLUSTER_BYTES - 5;
        assert_eq!(clusters.claim(&all, u64::MAX), Next::Capture(rest.clone()), "the last cluster is a short one");
        clusters.captured(&rest);
        assert_eq!(clusters.claim(&all, u64::MAX), Next::Done);
        assert_eq!(clusters.claim(&(3..3), 1), Next::Done, "an empty range needs nothing");
    }

    proptest! {
        /// Whatever ranges are asked for, each cluster is captured once, and a range is done only when all of it is.
        #[test]
        fn each_cluster_once(count in 1..300_u64, asked in prop::collection::vec((0..300_u64, 0..300_u64, 1..90_u64), 1..40)) {
            let mut clusters = Clusters::new(count * CLUSTER_BYTES);
            let mut captured = BTreeSet::new();
            for (start, length, most) in asked {
                let range = start * CLUSTER_BYTES..(start + length) * CLUSTER_BYTES;
                loop {
                    match clusters.claim(&range, most * CLUSTER_BYTES) {
                        Next::Done => break,
                        Next::Wait => prop_assert!(false, "nobody else claims"),
                        Next::Capture(bytes) => {
                            prop_assert!(bytes.end - bytes.start <= most * CLUSTER_BYTES);
                            for cluster in bytes.start / CLUSTER_BYTES..bytes.end / CLUSTER_BYTES {
                                prop_assert!(captured.insert(cluster), "{cluster} twice");
                            }
                            clusters.captured(&bytes);
                        }
                    }
                }
                prop_assert!((start..(start + length).min(count)).all(|cluster| captured.contains(&cluster)));
            }
        }
    }
}
