//! Chance that can be repeated: a test prints its seed, and takes it from the environment.

use std::{collections::hash_map::RandomState, env, hash::BuildHasher, thread, time::Duration};

/// Sets the seed, which else differs from run to run.
const SEED: &str = "CKVMM_SEED";

/// A sequence of numbers that follows from a seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded() -> Self {
        let seed = match env::var(SEED) {
            Ok(seed) => seed.parse().expect("CKVMM_SEED is a number"),
            Err(_) => RandomState::new().hash_one(0),
        };
        eprintln!("{SEED}={seed}");
        Random(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Lets up to `longest` pass, so that what comes next comes at a moment that nobody has chosen.
    pub(crate) fn wait(&mut self, longest: Duration) {
        thread::sleep(Duration::from_nanos(self.below(longest.as_nanos() as u64 + 1)));
    }
}
