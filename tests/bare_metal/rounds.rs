//! Restored, run, checkpointed, killed, a thousand times, and memory is what the model says after each.

use std::{env, fs, path::PathBuf, time::Instant};

use ckvmm_tests::bare_metal::{self, Home};

use crate::{guest, picture};

/// Rounds of each protocol, and in the lab, whose processor is emulated.
const ROUNDS: u64 = 500;
const ROUNDS_IN_THE_LAB: u64 = 20;
/// Rounds between two boots.
const ROUNDS_A_LIFE: u64 = 100;
/// Memory of the lives, in their turn, with the arena's size and that of its hot part.
const SHAPES: [(&str, &str); 3] = [("16MiB", "mib=4"), ("32MiB", "mib=16 hot=4"), ("24MiB", "mib=8")];

/// How a round makes the guest go on before its checkpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is asked how far it is, and answers.
    Asked,
    /// The checkpoint is asked for before the guest runs: it comes as soon as it does.
    AtOnce,
    /// The guest does not run at all.
    Paused,
}

/// A life of one guest, through many processes.
struct Life {
    home: Home,
    image: PathBuf,
    steps: u64,
    advanced: u64,
}

impl Life {
    fn begin(protocol: &str, number: u64) -> Life {
        let home = Home::in_memory();
        let (memory, arena) = SHAPES[number as usize % SHAPES.len()];
        let seed = number * 1000 + protocol.len() as u64;
        let config = guest::config(protocol, memory, &format!("job=write seed={seed} {arena}"));
        let vm = home.boot(&config);
        let image = bare_metal::checkpoint(&vm);
        vm.kill9();
        let header = picture::check(&image);
        assert_eq!(header.seed, seed);
        Life { home, image, steps: header.steps, advanced: 0 }
    }

    fn round(&mut self, kind: Kind) {
        let more: &[&str] = if kind == Kind::Paused { &["--paused"] } else { &[] };
        let mut vm = guest::restore(&self.home, &self.image, more);
        let answered = if kind == Kind::Asked { guest::steps(&mut vm) } else { self.steps };
        assert!(answered >= self.steps, "the guest went back from {} steps to {answered}", self.steps);
        let image = bare_metal::checkpoint(&vm);
        vm.kill9();
        let header = picture::check(&image);
        let steps = header.steps;
        assert!(steps >= answered, "it answered that it has done {answered} steps and the image has {steps}");
        assert!(kind != Kind::Paused || steps == self.steps, "paused, and from {} steps to {steps}", self.steps);
        assert_eq!(header.backwards, 0, "the guest saw its time go back");
        self.advanced += u64::from(steps > self.steps);
        self.steps = steps;
        fs::remove_dir_all(std::mem::replace(&mut self.image, image)).expect("the image can be removed");
    }
}

fn rounds(protocol: &str) {
    if guest::skipped() {
        return;
    }
    let rounds = if env::var_os("CKVMM_LAB").is_some() { ROUNDS_IN_THE_LAB } else { ROUNDS };
    guest::keep_early_signals();
    let begun = Instant::now();
    for first in (0..rounds).step_by(ROUNDS_A_LIFE as usize) {
        let mut life = Life::begin(protocol, first / ROUNDS_A_LIFE);
        let number = ROUNDS_A_LIFE.min(rounds - first);
        for round in 0..number {
            let kinds = [Kind::Asked, Kind::AtOnce, Kind::AtOnce, Kind::Asked, Kind::Paused];
            life.round(kinds[round as usize % kinds.len()]);
        }
        assert!(life.advanced >= number * 2 / 5, "the guest went on in {} of {number} rounds", life.advanced);
    }
    eprintln!("{rounds} rounds ({protocol}) took {:.1} s", begun.elapsed().as_secs_f64());
}

#[test]
fn memory_is_as_the_model_says_after_500_rounds_linux() {
    rounds("linux");
}

#[test]
fn memory_is_as_the_model_says_after_500_rounds_pvh() {
    rounds("pvh");
}
