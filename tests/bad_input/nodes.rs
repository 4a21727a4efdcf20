//! Networks whose nodes cannot be.

use std::{fs, process::Output};

use ckvmm_tests::{
    bare_metal::{self, Home},
    lines::{USAGE, refused},
};
use serde_json::{Value, json};

/// Starts four nodes with these fields in `net.json` and in their `vm.json`.
fn up(fields: Value, node_fields: Value) -> Output {
    let mut node = bare_metal::config("job=hello");
    node.as_object_mut().unwrap().extend(node_fields.as_object().unwrap().clone());
    up_as(fields, &node)
}

/// Starts four nodes with these fields in `net.json`, and this as their `vm.json`.
fn up_as(fields: Value, node: &Value) -> Output {
    let home = Home::new();
    let mut net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24",
        "nodes": [{ "name": "n", "count": 4, "config": "node.json" }],
    });
    net.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(home.join("disk.raw"), [1; 512]).unwrap();
    fs::write(home.join("net.json"), net.to_string()).unwrap();
    fs::write(home.join("node.json"), node.to_string()).unwrap();
    home.run(["network", "up", "net.json"])
}

#[test]
fn a_subnet_that_is_none_or_too_small() {
    for subnet in
        ["10.77.0.0/30", "10.77.0.0/31", "10.77.0.1/24", "10.77.0.0", "10.77.0/24", "fd00::/64", "10.77.0.0/x"]
    {
        let output = up(json!({ "subnet": subnet }), json!({}));
        refused(&output, USAGE, &["net.json: subnet: ", subnet, "does not hold 4 nodes", "10.77.0.0/24"]);
    }
}

#[test]
fn two_nodes_of_one_name() {
    let nodes = json!([{ "name": "n", "count": 2, "config": "node.json" }, { "name": "n-1", "config": "node.json" }]);
    let output = up(json!({ "nodes": nodes }), json!({}));
    refused(&output, USAGE, &["net.json: nodes: ", "more than one is called n-1", "a name of its own"]);
}

#[test]
fn a_disk_with_the_name_of_the_seed() {
    let disks = json!({ "disks": [{ "id": "cidata", "path": "disk.raw" }] });
    refused(&up(json!({}), disks.clone()), USAGE, &["disks.1.id: ", "\"cidata\" is also that of disks.0"]);
    refused(&up(json!({ "seed": "yes" }), disks), USAGE, &["net.json: seed: ", "a boolean"]);
}

#[test]
fn a_node_that_is_no_object() {
    for (node, shown) in [(json!([]), "a list"), (json!(5), "5"), (json!("x"), "\"x\""), (json!(null), "null")] {
        let what = format!("node.json: configuration: {shown} does not fit");
        refused(&up_as(json!({}), &node), USAGE, &[&what, "give an object with "]);
    }
}

#[test]
fn cards_that_are_no_list() {
    let output = up(json!({}), json!({ "nics": { "id": "eth0", "uplink": { "tap": "tap0" } } }));
    refused(&output, USAGE, &["node.json: nics: no list", "give a list of cards, or leave it away"]);
}

#[test]
fn a_node_s_checkpoint_with_an_unknown_field() {
    let output = up(json!({}), json!({ "checkpoint": { "modes": "stop" } }));
    refused(&output, USAGE, &["node.json: checkpoint.modes: no such field", "did you mean \"mode\"?"]);
}
