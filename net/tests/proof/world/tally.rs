//! What happened in runs of the simulator, to see that they try what they are to try.

use std::collections::BTreeMap;
use std::ops::AddAssign;

/// What must happen now and then.
const ALL: [&str; 12] = [
    "frames delivered",
    "packets held",
    "frames logged",
    "frames dropped",
    "frames unreachable",
    "packets fenced",
    "cuts committed",
    "cuts aborted",
    "frames in checkpoints",
    "restores",
    "guests off",
    "VMMs lost",
];

/// How often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn count(&mut self, what: &'static str, times: u64) {
        debug_assert!(ALL.contains(&what), "{what}");
        *self.0.entry(what).or_default() += times;
    }

    pub(crate) fn assert_all_happened(&self) {
        let never = ALL.iter().find(|what| self.0.get(*what).is_none_or(|times| *times == 0));
        assert_eq!(never, None, "never happened");
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        other.0.into_iter().for_each(|(what, times)| self.count(what, times));
    }
}
