//! What the nodes of `job=net` send each other, and how each keeps account of it: one description for the guest and for
//! whoever plays a node or checks a guest's memory, as model.rs is for its RAM.
//!
//! ```text
//! a frame:  (little-endian, but for the Ethernet header; net_node.rs says when it is sent)
//!   0  to whom, MAC         6  from whom, MAC      12  0x88b5
//!  14  bytes of the frame  16  sender's index      18  receiver's index, 0xffff: everybody    20  kind u32
//!  24  number: of a numbered frame, its own; of a word, that of the next numbered frame to this receiver
//!  32  next number that the sender expects of the receiver     40  the same of the receiver's broadcasts
//!  48  number of the sender's next broadcast                   56  pattern, to the end: follows from bytes 0 to 55
//!
//! a table, at the address that model.rs' header calls the arena's: `Table`, as words of 8 bytes
//! ```
//!
//! Invariants:
//! - From each sender to each receiver goes one stream of frames, numbered 0, 1, 2, …, and another one to everybody.
//! - A node's MAC is that of its network's node 0, its index added to the number in the last two bytes.
//! - No bit of a frame can change unseen: those before the pattern decide what the pattern must be.

use crate::model::value;

/// For local experiments.
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Bytes of a frame.
pub const SHORTEST: usize = 64;
pub const LONGEST: usize = 1514;
/// Nodes of a network: what their account is fits into a page.
pub const MOST_NODES: usize = 24;
/// The index of all nodes.
pub const EVERYBODY: u16 = 0xffff;

const BROADCAST: [u8; 6] = [0xff; 6];
const PATTERN: usize = 56;

/// The MAC of node `node`, of node `me`'s.
pub fn mac(mine: [u8; 6], me: u16, node: u16) -> [u8; 6] {
    let [a, b, c, d, e, f] = mine;
    let [e, f] = u16::from_be_bytes([e, f]).wrapping_sub(me).wrapping_add(node).to_be_bytes();
    if node == EVERYBODY { BROADCAST } else { [a, b, c, d, e, f] }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// One of a stream.
    Numbered = 0x6d75_6e01,
    /// Says only what its sender has sent and expects.
    Word = 0x6d75_6e02,
    /// A word of a sender that sends no more numbered frames.
    LastWord = 0x6d75_6e03,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub sender: u16,
    pub receiver: u16,
    pub kind: Kind,
    pub number: u64,
    /// The next number that is expected of the receiver, and of its broadcasts.
    pub expected: u64,
    pub expected_broadcast: u64,
    /// The number of the sender's next broadcast.
    pub broadcasts: u64,
}

/// Why something is no frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It says itself that it is none.
    Foreign,
    /// It is not as it was sent. The sender is what it says, so may be wrong too.
    Corrupt { sender: u16 },
}

impl Frame {
    /// Fills `to`, which is as long as the frame is to be.
    pub fn write(&self, to: &mut [u8]) {
        let Frame { destination, source, sender, receiver, kind, .. } = *self;
        to[..6].copy_from_slice(&destination);
        to[6..12].copy_from_slice(&source);
        to[12..14].copy_from_slice(&ETHERTYPE);
        let length = to.len() as u16;
        for (at, half) in [(14, length), (16, sender), (18, receiver)] {
            to[at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        to[20..24].copy_from_slice(&(kind as u32).to_le_bytes());
        let numbers = [self.number, self.expected, self.expected_broadcast, self.broadcasts];
        for (word, number) in to[24..PATTERN].chunks_exact_mut(8).zip(numbers) {
            word.copy_from_slice(&number.to_le_bytes());
        }
        let key = key(to);
        for (word, piece) in (0..).zip(to[PATTERN..].chunks_mut(8)) {
            piece.copy_from_slice(&value(key, word).to_le_bytes()[..piece.len()]);
        }
    }

    /// What [`Frame::write`] has written.
    pub fn read(bytes: &[u8]) -> Result<Frame, Wrong> {
        if bytes.get(12..14) != Some(&ETHERTYPE) {
            return Err(Wrong::Foreign);
        }
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let corrupt = Wrong::Corrupt { sender: if bytes.len() < 18 { EVERYBODY } else { half(16) } };
        if bytes.len() < SHORTEST || usize::from(half(14)) != bytes.len() {
            return Err(corrupt);
        }
        let key = key(bytes);
        for (word, piece) in (0..).zip(bytes[PATTERN..].chunks(8)) {
            if *piece != value(key, word).to_le_bytes()[..piece.len()] {
                return Err(corrupt);
            }
        }
        let kind = u32::from(half(20)) | u32::from(half(22)) << 16;
        let kinds = [Kind::Numbered, Kind::Word, Kind::LastWord];
        let Some(kind) = kinds.into_iter().find(|known| *known as u32 == kind) else { return Err(corrupt) };
        let mac = |at: usize| core::array::from_fn(|byte| bytes[at + byte]);
        Ok(Frame {
            destination: mac(0),
            source: mac(6),
            sender: half(16),
            receiver: half(18),
            kind,
            number: word(bytes, 24),
            expected: word(bytes, 32),
            expected_broadcast: word(bytes, 40),
            broadcasts: word(bytes, 48),
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(core::array::from_fn(|byte| bytes[at + byte]))
}

/// What decides the pattern.
fn key(bytes: &[u8]) -> u64 {
    (0..PATTERN / 8).fold(0, |key, at| value(key ^ word(bytes, at * 8), at as u64))
}

/// What has come of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stream {
    /// Numbers that have come.
    pub received: u64,
    /// Numbers that have not, though later ones were sent.
    pub lost: u64,
    /// Frames with a number that had come, or that is too old to tell.
    pub duplicated: u64,
    /// Numbers that came after later ones.
    pub reordered: u64,
    /// One more than the highest number that is known to have been sent.
    pub next: u64,
    /// Whether the 64 numbers before it have come; bit 0 is the highest.
    pub seen: u64,
}

impl Stream {
    /// A numbered frame has come.
    pub fn note(&mut self, number: u64) {
        if number >= self.next {
            self.told(number);
            self.seen = self.seen << 1 | 1;
            self.next = number.wrapping_add(1);
            self.received += 1;
            return;
        }
        let back = self.next - 1 - number;
        if back < 64 && self.seen & 1 << back == 0 {
            self.seen |= 1 << back;
            self.lost = self.lost.saturating_sub(1);
            self.reordered += 1;
            self.received += 1;
        } else {
            self.duplicated += 1;
        }
    }

    /// The sender has sent the numbers below `next`.
    pub fn told(&mut self, next: u64) {
        if next > self.next {
            let missing = next - self.next;
            self.lost = self.lost.wrapping_add(missing);
            self.seen = if missing < 64 { self.seen << missing } else { 0 };
            self.next = next;
        }
    }
}

/// A node's account of another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Peer {
    /// What has come from it.
    pub stream: Stream,
    pub broadcasts: Stream,
    /// Frames that say that they are of it, and are not as they were sent.
    pub corrupt: u64,
    /// The number of the next frame to it.
    pub sent: u64,
    /// The next number that it expects, and of broadcasts.
    pub acknowledged: u64,
    pub broadcasts_acknowledged: u64,
}

/// A node's account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    pub nodes: u64,
    /// The index of the node itself.
    pub me: u64,
    /// The number of its next broadcast.
    pub broadcasts: u64,
    /// 1 if it sends no more numbered frames.
    pub stopped: u64,
    /// Frames that are not as they were sent, their sender unknown.
    pub corrupt: u64,
    /// Frames that were for another node.
    pub astray: u64,
    /// Frames that acknowledge what was never sent.
    pub ahead: u64,
    /// Frames that are not of ours.
    pub foreign: u64,
    /// By index; its own entry stays empty.
    pub peers: [Peer; MOST_NODES],
}

impl Table {
    /// Bytes of a table.
    pub const BYTES: usize = size_of::<Table>();

    pub fn new(nodes: u64, me: u64) -> Table {
        let peers = [Peer::default(); MOST_NODES];
        Table { nodes, me, broadcasts: 0, stopped: 0, corrupt: 0, astray: 0, ahead: 0, foreign: 0, peers }
    }

    /// The table in these bytes of a guest's memory.
    ///
    /// # Panics
    /// If they are fewer than [`Table::BYTES`].
    pub fn parse(bytes: &[u8]) -> Table {
        let mut at = 0;
        let mut next = || {
            at += 8;
            word(bytes, at - 8)
        };
        let mut table = Table::new(next(), next());
        for field in [
            &mut table.broadcasts,
            &mut table.stopped,
            &mut table.corrupt,
            &mut table.astray,
            &mut table.ahead,
            &mut table.foreign,
        ] {
            *field = next();
        }
        for peer in &mut table.peers {
            for stream in [&mut peer.stream, &mut peer.broadcasts] {
                let Stream { received, lost, duplicated, reordered, next: after, seen } = stream;
                for field in [received, lost, duplicated, reordered, after, seen] {
                    *field = next();
                }
            }
            let Peer { stream: _, broadcasts: _, corrupt, sent, acknowledged, broadcasts_acknowledged } = peer;
            for field in [corrupt, sent, acknowledged, broadcasts_acknowledged] {
                *field = next();
            }
        }
        table
    }

    /// The other nodes, with their indexes.
    pub fn others(&self) -> impl Iterator<Item = (usize, &Peer)> {
        let me = self.me as usize;
        self.peers.iter().enumerate().take(self.nodes as usize).filter(move |(node, _)| *node != me)
    }

    /// Numbered frames sent to others, and to everybody.
    pub fn sent(&self) -> u64 {
        self.broadcasts + self.others().map(|(_, peer)| peer.sent).sum::<u64>()
    }
}
