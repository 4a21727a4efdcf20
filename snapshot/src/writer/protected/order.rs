//! In what order chunks are copied, and when what is copied is unprotected.
//!
//! To unprotect interrupts the guest's CPUs, each time. So what lies together is unprotected together. Who writes there
//! before waits, if for no copy; so it is at once for what the guest wrote to while it was last copied.

use std::mem;
use std::ops::Range;

/// So much, or more by less than a chunk, is unprotected together, in bytes: an eighth of the interruptions is left.
const TOGETHER: usize = 16 << 20;

/// The numbers of chunks, in the order in which they are copied.
#[derive(Default)]
pub(in super::super) struct Order {
    pub(in super::super) chunks: Vec<usize>,
    /// To so many of them, the first, the guest wrote while they were last copied.
    pub(in super::super) habits: usize,
}

/// The memory that was copied last and is protected still.
#[derive(Debug, Default)]
pub(super) struct Copied(Range<usize>);

impl Copied {
    /// Adds what was just copied. Returns what is to be unprotected: this, too, if it is to be `now`.
    pub(super) fn add(&mut self, memory: &Range<usize>, now: bool) -> impl Iterator<Item = Range<usize>> + use<> {
        let apart = self.0.end != memory.start;
        let before = apart.then(|| mem::replace(&mut self.0, memory.start..memory.start));
        self.0.end = memory.end;
        let due = now || self.0.len() >= TOGETHER;
        let with_it = due.then(|| mem::replace(&mut self.0, memory.end..memory.end));
        [before, with_it].into_iter().flatten().filter(|memory| !memory.is_empty())
    }

    /// Returns what is left.
    pub(super) fn finish(self) -> Option<Range<usize>> {
        Some(self.0).filter(|memory| !memory.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(start: usize, end: usize) -> Range<usize> {
        start << 20..end << 20
    }

    fn added(copied: &mut Copied, memory: Range<usize>, now: bool) -> Vec<Range<usize>> {
        copied.add(&memory, now).collect()
    }

    #[test]
    fn what_lies_together_is_unprotected_together() {
        let mut copied = Copied::default();
        for start in (8..22).step_by(2) {
            assert_eq!(added(&mut copied, mib(start, start + 2), false), []);
        }
        assert_eq!(added(&mut copied, mib(22, 24), false), [mib(8, 24)], "it is enough");
        assert_eq!(added(&mut copied, mib(24, 26), false), []);
        assert_eq!(added(&mut copied, mib(40, 42), false), [mib(24, 26)], "it lies elsewhere");
        assert_eq!(copied.finish(), Some(mib(40, 42)));
        assert_eq!(Copied::default().finish(), None);
    }

    #[test]
    fn what_the_guest_will_write_to_is_unprotected_at_once() {
        let mut copied = Copied::default();
        assert_eq!(added(&mut copied, mib(8, 10), true), [mib(8, 10)]);
        assert_eq!(added(&mut copied, mib(10, 12), false), []);
        assert_eq!(added(&mut copied, mib(2, 4), true), [mib(10, 12), mib(2, 4)]);
        assert_eq!(copied.finish(), None);
    }
}
