//! `ckvmm network run`: the network ends with the job of one node, and with its status, also of a restored network.
//!
//! The guests send back what is typed at them, so a test says what a job would.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, io::Write, os::unix::net::UnixStream, path::Path, thread, time::Duration, time::Instant};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    pidfd::Pidfd,
    process::Ckvmm,
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::guest;

/// Two nodes, the job on the second.
fn write(home: &Home) {
    let net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24",
        "nodes": [{ "name": "n", "count": 2, "config": "node.json" }],
        "job": { "on": "n-1" },
        "checkpoint": { "dir": "checkpoints" },
    });
    let mut node = bare_metal::config("job=echo");
    // Its guest knows no power button.
    node["stop_timeout"] = "1s".into();
    fs::write(home.join("net.json"), net.to_string()).unwrap();
    fs::write(home.join("node.json"), node.to_string()).unwrap();
}

/// A node's console, once it is there.
fn console(home: &Home, node: usize) -> UnixStream {
    let path = home.join(format!("ckvmm/c-n-{node}.console"));
    retried(&path, || UnixStream::connect(&path).ok())
}

/// The console of a node of a network that is booted, once its guest listens.
fn ready(home: &Home, node: usize) -> UnixStream {
    let log = home.join(format!("c.ckvmm/n-{node}/console.log"));
    retried(&log, || fs::read_to_string(&log).ok().filter(|log| log.contains("CKVMM ready")));
    console(home, node)
}

fn retried<T>(what: &Path, attempt: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "{}: nothing comes", what.display());
        thread::sleep(Duration::from_millis(10));
    }
}

fn kill9(network: Ckvmm) {
    let members = Pidfd::children_of(network.pid());
    network.signal(Signal::SIGKILL);
    for member in members {
        member.kill9();
        member.wait(LIMIT);
    }
}

#[test]
fn a_network_ends_with_its_job_also_after_a_restore() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    write(&home);
    let network = Ckvmm::start(home.path(), ["network", "run", "net.json"]);
    ready(&home, 0).write_all(b"ckvmm: exit 1\n").unwrap();
    ready(&home, 1).write_all(b"ckvmm: begin\nhalf of it\n").unwrap();
    network.console.expect("half of it", LIMIT);
    let image = home.ok(["network", "checkpoint", "--state", "c.ckvmm"]);
    kill9(network);

    let mut network = Ckvmm::start(home.path(), ["network", "restore", &image]);
    console(&home, 1).write_all(b"the other half\nckvmm: exit 7\n").unwrap();
    assert_eq!(network.wait(LIMIT), 7);
    assert_eq!(network.console.all(), ["the other half"]);
}

#[test]
fn a_job_that_has_ended_meanwhile_is_heard_of_by_who_takes_over() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    write(&home);
    let network = Ckvmm::start(home.path(), ["network", "run", "net.json"]);
    ready(&home, 0);
    ready(&home, 1).write_all(b"ckvmm: begin\nhalf of it\n").unwrap();
    network.console.expect("half of it", LIMIT);
    let supervisor = Pidfd::open(network.pid() as i32).unwrap();
    supervisor.kill9();
    supervisor.wait(LIMIT);
    ready(&home, 1).write_all(b"the other half\nckvmm: exit 7\n").unwrap();
    let log = home.join("c.ckvmm/n-1/console.log");
    retried(&log, || fs::read_to_string(&log).ok().filter(|log| log.contains("ckvmm: exit 7")));

    let mut network = Ckvmm::start(home.path(), ["network", "adopt"]);
    assert_eq!(network.wait(LIMIT), 7);
    assert_eq!(network.console.all(), ["half of it", "the other half"]);
}

#[test]
fn a_job_whose_node_turns_off_has_failed() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    write(&home);
    let mut network = Ckvmm::start(home.path(), ["network", "run", "net.json"]);
    ready(&home, 0);
    // What has no end is output, too; and the guest takes Ctrl-D for its end.
    ready(&home, 1).write_all(b"ckvmm: begin\nckvmm: ex\x04").unwrap();
    network.messages.expect("n-1: its VM ended, and did not say how the job did", LIMIT);
    assert_eq!(network.wait(LIMIT), 1);
    assert_eq!(network.console.all(), ["ckvmm: exCKVMM poweroff"]);
}
