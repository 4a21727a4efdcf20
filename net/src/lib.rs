//! What connects a guest's network card to the world. For now: a TAP interface of the host.
//!
//! Invariant: a packet is bytes here. Nothing in this crate sees guest memory, KVM or virtqueues; what a frame looks
//! like on its way is in [`link`].

mod error;
pub mod link;
mod tap;

pub use error::{Error, Result};
pub use link::{Link, Offloads};
pub use tap::Tap;
