//! A guest that takes no frames holds up nobody, and loses what its own queue had no room for: every frame that is missing
//! anywhere was counted where it was dropped, through checkpoints, kills and restores.
//!
//! ```text
//! deaf, cuts until some were dropped │ hears: lost ≤ counted │ kill, restore the last, deaf still │ hears: lost ≤ counted
//! ```
//!
//! More may be under way here than a queue has room for, so that a guest which the host does not let run for a while drops
//! some, too: what holds for the deaf one holds for all.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::PathBuf};

use ckvmm_tests::{LIMIT, api::wait_until, bare_metal::Home};

use crate::{cluster::Network, guest};

const NODES: usize = 3;
const DEAF: usize = 1;
const OTHERS: [usize; 2] = [0, 2];
/// Frames that a node gets between two events.
const FRAMES: u64 = 300;
/// Cuts by which something must have been dropped.
const CUTS_MAX: u64 = 50;

/// By node.
type Counts = [u64; NODES];

fn turn_deaf(network: &mut Network<'_>, deaf: bool) {
    let console = &network.consoles[DEAF];
    console.type_bytes(b"d");
    console.lines.expect(&format!("net deaf={}", u8::from(deaf)), LIMIT);
}

/// Waits until these get frames.
fn get_frames(network: &mut Network<'_>, nodes: &[usize]) {
    for node in nodes {
        let console = &mut network.consoles[*node];
        let enough = console.account().received + FRAMES;
        wait_until("frames come", || (console.account().received >= enough).then_some(()));
    }
}

/// Frames that were dropped and counted: `before` this life, and in it until its last cut.
fn counted(network: &Network<'_>, before: Counts) -> Counts {
    let since = network.parts("dropped_frames");
    std::array::from_fn(|node| before[node] + since[node])
}

/// The guest that was deaf hears, and finds that more is missing than `lost` frames. What each misses then was counted.
fn hears(network: &mut Network<'_>, lost: u64, before: Counts) -> Counts {
    turn_deaf(network, false);
    let console = &mut network.consoles[DEAF];
    let enough = console.account().received + FRAMES;
    wait_until("it gets frames, and sees what it has missed", || {
        let account = console.account();
        (account.received >= enough && account.lost > lost).then_some(())
    });
    let lost = std::array::from_fn(|node| network.consoles[node].account().lost);
    // It takes a cut to learn what is counted.
    network.checkpoint();
    let counted = counted(network, before);
    assert!((0..NODES).all(|node| lost[node] <= counted[node]), "{lost:?} lost, {counted:?} counted");
    lost
}

fn a_deaf_guest_loses_what_is_counted(rounds: u64, cuts_a_round: u64) {
    let home = Home::in_memory();
    let mut network = Network::up(&home, NODES, "window=8000");
    let (mut before, mut cuts) = (Counts::default(), 0);
    for round in 0..rounds {
        get_frames(&mut network, &[DEAF]);
        let missed = network.consoles[DEAF].account().lost;
        network.checkpoint();
        let heard = counted(&network, before);
        turn_deaf(&mut network, true);
        let (mut last, mut saved, mut done) = (PathBuf::new(), heard, 0);
        while done < cuts_a_round || saved[DEAF] == heard[DEAF] {
            assert!(done < CUTS_MAX, "nothing is dropped");
            get_frames(&mut network, &OTHERS);
            last = network.checkpoint();
            saved = counted(&network, before);
            done += 1;
        }
        cuts += done;
        let live = hears(&mut network, missed, before);
        network.kill9();

        let state = format!("life-{round}.ckvmm");
        network = Network::restore(&home, &home.join(last), NODES, &state);
        before = saved;
        get_frames(&mut network, &OTHERS);
        let restored = hears(&mut network, missed, before);
        println!("{cuts} cuts: {saved:?} dropped at the last; lost in the end {live:?} live, {restored:?} restored");
        if round > 0 {
            fs::remove_dir_all(home.join(format!("life-{}.ckvmm", round - 1))).unwrap();
        }
    }
    network.kill9();
}

#[test]
fn a_guest_that_takes_no_frames_holds_up_nobody_and_loses_what_is_counted() {
    if !guest::skipped() {
        a_deaf_guest_loses_what_is_counted(1, 2);
    }
}

#[test]
#[ignore = "minutes"]
fn so_it_does_at_fifty_cuts() {
    if !guest::skipped() {
        a_deaf_guest_loses_what_is_counted(10, 5);
    }
}
