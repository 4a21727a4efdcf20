//! The file system of a network's checkpoints has no room: for all of its VMs, or for the largest of them only. That costs
//! the cut and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;

use ckvmm_tests::{LIMIT, bare_metal::Home, lines::is_error, mount, paths};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    cluster::Network,
    guest,
    network_faults::{NODES, restores},
};

const MIB: u64 = 1 << 20;
/// Room for what one VM has written since its last checkpoint, and not for all of them.
const LEFT: u64 = 300 << 10;

#[test]
fn a_store_that_fills_costs_the_cut_and_nothing_else() {
    if guest::skipped() || !mount::enter_namespace() {
        return;
    }
    let home = Home::new();
    fs::create_dir(home.join("checkpoints")).unwrap();
    mount::small(&home.join("checkpoints"), 64 * MIB);
    let mut network = Network::up(&home, NODES, "");
    network.goes_on();
    let last = network.checkpoint();
    let filler = home.join("checkpoints/filler");
    // With no room at all, not even for the word that it is none.
    for (left, cut) in [(LEFT, 2), (0, 3)] {
        let free = nix::sys::statvfs::statvfs(&home.join("checkpoints")).unwrap();
        let free = free.blocks_available() * free.fragment_size();
        fs::write(&filler, vec![1; (free - left) as usize]).unwrap();
        network.supervisor.signal(Signal::SIGUSR1);
        let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
        is_error(&line, &["node ", "no space left on the file system", "; the network goes on"]);
        network.goes_on();
        assert!(!home.checkpoint(cut).exists(), "nothing is left of it");
        fs::remove_file(&filler).unwrap();
    }
    assert!(network.checkpoint().ends_with("000004"));
    network.goes_on();
    network.kill9();
    let mut network = Network::restore(&home, &home.join(last), NODES, "again.ckvmm");
    network.goes_on();
    network.ends_whole();
    network.kill9();
}

/// All others have room for their parts, if they come first.
#[test]
fn a_file_system_with_no_room_for_one_vm_costs_the_cut_and_nothing_else() {
    if guest::skipped() || !mount::enter_namespace() {
        return;
    }
    let home = Home::new();
    let node = json!({ "version": 1, "name": "node", "memory": "96MiB", "kernel": {
        "image": paths::guest("bare-metal.elf"),
        "cmdline": "job=net peers={nodes} me={index}",
        "initrd": home.join("initrd"),
    }});
    fs::write(home.join("large.json"), node.to_string()).unwrap();
    fs::write(home.join("initrd"), vec![1; 48 * MIB as usize]).unwrap();
    let nodes = json!([
        { "name": "n", "count": NODES - 1, "config": "node.json" },
        { "name": "n-2", "config": "large.json" },
    ]);
    let mut network = Network::up_with(&home, NODES, "", &json!({ "nodes": nodes }));
    network.goes_on();
    let last = network.checkpoint();
    network.kill9();

    let small = home.join("small");
    fs::create_dir(&small).unwrap();
    mount::small(&small, 32 * MIB);
    let elsewhere = ["--set".to_owned(), format!("checkpoint.dir={}", small.display())];
    let elsewhere = elsewhere.each_ref().map(String::as_str);
    let mut network = Network::restore_with(&home, &last, NODES, "small.ckvmm", &elsewhere);
    network.goes_on();
    for cut in 1..=2 {
        network.supervisor.signal(Signal::SIGUSR1);
        let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
        // Who still writes when the largest has taken all the room finds none either, and may say so first.
        is_error(&line, &["node ", "no space left on the file system", "; the network goes on"]);
        network.goes_on();
        assert!(!small.join(format!("00000{cut}")).exists(), "nothing is left of it");
    }
    network.kill9();
    restores(&home, 1);
}
