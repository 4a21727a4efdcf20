//! Debian guests in a network, checkpointed in one instant and killed while they talk to each other.

use ckvmm_tests::{
    LIMIT,
    console::value,
    process::{self, Ckvmm},
};
use serde_json::json;

use crate::{
    cluster::{Network, describe},
    vm::{Home, complaints},
};

const NODES: usize = 3;
/// Thousands of numbers that are added up.
const THOUSANDS: u64 = 60;

/// How many parts of the sum node 0 says that it has got.
fn received(line: &str) -> Option<u64> {
    value(line.strip_prefix("CKVMM sum ")?, "received")?.parse().ok()
}

/// Some word of each node that only its running program knows.
fn nonces(network: &Network<'_>) -> Vec<String> {
    let nonce = |node| network.said(node).iter().rev().find_map(|line| value(line, "nonce").map(str::to_owned));
    (0..NODES).map(|node| nonce(node).expect("each node has begun")).collect()
}

#[test]
fn a_job_runs_on_its_node_which_knows_all_others() {
    let home = Home::new();
    let script = "hostname; until ping -c 1 -W 1 n-0 >/dev/null 2>&1; do :; done; echo \"$0|$1\"; exit 7";
    let job = json!({ "on": "n-1", "command": ["sh", "-c", script, "two  words, 100%", "é"] });
    describe(&home, 2, "command", &json!({ "job": job }));
    let mut network = Ckvmm::start(home.path(), ["network", "run", "net.json"]);
    assert_eq!(network.wait(LIMIT), 7);
    assert_eq!(network.console.all(), ["n-1", "two  words, 100%|é", "CKVMM job=command ended status=7"]);
}

#[test]
#[ignore = "make soak: the lab has one CPU for three guests and their writers"]
fn a_sum_over_tcp_comes_out_right_although_all_of_its_nodes_died_in_the_middle() {
    let home = Home::new();
    let network = Network::up(&home, NODES, &format!("sum ckvmm.thousands={THOUSANDS} ckvmm.interval=0.3"));
    let enough = |line: &str| received(line).filter(|parts| *parts >= THOUSANDS / 4);
    let before = network.consoles[0].next("a fourth of the parts", LIMIT, enough);
    let checkpoint = network.checkpoint();
    let kept = network.said(0).iter().rev().find_map(|line| received(line)).unwrap();
    let before_the_crash = nonces(&network);
    network.kill9();

    let mut network = Network::restore(&home, &checkpoint, NODES, "again");
    let answer = network.consoles[0].expect("CKVMM sum answer=", LIMIT);
    assert!(answer.ends_with(" right"), "{answer}");
    let down = process::run(home.path(), ["network", "down", "--state", "again"]);
    assert!(down.status.success(), "{down:?}");
    assert_eq!(network.supervisor.wait(LIMIT), 0, "all guests have shut down");
    let went_on = network.said(0).iter().find_map(|line| received(line)).unwrap();
    assert!(went_on > before && went_on <= kept + 1, "{before} {went_on} {kept}");
    assert_eq!(nonces(&network), before_the_crash, "the same programs went on");
    for node in 0..NODES {
        let lines = network.said(node);
        assert!(complaints(&lines).is_empty(), "{:?}", complaints(&lines));
    }
}
