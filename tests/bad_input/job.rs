//! A network's job that cannot be run.

use std::{fs, process::Output};

use ckvmm_tests::{
    bare_metal::{self, Home},
    lines::{USAGE, refused},
};
use serde_json::{Value, json};

fn run(job: Option<Value>) -> Output {
    run_with(job, json!({}))
}

/// With these fields in `net.json`, too.
fn run_with(job: Option<Value>, fields: Value) -> Output {
    let home = Home::new();
    let mut net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24",
        "nodes": [{ "name": "n", "count": 2, "config": "node.json" }],
    });
    if let Some(job) = job {
        net["job"] = job;
    }
    net.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(home.join("net.json"), net.to_string()).unwrap();
    fs::write(home.join("node.json"), bare_metal::config("job=hello").to_string()).unwrap();
    home.run(["network", "run", "net.json"])
}

#[test]
fn a_network_without_a_job() {
    refused(&run(None), USAGE, &["net.json: job: ", "is not there", "ckvmm network up"]);
}

#[test]
fn a_job_on_a_node_that_is_not_there() {
    refused(&run(Some(json!({ "on": "n-2" }))), USAGE, &["net.json: job.on: ", "\"n-2\" is no node", "n-0, n-1"]);
}

#[test]
fn a_job_with_an_unknown_field() {
    refused(&run(Some(json!({ "on": "n-0", "at": 1 }))), USAGE, &["net.json: job.at: ", "unknown field"]);
}

/// A job with this command, on a node with a seed.
fn command(command: Value) -> Output {
    run_with(Some(json!({ "on": "n-0", "command": command })), json!({ "seed": true }))
}

#[test]
fn a_command_that_names_no_program() {
    for words in [json!([]), json!(["", "x"])] {
        refused(&command(words), USAGE, &["net.json: job.command: ", "names no program", "./a.out"]);
    }
}

#[test]
fn a_command_that_is_too_long() {
    for words in [json!(["x".repeat(70_000)]), json!(vec!["x"; 2000])] {
        refused(&command(words), USAGE, &["net.json: job.command: ", "too long", "a script"]);
    }
}

#[test]
fn a_command_with_a_character_that_cannot_be_handed_on() {
    for word in ["a\0b", "\u{7f}", "\u{9b}", "\u{ffff}"] {
        refused(
            &command(json!(["sh", word])),
            USAGE,
            &["net.json: job.command: ", "holds ", "leave that character away"],
        );
    }
}

#[test]
fn a_command_that_nothing_takes_to_its_node() {
    let output = run(Some(json!({ "on": "n-0", "command": ["true"] })));
    refused(&output, USAGE, &["net.json: job.command: ", "nothing takes it to n-0", "\"seed\": true"]);
}
