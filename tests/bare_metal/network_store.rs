//! The verbs on a store of networks' checkpoints, and what a restore says of one that is damaged.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::Path};

use ckvmm_tests::{
    bare_metal::Home,
    lines::{FAILED, is_error, refused},
};

use serde_json::json;

use crate::{cluster::Network, guest};

const NODES: usize = 2;

/// A store with three checkpoints of a network that runs no more.
fn store(home: &Home) {
    let mut network = Network::up_with(home, NODES, "", &json!({ "checkpoint": { "dir": "checkpoints" } }));
    for number in 1..=3 {
        network.goes_on();
        assert_eq!(network.checkpoint(), home.checkpoint(number));
    }
    network.kill9();
}

#[test]
fn checkpoints_of_networks_are_listed_verified_copied_and_pruned() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    store(&home);
    let list = home.ok(["list", "checkpoints"]);
    assert_eq!(list.lines().filter(|line| line.contains("c (2 VMs)") && line.contains("64MiB")).count(), 3, "{list}");
    let list = home.json(["list", "checkpoints", "--json"]);
    assert_eq!((&list[2]["network"]["cut"], &list[2]["nodes"][1]["name"]), (&3.into(), &"n-1".into()), "{list}");

    let inspected = home.ok(["inspect", "checkpoints/000002"]);
    let words = ["network", "lineage", "NODE", "LOGGED", "n-0", "n-1", "32MiB"];
    words.iter().for_each(|word| assert!(inspected.contains(word), "{inspected}"));
    let inspected = home.json(["inspect", "checkpoints/latest", "--json"]);
    assert_eq!(inspected["network"]["cut"], 3);
    assert!(inspected["nodes"][0]["manifest"]["pause_us"].is_u64(), "{inspected}");

    assert!(home.ok(["verify", "checkpoints/000003"]).contains("whole (64MiB"), "both nodes are compared");
    assert_eq!(home.json(["verify", "checkpoints/000003", "--json"])["checked_bytes"], 64 << 20);
    let one = home.run(["restore", "checkpoints/000003"]);
    refused(&one, FAILED, &["checkpoints/000003: of a network", "`ckvmm network restore checkpoints/000003`"]);

    home.ok(["flatten", "checkpoints/000003", "copy"]);
    let removed = home.ok(["prune", "checkpoints", "--keep", "1"]);
    assert_eq!(removed.lines().collect::<Vec<_>>(), ["checkpoints/000001", "checkpoints/000002"]);
    for kept in ["checkpoints/000003", "copy"] {
        home.ok(["verify", kept]);
        let state = format!("{}.ckvmm", kept.replace('/', "-"));
        let mut network = Network::restore(&home, &home.join(kept), NODES, &state);
        network.goes_on();
        network.ends_whole();
        network.kill9();
    }
}

/// Changes a byte in the middle.
fn damage(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_of_a_network_is_refused_by_name() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    store(&home);
    let of = |number| home.checkpoint(number);
    damage(&of(1).join("n-1/network/eth0"));
    damage(&of(2).join("manifest.json"));
    fs::remove_dir_all(of(3).join("n-0")).unwrap();
    let state = home.join("again.ckvmm");
    for (number, named) in [(1, "n-1/network/eth0"), (2, "000002/manifest.json"), (3, "n-0/manifest.json")] {
        let dir = of(number);
        for verb in [&["verify"][..], &["network", "restore", "--state", state.to_str().unwrap()]] {
            let output = home.run(verb.iter().chain(&[dir.to_str().unwrap()]));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(FAILED), "{said}");
            // The VM that finds it ends, and the others miss their links: which one is named is chance.
            let by_chance = number == 1 && verb[0] == "network";
            is_error(said.lines().last().unwrap(), if by_chance { &[] } else { std::slice::from_ref(&named) });
        }
    }
    let list = home.ok(["list", "checkpoints"]);
    assert!(list.contains("000002/manifest.json: ") && list.contains("; use a copy, or another checkpoint"), "{list}");
    // One that cannot be restored counts for nothing.
    assert_eq!(home.ok(["prune", "checkpoints", "--keep", "1"]), "");
    let none = home.run(["network", "restore", "checkpoints"]);
    refused(&none, FAILED, &["checkpoints: no checkpoint of a network", "name one like STORE/000001"]);
}
