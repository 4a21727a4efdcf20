//! Guests of the distribution's packages alone, as in its cloud images: what they know of their network cloud-init told
//! them.

use std::time::Duration;

use ckvmm_tests::{LIMIT, paths};
use serde_json::{Value, json};

use crate::{
    cluster::{Network, describe_as},
    vm::{Home, complaints},
};

const NODES: usize = 2;
/// systemd and cloud-init begin hundreds of programs, on an emulated processor.
const START: Duration = Duration::from_secs(1500);
/// What the job counts to.
const END: u32 = 240;

/// A VM that boots as the distribution would have it.
fn stock() -> Value {
    let file = |name: &str| paths::made("guest-stock", name, "guest-images/debian/stock");
    json!({
        "version": 1,
        "name": "t",
        "memory": "512MiB",
        "kernel": {
            "image": file("vmlinuz"),
            "initrd": file("initrd.img"),
            "cmdline": "console=ttyS0 root=/dev/vda ro",
        },
        "disks": [{ "id": "root", "path": file("root.raw") }],
        "checkpoint": { "dir": "checkpoints" },
    })
}

#[test]
#[ignore = "make soak: the start of two whole systems takes minutes in the lab"]
fn a_job_of_stock_guests_goes_on_over_its_ssh_although_both_nodes_died() {
    let home = Home::new();
    // It counts on the other node, by an ssh for which nobody was asked anything.
    let count = format!("i=0; while [ $i -lt {END} ]; do i=$((i + 1)); echo count $i; sleep 0.5; done; hostname");
    let script = "hostname; cat /etc/ckvmm/hostfile; ip -4 -o address show dev ckvmm0; ssh n-1 \"$0\"; exit 7";
    let job = json!({ "on": "n-0", "command": ["sh", "-c", script, count] });
    describe_as(&home, NODES, &stock(), &json!({ "job": job }));
    let network = Network::run(&home, NODES);
    let said = &network.supervisor.console;
    assert_eq!(said.next("the job's first line", START, |line| Some(line.to_owned())), "n-0");
    for line in ["n-0 slots=1", "n-1 slots=1", "10.77.0.1/24", "count 3"] {
        said.expect(line, LIMIT);
    }
    let checkpoint = network.checkpoint();
    let kept = counted(&said.all());
    network.kill9();

    let mut network = Network::restore(&home, &checkpoint, NODES, "again");
    assert_eq!(network.supervisor.wait(START), 7, "the job's status");
    let lines = network.supervisor.console.all();
    assert!(lines.contains(&"n-1".to_owned()), "the other node has said its name: {lines:?}");
    assert_eq!(counted(&lines), END);
    let first = lines.iter().find_map(|line| number(line)).unwrap();
    assert!(first > 3 && first <= kept + 1, "it went on where it was: {first} {kept}");
    for node in 0..NODES {
        let lines = network.said(node);
        assert!(complaints(&lines).is_empty(), "{:?}", complaints(&lines));
    }
}

fn number(line: &str) -> Option<u32> {
    line.strip_prefix("count ")?.parse().ok()
}

fn counted(lines: &[String]) -> u32 {
    lines.iter().rev().find_map(|line| number(line)).expect("the job has counted")
}
