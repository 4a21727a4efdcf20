//! Our own guests in a network, each numbering raw frames to all others at full speed: checkpoints of all in one
//! instant, live and before all is killed and restored, lose, double and reorder no frame.
//!
//! Links are slow, each packet by another delay, so that much is under way at a cut. No node sends more than the others
//! have places for, and each sees every gap, so a frame that is missing is our fault.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::PathBuf, thread};

use ckvmm_tests::{api::wait_until, bare_metal::Home, pcap::frames_of};

use crate::{
    cluster::{Console, Network},
    guest,
};

/// Of every link, both ways.
const DELAY: &str = "0-50ms";

/// What cuts had to do.
#[derive(Debug, Default)]
struct Sums {
    cuts: u64,
    logged: u64,
    held: u64,
    dropped: u64,
    waits: u64,
    frames: u64,
}

impl Sums {
    /// Of the last cut.
    fn add_cut(&mut self, network: &Network) {
        self.cuts += 1;
        self.logged += network.sum("logged_frames");
    }

    /// Of a life, after its last cut.
    fn add_life(&mut self, network: &mut Network) {
        self.held += network.sum("held_packets");
        self.dropped += network.sum("dropped_frames");
        self.waits += network.sum("waits");
    }
}

fn received(network: &mut Network) -> u64 {
    network.consoles.iter_mut().map(Console::received).sum()
}

/// Slow links. One may stay quick: what comes over it comes before its receiver takes a cut late.
fn slow(network: &Network, but_one: bool) {
    network.ask(&["link", "--delay", DELAY, "--seed", "7"]);
    if but_one {
        network.ask(&["link", "n-0:n-1", "--delay", "0ms"]);
    }
}

/// So many live cuts, and as many lives that each begin with a restore and have one cut.
fn checkpoints_lose_nothing(nodes: usize, more: &str, cuts: u64) -> Sums {
    let home = Home::in_memory();
    let mut network = Network::up(&home, nodes, more);
    slow(&network, true);
    let (mut sums, mut last) = (Sums::default(), PathBuf::new());
    for _ in 0..cuts {
        network.goes_on();
        last = network.checkpoint_with_one_late();
        sums.add_cut(&network);
    }
    network.goes_on();
    sums.add_life(&mut network);
    network.kill9();
    for life in 0..cuts {
        let mut network = Network::restore(&home, &home.join(&last), nodes, &format!("life-{life}.ckvmm"));
        slow(&network, nodes > 2);
        network.goes_on();
        last = network.checkpoint();
        sums.add_cut(&network);
        network.goes_on();
        if life + 1 == cuts {
            network.ends_whole();
            sums.frames = received(&mut network);
        }
        sums.add_life(&mut network);
        network.kill9();
        fs::remove_dir_all(home.join(format!("life-{life}.ckvmm"))).unwrap();
    }
    println!(
        "{nodes} nodes {more}: {cuts} cuts live, {cuts} after kill and restore: {sums:?}; none lost, doubled, reordered"
    );
    assert!(sums.logged > 0 && sums.held > 0, "no cut had anything to log, or to hold: {sums:?}");
    assert_eq!(sums.dropped, 0, "{sums:?}");
    sums
}

/// The sender is faster than the link, and waits.
fn full_links_lose_nothing(cuts: u64) {
    let sums = checkpoints_lose_nothing(2, "window=1000", cuts);
    assert!(sums.waits > 0, "no link was full: {sums:?}");
}

#[test]
fn a_network_of_three_is_checkpointed_and_restored_without_losing_a_frame() {
    if !guest::skipped() {
        checkpoints_lose_nothing(3, "broadcast=1/16", 3);
    }
}

#[test]
#[ignore = "minutes"]
fn so_is_one_of_two_fifty_times() {
    if !guest::skipped() {
        checkpoints_lose_nothing(2, "", 50);
    }
}

#[test]
#[ignore = "minutes"]
fn so_is_one_of_three_fifty_times() {
    if !guest::skipped() {
        checkpoints_lose_nothing(3, "broadcast=1/16", 50);
    }
}

#[test]
#[ignore = "minutes"]
fn so_is_one_of_eight_fifty_times() {
    if !guest::skipped() {
        checkpoints_lose_nothing(8, "broadcast=1/16", 50);
    }
}

#[test]
#[ignore = "minutes"]
fn so_is_one_with_full_links_fifty_times() {
    if !guest::skipped() {
        full_links_lose_nothing(50);
    }
}

#[test]
fn a_paused_vm_is_part_of_a_checkpoint_and_stays_paused() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up(&home, 2, "");
    network.goes_on();
    home.ok(["pause", "c-n-1"]);
    let paused = network.checkpoint();
    assert_eq!(network.api(1).vm()["state"], "paused");
    home.ok(["resume", "c-n-1"]);
    network.goes_on();
    network.kill9();
    let mut network = Network::restore(&home, &home.join(paused), 2, "again.ckvmm");
    network.goes_on();
    network.ends_whole();
}

#[test]
fn a_guest_that_powers_off_in_the_middle_of_a_cut_is_part_of_it() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up(&home, 3, "");
    network.goes_on();
    // No marker comes, so the cut stays open.
    network.ask(&["link", "--hold"]);
    let dir = thread::scope(|scope| {
        let checkpoint = scope.spawn(|| network.checkpoint());
        wait_until("all have cut", || (network.parts_in_the_making() == 3).then_some(()));
        network.consoles[2].type_bytes(b"q");
        network.ask(&["link", "--delay", "0ms"]);
        checkpoint.join().unwrap()
    });
    let is_off = || network.status()["nodes"][2]["state"] == "off";
    wait_until("the guest that powered off is off", || is_off().then_some(()));
    network.go_on(&[0, 1]);
    network.checkpoint();
    network.kill9();
    let mut network = Network::restore(&home, &home.join(dir), 3, "again.ckvmm");
    network.go_on(&[0, 1]);
}

#[test]
fn a_capture_has_the_frames_of_one_link_and_faults_have_names() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up(&home, 3, "");
    let file = PathBuf::from(network.ask(&["capture", "n-0:n-1", home.join("one.pcap").to_str().unwrap()]));
    network.goes_on();
    network.ask(&["capture", "n-0"]);
    let file = fs::read(file).unwrap();
    let frames = frames_of(&file);
    assert!(frames.len() > 100, "{} frames", frames.len());
    let macs = [0, 1].map(|node| [2, 0, 10, 77, 0, node + 1]);
    for frame in &frames {
        let ends: [[u8; 6]; 2] = [frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap()];
        assert!(ends == macs || ends == [macs[1], macs[0]], "{ends:?}");
    }
    let state = home.join("c.ckvmm");
    let state = state.to_str().unwrap();
    let refused = |arguments: &[&str], status, named: &str| {
        let output = home.run(["network"].iter().chain(arguments).chain(&["--state", state]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(named), "{said}");
    };
    refused(&["link", "n-7", "--hold"], 1, "n-7");
    refused(&["link", "n-0:n-0", "--hold"], 1, "itself");
    refused(&["link", "--delay", "50-0ms"], 2, "0-50ms");
    refused(&["link"], 2, "--hold");
    refused(&["capture", "n-0", "/nowhere/x.pcap"], 1, "/nowhere/x.pcap");
    refused(&["capture", "n-0", "/dev/full"], 1, "/dev/full");
    network.ask(&["link", "n-0:n-1", "--break"]);
    refused(&["checkpoint"], 1, "link");
}
