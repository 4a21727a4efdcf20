//! What is shown of a network: who is where, what goes over its links, and what it is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::fs;

use ckvmm_tests::{
    api::wait_until,
    bare_metal::Home,
    lines::{FAILED, refused},
};
use serde_json::{Value, json};

use crate::{cluster::Network, guest};

/// What `network status --json` says of the link from one node to another, seen from the first.
fn link(status: &Value, here: usize, there: usize) -> &Value {
    let links = status["nodes"][here]["vm"]["network"]["links"].as_array().unwrap();
    links.iter().find(|link| link["node"] == there).unwrap()
}

#[test]
fn frames_are_counted_at_both_ends_of_each_link() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up(&home, 3, "broadcast=1/16");
    network.goes_on();
    let last = network.checkpoint();
    network.goes_on();
    network.ends_whole();
    // They say now and then how far they are, also when all has come.
    let status = wait_until("both ends have counted the same", || {
        let status = network.status();
        let agree = |(here, there)| {
            let (from, to) = (link(&status, here, there), link(&status, there, here));
            let counts = |name| from[name].as_u64().unwrap();
            from["is_up"] == true
                && counts("sent_frames") > 0
                && from["sent_frames"] == to["received_frames"]
                && from["sent_bytes"] == to["received_bytes"]
        };
        [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)].into_iter().all(agree).then_some(status)
    });
    let vm = &status["nodes"][0]["vm"];
    assert_eq!(
        (&vm["state"], &vm["network"]["colour"], &vm["network"]["node"]),
        (&json!("running"), &json!(1), &json!(0))
    );
    assert!(vm["nics"]["eth0"]["received_frames"].as_u64().unwrap() > 0, "{status}");

    let table = network.ask(&["status"]);
    assert!(table.starts_with("network c, process ") && table.contains(last.to_str().unwrap()), "{table}");
    let node = table.lines().find(|line| line.starts_with("n-2")).unwrap();
    assert!(node.contains("running") && node.contains("2 of 2"), "{table}");
    let table = network.ask(&["status", "--links"]);
    let rows = table.lines().filter(|line| line.starts_with("n-") && line.contains(" up "));
    assert_eq!(rows.count(), 6, "{table}");
    let metrics = network.api(1).ask("GET", "/metrics", "").body;
    let sent = metrics.lines().find_map(|line| line.strip_prefix("ckvmm_link_sent_frames_total{node=\"2\"} "));
    let before = link(&status, 1, 2)["sent_frames"].as_u64().unwrap();
    assert!(sent.is_some_and(|sent| sent.parse::<u64>().unwrap() >= before), "{metrics}");
    assert!(metrics.lines().any(|line| line == "ckvmm_network_colour 1"), "{metrics}");

    network.consoles[2].type_bytes(b"q");
    let is_down = || link(&network.status(), 0, 2)["is_up"] == false;
    wait_until("the link to a guest that is off is down", || is_down().then_some(()));
    network.kill9();
}

#[test]
fn a_network_without_offloads_stays_one_and_no_vm_of_it_is_captured_alone() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up_with(&home, 2, "", &json!({ "offloads": false }));
    network.goes_on();
    refused(&home.run(["checkpoint", "c-n-0"]), FAILED, &["part of a network", "`ckvmm network checkpoint`"]);
    let last = network.checkpoint();
    let manifest: Value = serde_json::from_slice(&fs::read(home.join(&last).join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["offloads"], false);
    network.kill9();
    let mut network = Network::restore(&home, &last, 2, "again.ckvmm");
    network.goes_on();
    let again = network.checkpoint();
    let manifest: Value = serde_json::from_slice(&fs::read(home.join(&again).join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["offloads"], false, "a life hands it on to the next");
    network.ends_whole();
    network.kill9();
}
