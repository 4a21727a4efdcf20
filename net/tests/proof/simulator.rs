//! Very many runs of networks of two to eight nodes, each in an order of events that follows from a seed.
//!
//! Time is virtual: in each tick one step of one party is drawn, as often as that party is fast, and happens if it can.
//! Parties differ in speed by up to a thousandfold, and change it, so that a link may be slower than a whole checkpoint.
//! Whatever may go wrong goes wrong at any moment. In the end all becomes calm, and every frame must have come; then
//! everything is killed and restored once more, and again every frame must come.
//!
//! A run that fails prints its seed and the command that repeats it, step by step.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use ckvmm_net::cut::Limits;
use ckvmm_net::{Node, Route};

use crate::mutants::Mutant;
use crate::oracle;
use crate::random::Random;
use crate::world::{Action, Budget, Plan, Tally, World};

/// Runs, unless `CKVMM_RUNS` says another number.
const RUNS: u64 = 100_000;
/// Ticks of a run before all becomes calm.
const TICKS_MAX: u64 = 6_000;
/// Ticks from one change of speeds to the next.
const WEATHER_TICKS: u64 = 400;
/// Coordinators that may exist at once.
const SEATS: usize = 2;

/// What can be drawn, and how often it is.
struct Lots {
    actions: Vec<Action>,
    /// For each, its weight and those of all before it.
    sums: Vec<u64>,
}

impl Lots {
    fn new(plan: &Plan, random: &mut Random) -> Lots {
        let mut world = World::new(plan);
        let seat = world.seats[0].clone();
        world.seats = vec![seat; SEATS];
        let mut actions = Vec::new();
        world.all_actions(plan, &mut actions);
        let mut lots = Lots { sums: vec![0; actions.len()], actions };
        lots.change(random);
        lots
    }

    /// Draws the speed of everything.
    fn change(&mut self, random: &mut Random) {
        let mut sum = 0;
        for (action, place) in self.actions.iter().zip(&mut self.sums) {
            sum += match action {
                Action::Send(_) | Action::Deliver(_) => random.one_of(&[0, 300, 1000, 1000]),
                Action::Wire(..) | Action::Arrive(..) => random.one_of(&[1, 30, 1000, 1000]),
                Action::Order(..) | Action::Mail(..) => random.one_of(&[10, 300, 1000]),
                Action::TakeCut(_) | Action::Write(_) => random.one_of(&[10, 100, 1000]),
                Action::Errand(_) | Action::Answer(_) | Action::Leave(_) | Action::HangUp(_) => 300,
                Action::Request(_) => 100,
                Action::FailCut(_) | Action::FailWrite(_) | Action::FailErrand(..) => 20,
                Action::Deadline(_) => 3,
                Action::PowerOff(_) | Action::Lose(_) | Action::Die(_) | Action::Usurp | Action::Kill => 3,
                Action::Break(..) => 1,
            };
            *place = sum;
        }
    }

    fn draw(&self, random: &mut Random) -> Action {
        let drawn = random.below(self.sums[self.sums.len() - 1]);
        self.actions[self.sums.partition_point(|sum| *sum <= drawn)]
    }
}

fn plan(random: &mut Random) -> Plan {
    let nodes = random.one_of(&[2, 2, 2, 3, 3, 3, 4, 4, 5, 8]);
    let frames = 2 + random.below(15);
    let route = |random: &mut Random, me: u16| match random.below(u64::from(nodes)) as u16 {
        to if to == me => Route::Everyone,
        to => Route::To(Node(to)),
    };
    let scripts = (0..nodes).map(|me| (0..frames).map(|_| route(random, me)).collect()).collect();
    let some = |random: &mut Random, most: u64| if random.once_in(2) { random.below(most + 1) as u8 } else { 0 };
    let budget = Budget {
        cuts: 1 + random.below(6) as u8,
        cut_failures: some(random, 2),
        writer_failures: some(random, 2),
        coordinator_deaths: some(random, 2),
        usurpations: some(random, 1),
        deadlines: some(random, 2),
        store_failures: some(random, 2),
        losses: if random.once_in(6) { 1 } else { 0 },
        kills: some(random, 3),
        power_offs: if random.once_in(6) { 1 } else { 0 },
        breaks: if random.once_in(10) { 1 } else { 0 },
    };
    let limits = Limits {
        slots: random.one_of(&[1, 2, 4]),
        pending_bytes: random.one_of(&[2, 8, 1000, 1000, 1000]),
        log_bytes: random.one_of(&[3, 1000, 1000, 1000]),
    };
    Plan { scripts, wire: random.one_of(&[1, 3, 10]), guests_wait: true, limits, budget, mutant: None, aim: |_| true }
}

/// One run. Returns what happened, or what was wrong.
fn run(seed: u64, mutant: Option<Mutant>, say: bool) -> Result<Tally, &'static str> {
    let mut random = Random::new(seed);
    let plan = Plan { mutant, ..plan(&mut random) };
    let mut lots = Lots::new(&plan, &mut random);
    let mut world = World::new(&plan);
    world.tally = Some(Tally::default());
    if say {
        println!("{plan:?}");
    }
    for tick in 1..=TICKS_MAX {
        let action = lots.draw(&mut random);
        step(&plan, &mut world, action, say)?;
        if tick % WEATHER_TICKS == 0 {
            lots.change(&mut random);
            if world.left.cuts == 0 && oracle::is_at_rest(&plan, &world) {
                break;
            }
        }
    }
    calm(&plan, &mut world, &lots, say)?;
    world.left.kills = 1;
    step(&plan, &mut world, Action::Kill, say)?;
    calm(&plan, &mut world, &lots, say)?;
    Ok(world.tally.expect("it was put there"))
}

fn step(plan: &Plan, world: &mut World, action: Action, say: bool) -> Result<(), &'static str> {
    if !world.can(plan, action) {
        return Ok(());
    }
    if say {
        println!("{action:?}");
    }
    world.step(plan, action);
    if oracle::held_without_cut(world) {
        return Err("a packet is held, and no cut is to be taken");
    }
    world.wrong.map_or(Ok(()), Err)
}

/// Nothing goes wrong any more, and all that can happen does.
fn calm(plan: &Plan, world: &mut World, lots: &Lots, say: bool) -> Result<(), &'static str> {
    world.left = Budget { cuts: world.left.cuts, deadlines: u8::MAX, ..Budget::default() };
    let happens = |world: &World, action: &Action| world.can(plan, *action);
    // Only time ends a cut for which somebody waits in vain, and only where nothing else happens.
    let (late, other): (Vec<_>, Vec<_>) = lots.actions.iter().partition(|action| matches!(action, Action::Deadline(_)));
    while let Some(first) = other.iter().chain(&late).find(|action| happens(world, action)) {
        step(plan, world, *first, say)?;
        for action in &other {
            while happens(world, action) {
                step(plan, world, *action, say)?;
            }
        }
    }
    if oracle::is_at_rest(plan, world) { Ok(()) } else { Err("nothing goes on, and not all frames have come") }
}

/// The value of a variable of the environment that is a number.
fn number(variable: &str) -> Option<u64> {
    Some(std::env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable}: not a number; give one")))
}

/// Says what is needed to see it again.
fn failed(seed: u64, what: &str) -> ! {
    panic!(
        "seed {seed}: {what}; again, step by step: \
         CKVMM_SEED={seed} cargo test -p ckvmm-net --test proof very_many_runs -- --nocapture"
    );
}

fn run_or_fail(seed: u64, say: bool) -> Tally {
    match catch_unwind(AssertUnwindSafe(|| run(seed, None, say))) {
        Ok(Ok(tally)) => tally,
        Ok(Err(what)) => failed(seed, what),
        Err(_) => failed(seed, "a panic"),
    }
}

#[test]
fn no_frame_is_lost_doubled_or_mixed_up_in_very_many_runs() {
    if let Some(seed) = number("CKVMM_SEED") {
        println!("{:?}", run_or_fail(seed, true));
        return;
    }
    let (runs, started, next) = (number("CKVMM_RUNS").unwrap_or(RUNS), Instant::now(), AtomicU64::new(0));
    let work = || {
        let mut sum = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= runs {
                return sum;
            }
            sum += run_or_fail(seed, false);
        }
    };
    let tally = thread::scope(|scope| {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cpus).map(|_| scope.spawn(work)).collect();
        threads.into_iter().fold(Tally::default(), |mut sum, thread| {
            sum += thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            sum
        })
    });
    println!("simulator: {runs} runs, {:.1} s: {tally:?}", started.elapsed().as_secs_f32());
    tally.assert_all_happened();
}

#[test]
fn each_mutant_is_caught_here_too() {
    for mutant in Mutant::ALL {
        let mut seeds = 0..RUNS;
        let caught = seeds.find_map(|seed| run(seed, Some(mutant), false).err().map(|what| (seed, what)));
        println!("simulator: {mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?}");
    }
}
