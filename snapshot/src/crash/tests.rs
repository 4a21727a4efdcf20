//! The proof that a checkpoint survives a power loss at any moment, and that the proof would see a missing fsync(2).

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::content::{Content, Data};
use super::journal::{Op, Promises};
use super::model::{Item, Model, Outcome, Tree};
use super::outcomes::{self, Random};
use super::{once, scenario, working_copy};
use crate::fault::recorded;

/// Sets the seed of what is chosen by chance, which else differs from run to run.
const SEED: &str = "CKVMM_SEED";

/// Outcomes of each power loss that are chosen by chance.
const BY_CHANCE: usize = 24;

fn seed() -> u64 {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse().expect("CKVMM_SEED is a number"),
        Err(_) => uuid::Uuid::new_v4().as_u64_pair().0,
    };
    println!("{SEED}={seed}");
    seed
}

/// In memory: what would be durable is decided here, not by a disk.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("directory")
}

/// A run, and how to see whether what it promised is kept.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    run: fn(&Path),
    check: fn(&Path, &Promises) -> Result<(), String>,
}

const CHECKPOINTS: Scenario = Scenario { run: scenario::run, check: scenario::check };
const WORKING_COPIES: Scenario = Scenario { run: working_copy::run, check: working_copy::check };
const ONCE: Scenario = Scenario { run: once::run, check: once::check };

/// The changes that a run makes, each a single one.
fn journal(scenario: Scenario) -> (TempDir, Vec<Op>) {
    let directory = directory();
    let ((), ops) = recorded(directory.path(), || (scenario.run)(directory.path()));
    let mut model = Model::new();
    let mut single = Vec::new();
    for op in ops {
        let steps = model.steps_of(&op);
        steps.iter().for_each(|step| model.apply(step));
        single.extend(steps);
    }
    (directory, single)
}

fn is_sync(op: &Op) -> bool {
    matches!(op, Op::Sync(_) | Op::SyncDirectory(_))
}

/// How much was looked at.
#[derive(Debug, Default)]
struct Proof {
    points: usize,
    outcomes: usize,
    different: usize,
}

impl Proof {
    /// Fails the power before each change and after the last one; the one called `forgotten` does nothing. An error is
    /// the first outcome that breaks a promise.
    fn run(
        &mut self,
        scenario: Scenario,
        ops: &[Op],
        forgotten: Option<usize>,
        random: &mut Random,
    ) -> Result<(), String> {
        let by_chance = if forgotten.is_none() { BY_CHANCE } else { 0 };
        let (mut model, mut promises) = (Model::new(), Promises::default());
        let mut seen = HashSet::new();
        for point in 0..=ops.len() {
            // Up to what is forgotten nothing is different from a run in which it is not.
            if forgotten.is_none_or(|forgotten| point > forgotten) {
                self.points += 1;
                for outcome in outcomes::of(&model, by_chance, random) {
                    self.outcomes += 1;
                    let tree = model.tree(&outcome);
                    if seen.insert(hash(&(&tree, &promises))) {
                        self.different += 1;
                        check(scenario, &tree, &promises).map_err(|why| {
                            format!("before change {point}, {:?}, {outcome:?}: {why}", ops.get(point))
                        })?;
                    }
                }
            }
            match ops.get(point) {
                Some(Op::Mark(mark)) => promises.note(*mark),
                Some(_) if forgotten == Some(point) => {}
                Some(op) => model.apply(op),
                None => {}
            }
        }
        Ok(())
    }
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn check(scenario: Scenario, tree: &Tree, promises: &Promises) -> Result<(), String> {
    let directory = directory();
    materialise(tree, directory.path());
    (scenario.check)(directory.path(), promises)
}

fn materialise(tree: &Tree, root: &Path) {
    // A directory comes before what is in it.
    for (path, item) in &tree.0 {
        let path = root.join(path);
        match item {
            Item::Directory => fs::create_dir(path).expect("mkdir"),
            Item::Link(target) => std::os::unix::fs::symlink(target, path).expect("symlink"),
            Item::File(content) => write(&path, content),
        }
    }
}

fn write(path: &Path, content: &Content) {
    let file = File::create_new(path).expect("create");
    for piece in &content.pieces {
        file.write_all_at(piece.data(), piece.offset).expect("write");
    }
    file.set_len(content.bytes).expect("length");
}

/// Sees that no outcome breaks a promise; says how many there were.
fn prove(scenario: Scenario) -> Proof {
    let (_, ops) = journal(scenario);
    let mut proof = Proof::default();
    let result = proof.run(scenario, &ops, None, &mut Random::new(seed()));
    let changes = ops.iter().filter(|op| !matches!(op, Op::Mark(_))).count();
    println!(
        "{changes} changes, {} points, {} outcomes of a power loss, {} of them different",
        proof.points, proof.outcomes, proof.different
    );
    result.unwrap_or_else(|why| panic!("power loss {why}"));
    proof
}

#[test]
fn a_power_loss_at_any_moment_leaves_whole_checkpoints_and_a_store_that_goes_on() {
    let proof = prove(CHECKPOINTS);
    assert!(proof.points > 100 && proof.different > 1000, "this proves little: {proof:?}");
}

#[test]
fn a_power_loss_takes_no_disk_from_a_guest_that_has_flushed_it() {
    prove(WORKING_COPIES);
}

#[test]
fn a_power_loss_takes_back_nothing_that_was_written_once() {
    prove(ONCE);
}

#[test]
fn each_fsync_is_needed() {
    let mut random = Random::new(seed());
    let mut not_missed = Vec::new();
    for scenario in [CHECKPOINTS, WORKING_COPIES, ONCE] {
        let (_, ops) = journal(scenario);
        for (at, sync) in ops.iter().enumerate().filter(|(_, op)| is_sync(op)) {
            let mut proof = Proof::default();
            match proof.run(scenario, &ops, Some(at), &mut random) {
                Err(why) => println!("without {sync:?} (change {at}), after {} outcomes: {why}", proof.outcomes),
                Ok(()) => not_missed.push(format!("{sync:?} (change {at})")),
            }
        }
    }
    assert!(not_missed.is_empty(), "nothing breaks without {not_missed:#?}");
}

#[test]
fn the_journal_has_all_that_was_changed() {
    let (directory, ops) = journal(CHECKPOINTS);
    let mut model = Model::new();
    ops.iter().for_each(|op| model.apply(op));
    let copy = self::directory();
    materialise(&model.tree(&Outcome { lost: [].into(), data: Data::All }), copy.path());
    let (left, right) = (all_in(directory.path()), all_in(copy.path()));
    assert!(left.len() > 8, "{left:?}");
    let names = |all: &[(PathBuf, Vec<u8>)]| all.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!(names(&left), names(&right));
    assert!(left == right, "contents differ");
}

/// Every path in a directory with its content: that of a file, or where a link leads.
fn all_in(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut directories = vec![root.to_path_buf()];
    while let Some(now) = directories.pop() {
        for entry in fs::read_dir(now).expect("directory") {
            let path = entry.expect("entry").path();
            let content = match path.symlink_metadata().expect("metadata") {
                metadata if metadata.is_symlink() => fs::read_link(&path).expect("link").into_os_string().into_vec(),
                metadata if metadata.is_file() => fs::read(&path).expect("read"),
                _ => {
                    directories.push(path.clone());
                    Vec::new()
                }
            };
            all.push((path.strip_prefix(root).expect("below it").to_path_buf(), content));
        }
    }
    all.sort();
    all
}
