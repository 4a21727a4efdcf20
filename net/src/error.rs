//! The crate's one error type: each variant names the interface, link or cut and what to do about it.

use std::io;

use crate::packet::{Colour, Node};

/// What can go wrong between a guest and the world.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name cannot be that of a network interface.
    #[error(
        "TAP {name:?}: not the name of a network interface; use 1 to 15 characters, without blanks, '/', ':' or '%'"
    )]
    Name {
        /// The name as it was given.
        name: String,
    },
    /// There is no interface of that name. It is not made on the fly: a TAP that vanishes with its process cannot be
    /// part of a bridge or keep its address across a restore.
    #[error(
        "TAP {name}: no such interface; make it with: ip tuntap add dev {name} mode tap && ip link set dev {name} up"
    )]
    Missing {
        /// The interface's name.
        name: String,
    },
    /// Somebody else holds the interface.
    #[error("TAP {name}: in use by another process; end that process or name another TAP")]
    Busy {
        /// The interface's name.
        name: String,
    },
    /// The interface belongs to another user.
    #[error(
        "TAP {name}: permission denied; run as root, or make the TAP for this user: \
         ip tuntap add dev {name} mode tap user \"$(id -un)\""
    )]
    Denied {
        /// The interface's name.
        name: String,
    },
    /// The interface exists and is something else.
    #[error("TAP {name}: this interface is not a TAP with one queue; make one with: ip tuntap add dev NAME mode tap")]
    NotATap {
        /// The interface's name.
        name: String,
    },
    /// The host has no TUN/TAP driver, or hides it.
    #[error("TAP {name}: cannot open /dev/net/tun: {source}; load the driver with: modprobe tun")]
    NoDriver {
        /// The interface's name.
        name: String,
        /// Why the device node cannot be opened.
        source: io::Error,
    },
    /// Anything else that the kernel refuses.
    #[error(
        "TAP {name}: cannot {what}: {source}; the host's kernel must support TAP with virtio headers (Linux 2.6.32)"
    )]
    Kernel {
        /// The interface's name.
        name: String,
        /// What was asked.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Bytes on a link are no packet.
    #[error("packet on a link: {what}; both ends must be the same ckvmm")]
    Packet {
        /// In which way.
        what: &'static str,
    },
    /// A peer does what no peer does.
    #[error("link to node {peer}: {what}; both ends must be the same ckvmm, go back to the last checkpoint")]
    Link {
        /// The node at its other end.
        peer: Node,
        /// What it did.
        what: &'static str,
    },
    /// A port cannot be had.
    #[error("network port: {source}; raise the limit of open files (ulimit -n)")]
    Port {
        /// The system's answer.
        source: io::Error,
    },
    /// A link's connection fails.
    #[error("link to node {peer}: {source}; go back to the last checkpoint")]
    Connection {
        /// The node at its other end.
        peer: Node,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is no log of frames.
    #[error("frames under way: {what}; restore another checkpoint")]
    Log {
        /// In which way.
        what: &'static str,
    },
    /// The coordinator has committed a cut that is not whole.
    #[error("cut {cut}: committed before it was whole here; do not use this checkpoint")]
    Coordinator {
        /// The cut.
        cut: Colour,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
