//! The clocks of a network's guests differ after a restore by what they differed before, though each was cut at a moment of
//! its own.
//!
//! A guest says what its clock says. That was after it was asked: its clock is ahead of the host's by no more than what it
//! says less the host's time of the question, and of many questions one is answered at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{LIMIT, bare_metal::Home, console::value};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    cluster::{Console, Network},
    guest,
};

/// How often a guest is asked for its time.
const QUESTIONS: usize = 200;
/// By how much the clocks of two guests may differ in another way after a restore.
const EXACT: i64 = 1_000_000;
/// How much later than the other the second VM is cut.
const SKEW: Duration = Duration::from_millis(50);

/// By how much each guest's clock is ahead of the host's, which began at `begun`, in nanoseconds.
fn ahead(network: &mut Network<'_>, begun: Instant) -> Vec<i64> {
    network.consoles.iter_mut().map(|console| (0..QUESTIONS).map(|_| ask(console, begun)).min().unwrap()).collect()
}

fn ask(console: &mut Console, begun: Instant) -> i64 {
    console.lines.skip();
    let asked = begun.elapsed().as_nanos() as i64;
    console.type_bytes(b"t");
    let said = |line: &str| value(line.strip_prefix("CKVMM time ")?, "kvmclock")?.parse::<i64>().ok();
    console.lines.next("time", LIMIT, said) - asked
}

/// Makes a checkpoint of which the second VM takes its part late.
fn skewed_checkpoint(home: &Home, network: &Network<'_>) -> PathBuf {
    let late = &network.members[1];
    late.signal(Signal::SIGSTOP);
    thread::scope(|scope| {
        let made = scope.spawn(|| network.checkpoint());
        let deadline = Instant::now() + LIMIT;
        while !one_is_cut(&home.join("checkpoints/000001")) {
            assert!(Instant::now() < deadline, "no cut is taken");
            thread::yield_now();
        }
        thread::sleep(SKEW);
        late.signal(Signal::SIGCONT);
        home.join(made.join().unwrap())
    })
}

/// Whether a part in the making has what was read from its machine.
fn one_is_cut(parts: &Path) -> bool {
    fs::read_dir(parts).into_iter().flatten().any(|part| part.unwrap().path().join("state").exists())
}

fn cuts(checkpoint: &Path) -> Vec<Timestamp> {
    let manifest: Value = serde_json::from_slice(&fs::read(checkpoint.join("manifest.json")).unwrap()).unwrap();
    let nodes = manifest["nodes"].as_array().unwrap().iter();
    nodes.map(|node| node["part"]["created"].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn all_guests_go_on_from_one_instant() {
    if guest::skipped() {
        return;
    }
    let (home, begun) = (Home::new(), Instant::now());
    let mut network = Network::up(&home, 2, "job=time poll=262144");
    let before = ahead(&mut network, begun);
    let checkpoint = skewed_checkpoint(&home, &network);
    network.kill9();
    let cuts = cuts(&checkpoint);
    let skew = cuts[0].duration_until(cuts[1]).abs();
    assert!(skew.as_millis() >= SKEW.as_millis() as i128, "the cuts were not skewed: {skew:?}");

    let mut network = Network::restore_with(&home, &checkpoint, 2, "frozen.ckvmm", &[]);
    let frozen = ahead(&mut network, begun);
    network.kill9();
    println!(
        "cuts {skew:?} apart; clocks apart by {} ns before, {} ns after",
        before[1] - before[0],
        frozen[1] - frozen[0]
    );
    let (apart, apart_after) = (before[1] - before[0], frozen[1] - frozen[0]);
    assert!((apart - apart_after).abs() <= EXACT, "clocks were {apart} ns apart and are {apart_after} ns");
    assert!(frozen[0] < before[0], "time has passed");

    let mut network = Network::restore_with(&home, &checkpoint, 2, "now.ckvmm", &["--clock", "now"]);
    let now = ahead(&mut network, begun);
    network.kill9();
    for (before, now) in before.iter().zip(now) {
        assert!((before - now).abs() <= 2 * EXACT, "a clock was {before} ns ahead of the host's and is {now} ns");
    }
}
