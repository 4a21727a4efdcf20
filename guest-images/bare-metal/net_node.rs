//! A node of `job=net`: what it makes of frames that come, and which frame it sends next. Pure: it is told the time,
//! and whoever has a card carries its frames.
//!
//! ```text
//! not heard of: a word, more and more rarely ─▶ heard of: numbered frames to each in turn ─▶ stopped: last words
//! ─▶ drained: everybody has said that it has all, and sends no more
//! ```
//!
//! Invariants:
//! - A node sends numbered frames to those only that it has heard of, and at most `window` more than the other says it
//!   has. So nothing is lost because a node has not begun, or because its queue is full: whatever is missing was lost
//!   on the way.
//! - Every frame but a broadcast says what its sender has sent and what it expects. A loss is seen by the next frame,
//!   whichever, and does not close the window for ever.
//! - Words that nobody answers become rarer, so that they fill no queue.

use crate::net_model::{EVERYBODY, Frame, Kind, MOST_NODES, SHORTEST, Table, Wrong, mac};

/// What a node is told to do. Times are in ticks of whatever clock it is given.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Nodes, this one included.
    pub nodes: u16,
    /// Its index.
    pub me: u16,
    /// Bytes of a numbered frame.
    pub bytes: usize,
    /// Numbered frames to a node, and broadcasts, that may be under way.
    pub window: u64,
    /// Between two numbered frames. 0: as fast as they go.
    pub period: u64,
    /// One in so many numbered frames is a broadcast. 0: none is.
    pub broadcast: u64,
    /// Between two words while somebody answers.
    pub rest: u64,
}

/// What a node knows of a conversation, and keeps no account of.
#[derive(Clone, Copy, Debug, Default)]
struct Talk {
    heard: bool,
    /// It has said that it sends no more.
    stopped: bool,
    /// What this node last told it to expect, of its frames and its broadcasts.
    told: [u64; 2],
    /// When that was, and how long after it the next word is due.
    at: u64,
    rest: u64,
}

#[derive(Debug)]
#[repr(C)]
pub struct Node {
    /// First, so that it stands where the node does.
    pub table: Table,
    plan: Plan,
    mac: [u8; 6],
    /// Whose turn it is.
    turn: usize,
    /// When the next numbered frame is due.
    due: u64,
    talks: [Talk; MOST_NODES],
}

/// The largest window with which all that may be under way to a node finds a place in a receive queue of so many.
pub fn window_for(nodes: u16, broadcast: bool, queue: u64) -> u64 {
    const LARGEST: u64 = 64;
    /// What a node may say to another one that does not answer.
    const WORDS: u64 = 8;
    let each = (queue / u64::from(nodes - 1).max(1)).saturating_sub(WORDS);
    (each / if broadcast { 2 } else { 1 }).clamp(1, LARGEST)
}

impl Node {
    /// A node with this MAC.
    pub fn new(plan: Plan, mac: [u8; 6]) -> Node {
        let talk = Talk { rest: plan.rest, ..Talk::default() };
        let table = Table::new(plan.nodes.into(), plan.me.into());
        Node { table, plan, mac, turn: 0, due: 0, talks: [talk; MOST_NODES] }
    }

    /// A frame has come.
    pub fn hear(&mut self, bytes: &[u8]) {
        let frame = match Frame::read(bytes) {
            Ok(frame) => frame,
            Err(Wrong::Foreign) => {
                self.table.foreign += 1;
                return;
            }
            Err(Wrong::Corrupt { sender }) => {
                match self.other(sender) {
                    Some(sender) => self.table.peers[sender].corrupt += 1,
                    None => self.table.corrupt += 1,
                }
                return;
            }
        };
        let all = frame.receiver == EVERYBODY;
        let (Some(sender), true) = (self.other(frame.sender), all || frame.receiver == self.plan.me) else {
            self.table.astray += 1;
            return;
        };
        let (peer, talk) = (&mut self.table.peers[sender], &mut self.talks[sender]);
        talk.heard = true;
        talk.rest = self.plan.rest;
        if all {
            peer.broadcasts.note(frame.number);
            return;
        }
        match frame.kind {
            Kind::Numbered => peer.stream.note(frame.number),
            Kind::Word => peer.stream.told(frame.number),
            Kind::LastWord => {
                peer.stream.told(frame.number);
                talk.stopped = true;
            }
        }
        peer.broadcasts.told(frame.broadcasts);
        if frame.expected > peer.sent || frame.expected_broadcast > self.table.broadcasts {
            self.table.ahead += 1;
            return;
        }
        peer.acknowledged = peer.acknowledged.max(frame.expected);
        peer.broadcasts_acknowledged = peer.broadcasts_acknowledged.max(frame.expected_broadcast);
    }

    /// Writes the next frame, if there is one to be sent now; its length.
    pub fn speak(&mut self, now: u64, to: &mut [u8]) -> Option<usize> {
        let nodes = usize::from(self.plan.nodes);
        if let Some(node) = (0..nodes).find(|node| self.owes_word(*node, now)) {
            return Some(self.word(node, now, to));
        }
        if self.table.stopped == 1 || now < self.due {
            return None;
        }
        let bytes = if self.broadcast_is_next() {
            self.broadcast(to)
        } else {
            // The turn of one that has much under way passes.
            let node = (0..nodes).map(|step| (self.turn + step) % nodes).find(|node| self.is_open(*node))?;
            self.turn = node + 1;
            self.numbered(node, now, to)
        };
        // What was missed, because the queue was full or the machine stood still, is made up for, but not more of it
        // than may be under way to one node.
        let Plan { period, window, .. } = self.plan;
        self.due = (self.due + period).max(now.saturating_sub(period * window));
        Some(bytes)
    }

    /// No numbered frames from now on.
    pub fn stop(&mut self) {
        self.table.stopped = 1;
        for talk in &mut self.talks {
            // Everybody is to know at once.
            talk.rest = 0;
        }
    }

    /// Whether all have said that they have what this node sent, and send no more: nothing is under way.
    pub fn drained(&self) -> bool {
        self.table.stopped == 1
            && self.table.others().all(|(node, peer)| {
                self.talks[node].stopped
                    && peer.acknowledged == peer.sent
                    && peer.broadcasts_acknowledged == self.table.broadcasts
            })
    }

    /// The index of another node.
    fn other(&self, node: u16) -> Option<usize> {
        (node < self.plan.nodes && node != self.plan.me).then_some(node.into())
    }

    fn expects(&self, node: usize) -> [u64; 2] {
        let peer = &self.table.peers[node];
        [peer.stream.next, peer.broadcasts.next]
    }

    /// It waits for leave to send more, or has heard nothing for long.
    fn owes_word(&self, node: usize, now: u64) -> bool {
        let talk = &self.talks[node];
        let half = self.plan.window.div_ceil(2);
        let waits = self.expects(node).into_iter().zip(talk.told).any(|(expects, told)| expects - told >= half);
        node != usize::from(self.plan.me) && (waits || now.wrapping_sub(talk.at) >= talk.rest)
    }

    fn is_open(&self, node: usize) -> bool {
        let peer = &self.table.peers[node];
        let under_way = peer.sent - peer.acknowledged;
        node != usize::from(self.plan.me) && self.talks[node].heard && under_way < self.plan.window
    }

    fn broadcast_is_next(&self) -> bool {
        let Table { broadcasts, .. } = self.table;
        self.plan.broadcast > 0
            && broadcasts * self.plan.broadcast <= self.table.sent()
            && self.table.others().all(|(node, peer)| {
                self.talks[node].heard && broadcasts - peer.broadcasts_acknowledged < self.plan.window
            })
    }

    fn frame(&self, node: u16, kind: Kind, number: u64) -> Frame {
        let Plan { me, .. } = self.plan;
        Frame {
            destination: mac(self.mac, me, node),
            source: self.mac,
            sender: me,
            receiver: node,
            kind,
            number,
            expected: 0,
            expected_broadcast: 0,
            broadcasts: self.table.broadcasts,
        }
    }

    fn broadcast(&mut self, to: &mut [u8]) -> usize {
        let frame = self.frame(EVERYBODY, Kind::Numbered, self.table.broadcasts);
        frame.write(&mut to[..self.plan.bytes]);
        self.table.broadcasts += 1;
        self.plan.bytes
    }

    fn numbered(&mut self, node: usize, now: u64, to: &mut [u8]) -> usize {
        let bytes = self.plan.bytes;
        self.say(node, Kind::Numbered, now, &mut to[..bytes]);
        self.table.peers[node].sent += 1;
        bytes
    }

    fn word(&mut self, node: usize, now: u64, to: &mut [u8]) -> usize {
        let kind = if self.table.stopped == 1 { Kind::LastWord } else { Kind::Word };
        let rest = self.talks[node].rest;
        self.say(node, kind, now, &mut to[..SHORTEST]);
        self.talks[node].rest = rest.saturating_mul(4).max(self.plan.rest);
        SHORTEST
    }

    fn say(&mut self, node: usize, kind: Kind, now: u64, to: &mut [u8]) {
        let expects = self.expects(node);
        let [expected, expected_broadcast] = expects;
        let frame = self.frame(node as u16, kind, self.table.peers[node].sent);
        Frame { expected, expected_broadcast, ..frame }.write(to);
        self.talks[node].told = expects;
        self.talks[node].at = now;
    }
}
