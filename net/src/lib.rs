//! What connects a guest's network card to the world: a TAP interface of the host, or the other VMs of its network.
//!
//! ```text
//! card ─ Link ─ TAP                                 an uplink
//! card ─ Port (Switch, Cut) ─ packets ─ Port ─ card      a network: each VMM has a Transport to each other
//!               └── Coordinator ──┘                   checkpoints of all of it
//! ```
//!
//! Invariant: a packet is bytes here. Nothing in this crate sees guest memory, KVM or virtqueues; what a frame looks
//! like on its way is in [`link`] and [`wire`]. What decides is pure, and does not even look at the bytes.

pub mod capture;
pub mod coordinator;
pub mod cut;
mod error;
pub mod link;
pub mod log;
pub mod packet;
pub mod port;
pub mod switch;
mod tap;
pub mod transport;
pub mod wire;

pub use capture::Capture;
pub use coordinator::Coordinator;
pub use cut::Cut;
pub use error::{Error, Result};
pub use link::{Link, Offloads};
pub use packet::{Colour, Content, Incarnation, Node, Packet, Payload};
pub use port::{Fault, LinkCounters, Port};
pub use switch::{Route, Switch};
pub use tap::Tap;
pub use transport::{SeqPacket, Transport};
