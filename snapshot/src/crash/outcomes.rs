//! Which outcomes of a power loss are looked at: the extremes, each change of a name alone and missing alone, every
//! subset while they are few, and more by chance.

use super::content::Data;
use super::model::{Model, Outcome};

/// Up to so many changes of names are lost in every combination.
const ALL_SUBSETS: usize = 4;

/// A sequence of numbers that follows from a seed (SplitMix64).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    /// Another sequence for each `number`.
    pub(super) fn fork(&self, number: u64) -> Self {
        Random(Random(self.0 ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93)).next())
    }
}

/// What may become of a disk that is as `model` has it: about `by_chance` outcomes more than those that are always among
/// them.
pub(super) fn of(model: &Model, by_chance: usize, random: &mut Random) -> Vec<Outcome> {
    let changes = model.not_durable();
    let all = |_: usize| true;
    let none = |_: usize| false;
    let mut outcomes = Vec::new();
    let mut add = |kept: &dyn Fn(usize) -> bool, data| {
        let lost = changes.iter().enumerate().filter(|(index, _)| !kept(*index)).map(|(_, number)| *number);
        outcomes.push(Outcome { lost: lost.collect(), data });
    };
    for data in [Data::Nothing, Data::All, Data::Lengths] {
        add(&all, data);
        add(&none, data);
    }
    for _ in 0..by_chance.div_ceil(6) {
        add(&all, Data::Torn(random.next()));
        add(&all, Data::Mixed(random.next()));
        add(&none, Data::Mixed(random.next()));
    }
    for missing in 0..changes.len() {
        add(&|index| index != missing, Data::All);
        add(&|index| index == missing, Data::All);
        add(&|index| index <= missing, Data::Mixed(random.next()));
    }
    let subsets: Vec<u64> = match changes.len() {
        few @ ..=ALL_SUBSETS => (0..1 << few).collect(),
        _ => (0..by_chance / 4).map(|_| random.next()).collect(),
    };
    for subset in subsets {
        let kept = move |index: usize| subset >> (index % 64) & 1 == 1;
        add(&kept, Data::All);
        add(&kept, Data::Mixed(random.next()));
    }
    outcomes
}
