//! Tests of net_node.rs: nodes on a network that can be told to lose what it carries.

use std::collections::VecDeque;

use super::*;
use crate::net_model::{LONGEST, Peer};

/// As many entries as a receive queue has.
const QUEUE: u64 = 256;
const REST: u64 = 1000;

struct Net {
    nodes: Vec<Node>,
    /// What is under way from each node to each.
    links: Vec<VecDeque<Vec<u8>>>,
    now: u64,
}

impl Net {
    fn new(nodes: u16, broadcast: u64, period: u64) -> Net {
        let window = window_for(nodes, broadcast > 0, QUEUE);
        let plan = Plan { nodes, me: 0, bytes: 100, window, period, broadcast, rest: REST };
        let first = [2, 0, 0, 0, 0, 0xfe];
        let node = |me| Node::new(Plan { me, ..plan }, mac(first, 0, me));
        let links = vec![VecDeque::new(); usize::from(nodes).pow(2)];
        Net { nodes: (0..nodes).map(node).collect(), links, now: 0 }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut VecDeque<Vec<u8>> {
        let nodes = self.nodes.len();
        &mut self.links[from * nodes + to]
    }

    /// The node says what it has to say now.
    fn speak(&mut self, from: usize) {
        let mut buffer = [0; LONGEST];
        while let Some(length) = self.nodes[from].speak(self.now, &mut buffer) {
            let bytes = buffer[..length].to_vec();
            let frame = Frame::read(&bytes).expect("it is as it was written");
            for to in (0..self.nodes.len()).filter(|to| *to != from) {
                if frame.receiver == EVERYBODY || usize::from(frame.receiver) == to {
                    assert!(frame.receiver == EVERYBODY || frame.destination == self.nodes[to].mac);
                    self.link(from, to).push_back(bytes.clone());
                }
            }
        }
    }

    /// The node hears all that is under way to it.
    fn hear(&mut self, to: usize) {
        for from in 0..self.nodes.len() {
            while let Some(frame) = self.link(from, to).pop_front() {
                self.nodes[to].hear(&frame);
            }
        }
    }

    /// What node 0 numbers for node 1, which has all that came before; it is taken off the link.
    fn taken(&mut self) -> Vec<Vec<u8>> {
        (1..self.nodes.len()).for_each(|node| self.speak(node));
        self.hear(0);
        self.speak(0);
        let mut taken: Vec<_> = self.link(0, 1).drain(..).collect();
        taken.retain(|bytes| Frame::read(bytes).is_ok_and(|frame| frame.kind == Kind::Numbered));
        taken
    }

    fn round(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.speak(node));
        (0..self.nodes.len()).for_each(|node| self.hear(node));
        self.now += REST / 8;
    }

    fn rounds(&mut self, rounds: usize) {
        (0..rounds).for_each(|_| self.round());
    }

    /// Lets all of them stop, and what is under way come.
    fn drain(&mut self) {
        self.nodes.iter_mut().for_each(Node::stop);
        let rounds = (0..1000).find(|_| {
            self.round();
            self.nodes.iter().all(Node::drained)
        });
        assert!(rounds.is_some(), "it does not end");
    }

    fn peer(&self, node: usize, of: usize) -> &Peer {
        &self.nodes[node].table.peers[of]
    }

    /// Every number that was sent has come once, or was lost: how many.
    fn lost(&self) -> u64 {
        let mut lost = 0;
        for (node, Node { table, .. }) in self.nodes.iter().enumerate() {
            for (from, peer) in table.others() {
                let sent = [self.peer(from, node).sent, self.nodes[from].table.broadcasts];
                for (stream, sent) in [peer.stream, peer.broadcasts].into_iter().zip(sent) {
                    assert_eq!((stream.received + stream.lost, stream.next), (sent, sent), "{from} to {node}");
                    lost += stream.lost;
                }
            }
        }
        lost
    }
}

#[test]
fn a_network_that_loses_nothing_has_no_gap() {
    for (nodes, broadcast) in [(2, 0), (2, 1), (3, 3), (12, 5), (MOST_NODES as u16, 0)] {
        let mut net = Net::new(nodes, broadcast, 0);
        net.rounds(100);
        net.drain();
        assert_eq!(net.lost(), 0);
        for Node { table, .. } in &net.nodes {
            assert_eq!([table.corrupt, table.astray, table.ahead, table.foreign], [0; 4]);
            assert_eq!(table.broadcasts > 0, broadcast > 0);
            assert!(table.others().all(|(_, peer)| broadcast == 1 || peer.sent > 100), "{nodes} {broadcast}");
        }
    }
}

#[test]
fn nothing_is_numbered_for_a_node_that_was_not_heard_of() {
    let mut net = Net::new(3, 2, 0);
    for _ in 0..50 {
        (0..2).for_each(|node| net.speak(node));
        (0..2).for_each(|node| net.hear(node));
        net.now += REST;
    }
    assert!(net.peer(0, 1).sent > 100);
    assert_eq!((net.peer(0, 2).sent, net.nodes[0].table.broadcasts), (0, 0));
    // What was said to it meanwhile is gone, and nobody misses it.
    (0..2).for_each(|node| net.link(node, 2).clear());
    net.rounds(50);
    net.drain();
    assert!(net.peer(0, 2).sent > 100);
    assert_eq!(net.lost(), 0);
}

#[test]
fn what_is_under_way_to_a_node_that_stands_still_has_a_place_in_its_queue() {
    for nodes in [2, 3, 7, 12] {
        for broadcast in [0, 1, 7] {
            let mut net = Net::new(nodes, broadcast, 0);
            net.rounds(20);
            // In ticks of the guest that is some 10 s.
            for _ in 0..50 {
                (1..nodes.into()).for_each(|node| net.speak(node));
                (1..nodes.into()).for_each(|node| net.hear(node));
                net.now += REST * 30;
            }
            let waiting: usize = (1..nodes.into()).map(|from| net.link(from, 0).len()).sum();
            assert!(waiting as u64 <= QUEUE, "{nodes} {broadcast}: {waiting}");
            net.drain();
            assert_eq!(net.lost(), 0);
        }
    }
}

#[test]
fn nothing_is_numbered_for_a_node_that_does_not_hear() {
    let mut net = Net::new(2, 2, 0);
    for _ in 0..50 {
        net.speak(1);
        net.hear(0);
        net.speak(0);
        net.link(0, 1).clear();
        net.now += REST;
    }
    assert_eq!((net.nodes[0].table.sent(), net.nodes[1].table.sent()), (0, 0));
    // Words have become rare.
    net.now += REST * 1000;
    net.rounds(50);
    net.drain();
    assert!(net.peer(0, 1).sent > 100);
    assert_eq!(net.lost(), 0);
}

/// Drops the frame that is the n-th to leave a node; whether it was numbered, and whether there was one.
fn drop_one(net: &mut Net, number: usize) -> Option<bool> {
    let mut left = number;
    loop {
        net.speak(0);
        let link = net.link(0, 1);
        if left < link.len() {
            let frame = Frame::read(&link.remove(left)?).expect("it is as it was written");
            return Some(frame.kind == Kind::Numbered);
        }
        left -= link.len();
        net.round();
    }
}

#[test]
fn the_loss_of_any_frame_is_seen_and_ends_nothing() {
    for broadcast in [0, 3] {
        for number in 0..150 {
            let mut net = Net::new(2, broadcast, 0);
            // Words and numbers take turns, then.
            net.nodes.iter_mut().for_each(|node| node.plan.window = 4);
            let numbered = drop_one(&mut net, number).expect("it is there");
            net.rounds(20);
            let sent = net.peer(0, 1).sent;
            net.rounds(20);
            assert!(net.peer(0, 1).sent > sent, "frame {number} was lost, and nothing goes any more");
            net.drain();
            assert_eq!(net.lost(), u64::from(numbered), "frame {number}");
        }
    }
}

#[test]
fn the_loss_of_the_last_frames_is_seen() {
    let mut net = Net::new(2, 2, 0);
    net.rounds(20);
    let numbered = net.taken().len() as u64;
    assert!(numbered > 1);
    net.drain();
    assert_eq!(net.lost(), numbered);
}

#[test]
fn doubles_latecomers_changes_and_strays_are_counted() {
    let mut net = Net::new(3, 0, 0);
    net.rounds(20);
    let numbered = net.taken();
    let [one, two, three, four, ..] = &numbered[..] else { panic!("too few: {}", numbered.len()) };
    let mut changed = four.clone();
    changed[80] ^= 1;
    net.link(0, 1).extend([two, one, two, three, &changed].map(Vec::clone));
    net.link(0, 2).push_back(one.clone());
    net.link(0, 1).push_back(vec![0; 60]);
    net.hear(1);
    net.hear(2);
    let peer = net.peer(1, 0);
    assert_eq!([peer.stream.duplicated, peer.stream.reordered, peer.stream.lost, peer.corrupt], [1, 1, 0, 1]);
    assert_eq!((net.nodes[1].table.foreign, net.nodes[2].table.astray), (1, 1));
    net.rounds(2);
    // What was taken off the link, and what was changed.
    assert_eq!(net.peer(1, 0).stream.lost, numbered.len() as u64 - 3);
}

#[test]
fn a_node_that_was_put_back_alone_is_found() {
    let mut net = Net::new(2, 0, 0);
    net.rounds(20);
    let mut other = Net::new(2, 0, 0);
    other.rounds(10);
    net.nodes[0] = other.nodes.remove(0);
    net.rounds(2);
    assert!(net.nodes[0].table.ahead > 0, "it is told that what it has not sent has come");
    assert!(net.peer(1, 0).stream.duplicated > 0);
}

#[test]
fn a_pace_is_kept_and_made_up_for_within_bounds() {
    let mut net = Net::new(2, 4, REST);
    net.rounds(8 * 100);
    let sent = net.nodes[0].table.sent();
    assert!((95..=101).contains(&sent), "{sent}");
    net.now += REST * 10_000;
    net.round();
    let more = net.nodes[0].table.sent() - sent;
    assert!((60..=66).contains(&more), "{more}");
}
