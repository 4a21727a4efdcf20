//! A network's job that cannot be run.

use std::{fs, process::Output};

use ckvmm_tests::{
    bare_metal::{self, Home},
    lines::{USAGE, refused},
};
use serde_json::{Value, json};

fn run(job: Option<Value>) -> Output {
    let home = Home::new();
    let mut net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24",
        "nodes": [{ "name": "n", "count": 2, "config": "node.json" }],
    });
    if let Some(job) = job {
        net["job"] = job;
    }
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
