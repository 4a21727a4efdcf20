//! Debian guests that send each other numbered frames, datagrams and TCP streams, checkpointed in one instant. They are not
//! in a hurry: what they send has a place where it goes, and if something is missing, a checkpoint has lost it.

use std::time::Instant;

use ckvmm_tests::{LIMIT, console::value};

use crate::{
    cluster::Network,
    vm::{Home, complaints},
};

const NODES: usize = 3;
/// Checkpoints in each life; each but the last life ends with kill -9.
const CUTS: usize = 3;
const LIVES: usize = 3;

/// What a node has received so far, as it says now.
fn received(network: &Network<'_>, node: usize) -> u64 {
    let lines = &network.consoles[node];
    lines.skip();
    lines.next("received", LIMIT, |line| value(line.strip_prefix("CKVMM traffic ")?, "received")?.parse().ok())
}

/// Waits until each node gets more than it had got.
fn goes_on(network: &Network<'_>) {
    let nodes = 0..network.consoles.len();
    let before: Vec<u64> = nodes.clone().map(|node| received(network, node)).collect();
    let deadline = Instant::now() + LIMIT;
    for node in nodes {
        while received(network, node) == before[node] {
            assert!(Instant::now() < deadline, "nothing comes to node {node}");
        }
    }
}

/// Ends it; nothing is missing, and nothing was sent twice.
fn ends_whole(network: &mut Network<'_>) {
    let nodes = 0..network.consoles.len();
    nodes.clone().for_each(|node| network.type_line(node, "x"));
    for node in nodes {
        let last = network.consoles[node].expect("CKVMM traffic final", LIMIT);
        let said = network.said(node);
        let accounts: Vec<&String> = said.iter().filter(|line| line.starts_with("CKVMM traffic from=")).collect();
        println!("node {node}: {accounts:#?}\n{last}");
        assert_eq!(accounts.len(), 3 * (network.consoles.len() - 1), "three ways from each other node");
        for line in accounts {
            for trouble in ["lost", "duplicated", "reordered", "corrupt"] {
                assert!(value(line, trouble).is_none_or(|count| count == "0"), "{line}");
            }
            assert!(value(line, "sent").is_none_or(|sent| Some(sent) == value(line, "received")), "{line}");
        }
        assert_eq!((value(&last, "retransmitted"), value(&last, "dropped")), (Some("0"), Some("0")), "{last}");
        assert!(complaints(&said).is_empty(), "{:?}", complaints(&said));
    }
}

#[test]
#[ignore = "make soak: in the lab a checkpoint of busy guests takes a minute"]
fn nothing_is_lost_between_three_guests_and_tcp_sends_nothing_twice() {
    let home = Home::new();
    let mut network = Network::up(&home, NODES, "traffic ckvmm.rate=5");
    goes_on(&network);
    for life in 1..=LIVES {
        let mut checkpoint = String::new();
        for _ in 0..CUTS {
            checkpoint = network.checkpoint();
            goes_on(&network);
        }
        if life < LIVES {
            network.kill9();
            network = Network::restore(&home, &checkpoint, NODES, &format!("life-{life}"));
            goes_on(&network);
        }
    }
    ends_whole(&mut network);
}
