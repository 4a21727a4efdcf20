//! Debian guests that send each other numbered frames, datagrams and TCP streams, checkpointed in one instant. When they
//! are not in a hurry, what they send has a place where it goes, and if something is missing, a checkpoint has lost it; at
//! full speed it may also be where its guest had no room for it, and then it was counted there.

use std::{fs, time::Instant};

use ckvmm_tests::{LIMIT, console::value, pcap::frames_of};
use serde_json::Value;

use crate::{
    cluster::Network,
    vm::{Home, complaints},
};

const NODES: usize = 3;
/// Checkpoints in each life; each but the last life ends with kill -9.
const CUTS: usize = 3;
const LIVES: usize = 3;
/// A frame of the network's MTU, 1500.
const ETHERNET_BYTES_MAX: usize = 1514;

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

/// Ends it, and returns what each node says: of each way from each other node, and then of TCP and its own sockets.
/// Whatever is missing, nothing came twice, too late or changed.
fn accounts(network: &mut Network<'_>) -> Vec<(Vec<String>, String)> {
    let nodes = 0..network.consoles.len();
    nodes.clone().for_each(|node| network.type_line(node, "x"));
    let account = |node: usize| {
        let last = network.consoles[node].expect("CKVMM traffic final", LIMIT);
        let said = network.said(node);
        let ways: Vec<String> = said.iter().filter(|line| line.starts_with("CKVMM traffic from=")).cloned().collect();
        println!("node {node}: {ways:#?}\n{last}");
        assert_eq!(ways.len(), 3 * (network.consoles.len() - 1), "three ways from each other node");
        for line in &ways {
            for trouble in ["duplicated", "reordered", "corrupt"] {
                assert!(value(line, trouble).is_none_or(|count| count == "0"), "{line}");
            }
        }
        assert!(complaints(&said).is_empty(), "{:?}", complaints(&said));
        (ways, last)
    };
    nodes.map(account).collect()
}

/// Frames and datagrams that are missing, of these ways.
fn lost(ways: &[String]) -> u64 {
    ways.iter().filter_map(|line| value(line, "lost")).map(|lost| lost.parse::<u64>().unwrap()).sum()
}

/// By node: frames that its guest's queue had no room for, in this life until the last cut.
fn dropped(network: &Network<'_>) -> Vec<u64> {
    let status: Value = serde_json::from_str(&network.ask(&["status", "--json"])).unwrap();
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes.map(|node| node["last_part"]["dropped_frames"].as_u64().unwrap()).collect()
}

/// Bytes of the largest frame that goes over a link meanwhile.
fn largest_frame(home: &Home, network: &Network<'_>) -> usize {
    let file = home.path().join("one.pcap");
    network.ask(&["capture", "n-0:n-1", file.to_str().unwrap()]);
    goes_on(network);
    network.ask(&["capture", "n-0:n-1"]);
    frames_of(&fs::read(file).unwrap()).iter().map(|frame| frame.len()).max().unwrap()
}

/// Checkpoints it, and kills and restores it, as often as it is to live. Returns its last life, and what was dropped, by
/// node, in those before.
fn lives<'a>(home: &'a Home, mut network: Network<'a>) -> (Network<'a>, Vec<u64>) {
    let nodes = network.consoles.len();
    let mut counted = vec![0; nodes];
    for life in 1..=LIVES {
        let mut checkpoint = String::new();
        for _ in 0..CUTS {
            checkpoint = network.checkpoint();
            goes_on(&network);
        }
        if life < LIVES {
            counted.iter_mut().zip(dropped(&network)).for_each(|(all, more)| *all += more);
            network.kill9();
            network = Network::restore(home, &checkpoint, nodes, &format!("life-{life}"));
            goes_on(&network);
        }
    }
    (network, counted)
}

#[test]
#[ignore = "make soak: in the lab a checkpoint of busy guests takes a minute"]
fn nothing_is_lost_between_three_guests_and_tcp_sends_nothing_twice() {
    let home = Home::new();
    let network = Network::up(&home, NODES, "traffic ckvmm.rate=5");
    goes_on(&network);
    let (mut network, _) = lives(&home, network);
    for (ways, last) in accounts(&mut network) {
        assert_eq!(lost(&ways), 0);
        for line in ways {
            assert!(value(&line, "sent").is_none_or(|sent| Some(sent) == value(&line, "received")), "{line}");
        }
        assert_eq!((value(&last, "retransmitted"), value(&last, "dropped")), (Some("0"), Some("0")), "{last}");
    }
}

#[test]
#[ignore = "make soak: in the lab a checkpoint of busy guests takes a minute"]
fn at_full_speed_what_is_missing_was_counted_and_tcp_travels_unsegmented() {
    const NODES: usize = 2;
    let home = Home::new();
    let network = Network::up(&home, NODES, "traffic ckvmm.rate=0");
    goes_on(&network);
    let largest = largest_frame(&home, &network);
    // How much TCP hands over at a time follows from how fast it can send.
    assert!(largest > ETHERNET_BYTES_MAX, "{largest} bytes: TCP is segmented on its way");
    let (mut network, mut counted) = lives(&home, network);
    let ends = accounts(&mut network);
    // It takes a cut to learn what was counted.
    network.checkpoint();
    counted.iter_mut().zip(dropped(&network)).for_each(|(all, more)| *all += more);
    for ((ways, last), counted) in ends.iter().zip(counted) {
        let full: u64 = value(last, "dropped").unwrap().parse().unwrap();
        assert!(lost(ways) <= counted + full, "{ways:?}: {counted} by the card, {full} by sockets");
    }
}
