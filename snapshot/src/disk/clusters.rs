//! Which clusters of a disk are captured, or need not be. Pure: who asks does the copying.

use std::ops::Range;
use std::sync::Arc;

use crate::limits::CLUSTER_BYTES;

/// Every cluster is open, claimed by one thread, or captured; or it is not wanted, which is as good as captured.
#[derive(Debug)]
pub(super) struct Clusters {
    disk_bytes: u64,
    /// All, if none are said.
    wanted: Option<Arc<Bits>>,
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
        Clusters { disk_bytes, wanted: None, captured: Bits::of_disk(disk_bytes), claimed: Bits::of_disk(disk_bytes) }
    }

    /// Only these clusters are to be captured.
    pub(super) fn want(&mut self, wanted: Arc<Bits>) {
        self.wanted = Some(wanted);
    }

    /// Claims the first clusters of `bytes` that are open, at most `most` bytes of them.
    pub(super) fn claim(&mut self, bytes: &Range<u64>, most: u64) -> Next {
        let end = bytes.end.min(self.disk_bytes).div_ceil(CLUSTER_BYTES);
        let Some(first) = self.first_open(bytes.start / CLUSTER_BYTES..end) else { return Next::Done };
        if self.claimed.get(first) {
            return Next::Wait;
        }
        let stop = end.min(first + (most / CLUSTER_BYTES).max(1));
        let last = (first..stop).find(|&cluster| !self.is_open(cluster) || self.claimed.get(cluster));
        let run = first..last.unwrap_or(stop);
        run.clone().for_each(|cluster| self.claimed.set(cluster));
        Next::Capture(run.start * CLUSTER_BYTES..(run.end * CLUSTER_BYTES).min(self.disk_bytes))
    }

    fn is_open(&self, cluster: u64) -> bool {
        !self.captured.get(cluster) && self.wanted.as_ref().is_none_or(|wanted| wanted.get(cluster))
    }

    fn first_open(&self, range: Range<u64>) -> Option<u64> {
        let mut at = range.start;
        while at < range.end {
            let index = (at / 64) as usize;
            let open = !self.captured.0[index] & self.wanted.as_ref().map_or(u64::MAX, |wanted| wanted.0[index]);
            match u64::from((open >> (at % 64)).trailing_zeros()) {
                64 => at = (at / 64 + 1) * 64,
                ahead => return Some(at + ahead).filter(|at| *at < range.end),
            }
        }
        None
    }

    /// What was claimed is captured.
    pub(super) fn captured(&mut self, bytes: &Range<u64>) {
        (bytes.start / CLUSTER_BYTES..bytes.end.div_ceil(CLUSTER_BYTES)).for_each(|cluster| self.captured.set(cluster));
    }
}

/// A bit for each cluster of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// All clear. The memory is untouched, so that it costs no time.
    pub(super) fn of_disk(bytes: u64) -> Self {
        Bits(vec![0; bytes.div_ceil(CLUSTER_BYTES).div_ceil(64) as usize])
    }

    pub(super) fn get(&self, cluster: u64) -> bool {
        self.0[(cluster / 64) as usize] >> (cluster % 64) & 1 != 0
    }

    pub(super) fn set(&mut self, cluster: u64) {
        self.0[(cluster / 64) as usize] |= 1 << (cluster % 64);
    }

    /// Sets those of the clusters in which these bytes lie, as far as the disk goes.
    pub(super) fn set_bytes(&mut self, bytes: &Range<u64>) {
        let end = bytes.end.div_ceil(CLUSTER_BYTES).min(self.0.len() as u64 * 64);
        (bytes.start / CLUSTER_BYTES..end).for_each(|cluster| self.set(cluster));
    }

    /// How many are set.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Sets those that are set in `other`, of a disk of the same length.
    pub(super) fn add(&mut self, other: &Bits) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
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
        /// Whatever ranges are asked for, each wanted cluster is captured once, no other, and a range is done only when
        /// all of it is.
        #[test]
        fn each_cluster_once(
            count in 1..300_u64,
            wanted in prop::option::of(prop::collection::btree_set(0..300_u64, 0..200)),
            asked in prop::collection::vec((0..300_u64, 0..300_u64, 1..90_u64), 1..40),
        ) {
            let mut clusters = Clusters::new(count * CLUSTER_BYTES);
            let is_wanted = |cluster: &u64| wanted.as_ref().is_none_or(|wanted| wanted.contains(cluster));
            if wanted.is_some() {
                let mut bits = Bits::of_disk(count * CLUSTER_BYTES);
                (0..count).filter(is_wanted).for_each(|cluster| bits.set(cluster));
                clusters.want(Arc::new(bits));
            }
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
                                prop_assert!(is_wanted(&cluster), "{cluster} is not wanted");
                            }
                            clusters.captured(&bytes);
                        }
                    }
                }
                let mut wanted = (start..(start + length).min(count)).filter(is_wanted);
                prop_assert!(wanted.all(|cluster| captured.contains(&cluster)));
            }
        }
    }
}
