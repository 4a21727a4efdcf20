//! kill -9 of the supervisor, of each VM and of each writer, in each phase of a cut of their network; a VM that stands
//! still; a second coordinator. Whatever happens, the last checkpoint that was committed restores, no frame is lost,
//! doubled or reordered, and guests that can run on do.
//!
//! A phase lasts for as long as a test needs it: a writer that is held at its birth keeps its VM's part from being whole, a
//! supervisor that is stopped decides nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT,
    api::wait_until,
    bare_metal::Home,
    birth::{Held, Still},
    lines::{FAILED, is_error, refused},
};
use nix::sys::signal::Signal;

use crate::{cluster::Network, guest};

pub(crate) const NODES: usize = 3;

/// How far the cut is when somebody is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody has been told of it.
    Before,
    /// All are cut, and the writer of this node has not written.
    Writing(usize),
    /// All parts are whole, and nothing is decided.
    Prepared,
    /// It is decided, and nobody may have heard of it.
    Committed,
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Supervisor,
    Vm(usize),
    /// That of the node that [`Phase::Writing`] names.
    Writer,
}

/// Waits for the file `path`: it is written once, by way of another name.
fn comes(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < LIMIT, "{} does not come", path.display());
        thread::yield_now();
    }
}

/// The store's checkpoint of that number.
fn checkpoint(home: &Home, number: u32) -> PathBuf {
    home.checkpoint(number)
}

/// Whether the store's checkpoint of that number is one.
fn is_committed(home: &Home, number: u32) -> bool {
    fs::read(checkpoint(home, number).join("manifest.json")).is_ok_and(|bytes| bytes.starts_with(b"{"))
}

/// A network with one checkpoint, whose next cut is in `phase`; of [`Phase::Writing`] the writer.
fn come_to(network: &Network<'_>, home: &Home, phase: Phase) -> Option<Held> {
    match phase {
        Phase::Before => None,
        Phase::Writing(node) => Some(network.begin_cut(node)),
        Phase::Prepared => {
            let writer = network.begin_cut(0);
            network.supervisor.signal(Signal::SIGSTOP);
            drop(writer);
            (0..NODES).for_each(|node| comes(&checkpoint(home, 2).join(format!("n-{node}/manifest.json"))));
            None
        }
        Phase::Committed => {
            drop(network.begin_cut(0));
            comes(&checkpoint(home, 2).join("manifest.json"));
            None
        }
    }
}

fn kill(network: &mut Network<'_>, victim: Victim, writer: Option<Held>) {
    match victim {
        Victim::Supervisor => network.supervisor.signal(Signal::SIGKILL),
        Victim::Vm(node) => {
            network.members[node].kill9();
            // A writer dies with its VM, and that can be waited for when nobody traces it any more.
            drop(writer);
            network.members[node].wait(LIMIT);
        }
        Victim::Writer => writer.expect("it writes").kill9(),
    }
}

/// One kill in one phase, and what must come of it.
fn survives(phase: Phase, victim: Victim) {
    let home = Home::new();
    let mut network = Network::up(&home, NODES, "broadcast=1/16");
    network.goes_on();
    network.checkpoint();
    network.goes_on();
    let writer = come_to(&network, &home, phase);
    kill(&mut network, victim, writer);
    let gone = match victim {
        Victim::Supervisor => None,
        Victim::Vm(node) => {
            network.supervisor.signal(Signal::SIGCONT);
            let line =
                network.supervisor.messages.expect(&format!("n-{node}: its VM is gone (killed by SIGKILL)"), LIMIT);
            is_error(&line, &["the others run on", "`ckvmm network restore "]);
            Some(node)
        }
        Victim::Writer => {
            let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
            is_error(&line, &["the writer was killed", "; the network goes on"]);
            None
        }
    };
    network.go_on_but(gone);
    if victim == Victim::Writer {
        assert!(!checkpoint(&home, 2).exists(), "nothing is left of it");
        assert!(network.checkpoint().ends_with("000003"), "a number is not used again");
        network.goes_on();
    }
    network.kill9();

    let newest = (1..=3).rev().find(|number| is_committed(&home, *number)).unwrap();
    match (phase, victim) {
        (_, Victim::Writer) => assert_eq!(newest, 3),
        (Phase::Before | Phase::Writing(_), _) | (Phase::Prepared, Victim::Supervisor) => assert_eq!(newest, 1),
        // What was said before the kill may count.
        (Phase::Prepared, _) => assert!(newest <= 2),
        (Phase::Committed, _) => assert_eq!(newest, 2),
    }
    println!("{phase:?}, {victim:?} killed: {newest} is the last checkpoint");
    restores(&home, newest);
}

/// The checkpoint of that number is whole, and so is all that comes after it.
pub(crate) fn restores(home: &Home, number: u32) {
    let mut network = Network::restore(home, &checkpoint(home, number), NODES, "again.ckvmm");
    network.goes_on();
    network.checkpoint();
    network.goes_on();
    network.ends_whole();
    network.kill9();
}

#[test]
fn a_killed_writer_and_a_killed_supervisor_cost_the_cut_and_nothing_else() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up(&home, NODES, "broadcast=1/16");
    network.goes_on();
    let writer = network.begin_cut(1);
    network.goes_on();
    let so_far = || network.status()["nodes"][1]["cut_so_far"].clone();
    let shown = wait_until("it is shown how far the cut is", || Some(so_far()).filter(|it| !it.is_null()));
    assert_eq!(shown["done_bytes"], 0, "{shown}");
    writer.kill9();
    let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
    is_error(&line, &["node 1", "the writer was killed", "; the network goes on"]);
    network.goes_on();
    let last = network.checkpoint();

    let writer = network.begin_cut(2);
    network.supervisor.signal(Signal::SIGKILL);
    drop(writer);
    network.goes_on();
    network.kill_members();
    let mut network = Network::restore(&home, &home.join(last), NODES, "again.ckvmm");
    network.goes_on();
    network.ends_whole();
    network.kill9();
}

#[test]
fn an_image_that_its_disk_does_not_let_go_of_costs_cuts_and_holds_no_frames() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up(&home, NODES, "broadcast=1/16");
    network.goes_on();
    network.checkpoint();
    let finisher = Still::thread(network.members[1].pid(), "checkpoint");
    let writer = network.begin_cut(0);
    let is_at_work = |node: usize| !network.status()["nodes"][node]["cut_so_far"].is_null();
    wait_until("node 1 takes the cut", || is_at_work(1).then_some(()));
    writer.kill9();
    let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
    is_error(&line, &["node 0", "the writer was killed", "; the network goes on"]);
    let state = network.state.to_str().unwrap();
    for _ in 0..2 {
        wait_until("the others have let go", || (!is_at_work(0) && !is_at_work(2)).then_some(()));
        let output = home.run(["network", "checkpoint", "--state", state]);
        refused(&output, FAILED, &["node 1", "its disk has not let go of it"]);
    }
    drop(finisher);
    wait_until("node 1 has let go", || (!is_at_work(1)).then_some(()));
    network.goes_on();
    network.checkpoint();
    network.goes_on();
    network.ends_whole();
    network.kill9();
}

/// Kills of the supervisor and of each VM in one phase.
fn survives_all(phase: Phase) {
    if guest::skipped() {
        return;
    }
    survives(phase, Victim::Supervisor);
    (0..NODES).for_each(|node| survives(phase, Victim::Vm(node)));
}

#[test]
#[ignore = "a minute"]
fn whoever_is_killed_before_a_cut_the_last_commit_stands() {
    survives_all(Phase::Before);
}

#[test]
#[ignore = "two minutes"]
fn whoever_is_killed_while_a_cut_is_written_the_last_commit_stands() {
    survives_all(Phase::Writing(0));
    if !guest::skipped() {
        (0..NODES).for_each(|node| survives(Phase::Writing(node), Victim::Writer));
    }
}

#[test]
#[ignore = "a minute"]
fn whoever_is_killed_when_all_are_prepared_the_last_commit_stands() {
    survives_all(Phase::Prepared);
}

#[test]
#[ignore = "a minute"]
fn whoever_is_killed_after_the_commit_it_stands() {
    survives_all(Phase::Committed);
}

/// A member that stands still says nothing, and nobody else has anything left to do.
#[test]
#[ignore = "five minutes"]
fn a_cut_in_which_nothing_moves_is_aborted_after_five_minutes() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up(&home, NODES, "");
    network.goes_on();
    network.checkpoint();
    network.members[1].signal(Signal::SIGSTOP);
    let begun = Instant::now();
    network.supervisor.signal(Signal::SIGUSR1);
    network.supervisor.messages.expect("n-1: no answer", Duration::from_secs(400));
    let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
    // The others wait for its markers.
    is_error(&line, &["no answer in time from node 0 1 2", "; the network goes on"]);
    assert!(begun.elapsed() > Duration::from_secs(290), "{:?}", begun.elapsed());
    network.members[1].signal(Signal::SIGCONT);
    network.goes_on();
    assert!(network.checkpoint().ends_with("000003"));
    network.kill9();
}

#[test]
fn of_two_coordinators_one_decides() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up(&home, 2, "");
    network.goes_on();
    let last = network.checkpoint();
    let again = home.run(["network", "up", "net.json"]);
    refused(&again, FAILED, &["c.ckvmm/network.lock", "a running network has it"]);
    let other = home.run(["network", "restore", last.to_str().unwrap(), "--state", "other.ckvmm"]);
    refused(&other, FAILED, &["checkpoints/.network.lock", "a running network has it"]);

    // One that no lock has kept away decides about a cut while that is being made.
    let writer = network.begin_cut(0);
    fs::write(checkpoint(&home, 2).join("manifest.json"), "").unwrap();
    drop(writer);
    let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
    is_error(&line, &["another coordinator has taken over", "; the network goes on"]);
    let state = network.state.to_str().unwrap();
    let output = home.run(["network", "checkpoint", "--state", state]);
    refused(&output, FAILED, &["another coordinator has taken over"]);
    network.goes_on();
    network.kill9();
    let mut network = Network::restore(&home, &home.join(last), 2, "again.ckvmm");
    network.goes_on();
    network.checkpoint();
    network.ends_whole();
    network.kill9();
}
