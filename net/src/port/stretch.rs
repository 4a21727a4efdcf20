//! A stretch of wire in front of a link's end, for tests: packets take their time on it, or stay.
//!
//! Invariants:
//! - First in, first out: no packet overtakes another, whatever is drawn for it; none is lost, and the end comes last.
//! - A full stretch is not read into, so the sender waits as on any link that is full.
//! - Pure: it is told the time. Which delays are drawn follows from the seed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Most packets on a stretch.
const PACKETS_MAX: usize = 256;

/// What goes wrong with a link, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Packets take their time: each as long as is drawn for it, or until the one before it is there.
    Delay {
        /// No less than this.
        least: Duration,
        /// And no more than this.
        most: Duration,
        /// What is drawn follows from it.
        seed: u64,
    },
    /// Packets stay on their way until this end has another fault, or none.
    Hold,
    /// The connection ends, and what is on its way is lost.
    Break,
}

impl Fault {
    /// Nothing goes wrong.
    pub const NONE: Fault = Fault::Delay { least: Duration::ZERO, most: Duration::ZERO, seed: 0 };
}

/// The stretch. `P` is what travels on it.
pub(super) struct Stretch<P> {
    /// Each with the time at which it is at the other end.
    packets: VecDeque<(Instant, P)>,
    least: Duration,
    most: Duration,
    random: u64,
    holds: bool,
}

impl<P> Stretch<P> {
    /// One on which packets take no time.
    pub(super) fn new() -> Self {
        let zero = Duration::ZERO;
        Stretch { packets: VecDeque::new(), least: zero, most: zero, random: 0, holds: false }
    }

    /// What becomes of packets from now on. Those that are on it keep their times.
    pub(super) fn set(&mut self, fault: Fault) {
        self.holds = fault == Fault::Hold;
        if let Fault::Delay { least, most, seed } = fault {
            (self.least, self.most, self.random) = (least, most.max(least), seed);
        }
    }

    /// Whether it takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.packets.len() >= PACKETS_MAX
    }

    /// Whether a link is the same without it.
    pub(super) fn is_needless(&self) -> bool {
        self.packets.is_empty() && self.most.is_zero() && !self.holds
    }

    /// A packet has come to its near end.
    pub(super) fn put(&mut self, now: Instant, packet: P) {
        let at = now + self.draw();
        let at = self.packets.back().map_or(at, |(before, _)| at.max(*before));
        self.packets.push_back((at, packet));
    }

    /// The next packet that is at its far end.
    pub(super) fn take(&mut self, now: Instant) -> Option<P> {
        let there = self.packets.front().is_some_and(|(at, _)| !self.holds && *at <= now);
        if there { self.packets.pop_front().map(|(_, packet)| packet) } else { None }
    }

    /// When the next packet will be there, if none is yet.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        self.packets.front().map(|(at, _)| *at).filter(|at| !self.holds && *at > now)
    }

    fn draw(&mut self) -> Duration {
        let span = (self.most - self.least).as_nanos() as u64;
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.least + Duration::from_nanos((mixed ^ mixed >> 31) % (span + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    proptest! {
        /// Whatever is set in between, and whenever it is looked at.
        #[test]
        fn packets_come_in_order_once_and_in_time(
            seed: u64,
            steps in prop::collection::vec((0..60_u32, prop_oneof![0..20_u32, 100..103_u32]), 1..200),
        ) {
            let begin = Instant::now();
            let (mut stretch, mut now, mut sent, mut came) = (Stretch::new(), begin, Vec::new(), Vec::new());
            for (wait, step) in steps {
                now += MS * wait;
                match step {
                    100 => stretch.set(Fault::Hold),
                    101 => stretch.set(Fault::NONE),
                    102 => stretch.set(Fault::Delay { least: MS * 5, most: MS * 50, seed }),
                    _ if stretch.is_full() => {}
                    _ => {
                        stretch.put(now, (sent.len(), now));
                        sent.push(now);
                    }
                }
                while let Some((number, at)) = stretch.take(now) {
                    prop_assert!(!stretch.holds);
                    prop_assert!(at <= now);
                    came.push(number);
                }
                let next = stretch.next(now);
                prop_assert!(next.is_none_or(|next| next > now && next <= now + MS * 50));
            }
            stretch.set(Fault::NONE);
            came.extend(std::iter::from_fn(|| stretch.take(now + MS * 50)).map(|(number, _)| number));
            prop_assert_eq!(came, (0..sent.len()).collect::<Vec<_>>());
            prop_assert!(stretch.is_needless());
        }
    }

    #[test]
    fn a_packet_takes_its_time_and_another_seed_is_another_wire() {
        let times = |seed| {
            let begin = Instant::now();
            let mut stretch = Stretch::new();
            stretch.set(Fault::Delay { least: MS * 10, most: MS * 50, seed });
            let time = |_| {
                stretch.put(begin, ());
                let at = stretch.next(begin).unwrap();
                assert!(stretch.take(at - Duration::from_nanos(1)).is_none());
                stretch.take(at).unwrap();
                at - begin
            };
            (0..100).map(time).collect::<Vec<_>>()
        };
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
        assert!(times(3).iter().all(|time| (MS * 10..=MS * 50).contains(time)));
        assert!(times(3).iter().max() > times(3).iter().min());
    }

    #[test]
    fn a_stretch_is_full_in_the_end() {
        let (mut stretch, now) = (Stretch::new(), Instant::now());
        stretch.set(Fault::Hold);
        let mut puts = 0;
        while !stretch.is_full() {
            stretch.put(now, ());
            puts += 1;
        }
        assert_eq!(puts, PACKETS_MAX);
        assert_eq!(stretch.take(now + MS), None);
        assert!(!stretch.is_needless());
    }
}
