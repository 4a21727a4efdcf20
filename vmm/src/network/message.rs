//! What supervisor and members say to each other, as JSON, a message each.

use std::path::PathBuf;
use std::time::Duration;

use ckvmm_net::{Colour, coordinator};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::Id;

/// Which place a VM has in its network. Its links come with it, in the order of `peers`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The number of the node.
    pub me: u16,
    /// The network's life.
    pub incarnation: u64,
    /// The card that is in the network.
    pub nic: Id,
    /// All cards of the network, by node.
    pub macs: Vec<[u8; 6]>,
    /// The nodes that there are links to.
    pub peers: Vec<u16>,
    /// The directory of the network's checkpoints.
    pub store: PathBuf,
    /// The number of the checkpoint in it that comes before the first cut.
    pub before: u64,
    /// What this VM's part of a checkpoint is called.
    pub node: Id,
    /// Whether the network's cards offer offloads.
    pub offloads: bool,
}

/// From the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToMember {
    /// The first message, with the links.
    Place(Box<Place>),
    /// All are ready: run. Of the time that has passed since a guest was cut, its clocks do not see so many nanoseconds.
    Go {
        /// The same for all.
        less_ns: i64,
    },
    /// Take this cut.
    Cut(u64),
    /// It is a checkpoint.
    Committed(u64),
    /// It is none.
    Aborted(u64),
    /// How far is your part of the cut? One question at a time.
    HowFar,
    /// This becomes of what comes over the link to that node.
    Fault(u16, Fault),
    /// With a descriptor of a file: what goes over the link to that node, or over all links, is captured to it. Without:
    /// nothing is captured any more.
    Capture(Option<u16>),
}

/// What goes wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Packets take their time: microseconds, least and most, and what is drawn follows from the seed.
    Delay(u64, u64, u64),
    /// They stay.
    Hold,
    /// The connection ends.
    Break,
}

/// From a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromMember {
    /// It has its machine, its links and its preloaded frames.
    Ready,
    /// Its part of this cut is whole and on the disk.
    Prepared(u64, Part),
    /// It has no part in this cut to give.
    Failed(u64, String),
    /// The answer to how far it is, if it is at work.
    SoFar(Option<SoFar>),
    /// Its guest is off, and it had this colour.
    Left(u64),
    /// It has given up the link to that node: what was under way on it is lost.
    LinkBroken(u16),
}

/// How far a member's part of a cut is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoFar {
    /// What it does just now.
    pub phase: String,
    /// Bytes done in this phase.
    pub done_bytes: u64,
    /// Bytes to do in this phase; 0: not known.
    pub total_bytes: u64,
    /// Bytes of the image that its guest runs from that were compared, for which its part may have to wait.
    pub verified_bytes: u64,
}

/// A member's part of a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// When its guest was cut, by its host's wall clock.
    pub created: Timestamp,
    /// Bytes of RAM that were written.
    pub written_bytes: u64,
    /// How long the guest stood still.
    pub pause_us: u64,
    /// What of that its VMM was at work, and did not wait for a CPU.
    pub pause_cpu_us: u64,
    /// Frames that were under way to it at the cut.
    pub logged_frames: u64,
    /// Packets so far that were held until a cut was taken.
    pub held_packets: u64,
    /// Frames until the cut that found its guest's queue full, or do so of what was under way to it.
    pub dropped_frames: u64,
    /// How often so far its guest waited, since a link was full.
    #[serde(default)]
    pub waits: u64,
}

impl Place {
    /// Where this VM's part of a cut goes.
    pub fn directory(&self, cut: Colour) -> PathBuf {
        super::store::directory(&self.store, self.before, cut).join(&*self.node)
    }
}

impl From<Fault> for ckvmm_net::Fault {
    fn from(fault: Fault) -> Self {
        let time = Duration::from_micros;
        match fault {
            Fault::Delay(least, most, seed) => ckvmm_net::Fault::Delay { least: time(least), most: time(most), seed },
            Fault::Hold => ckvmm_net::Fault::Hold,
            Fault::Break => ckvmm_net::Fault::Break,
        }
    }
}

impl ToMember {
    /// A message of the coordinator's; `less_ns` goes with the one to go.
    pub fn new(message: coordinator::ToMember, less_ns: i64) -> Self {
        match message {
            coordinator::ToMember::Go => ToMember::Go { less_ns },
            coordinator::ToMember::Cut(cut) => ToMember::Cut(cut.0),
            coordinator::ToMember::Committed(cut) => ToMember::Committed(cut.0),
            coordinator::ToMember::Aborted(cut) => ToMember::Aborted(cut.0),
        }
    }
}
