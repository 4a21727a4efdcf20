//! A link: the far end of a network card's cable, and the form in which frames travel on it.
//!
//! ```text
//! each frame    +----------------------------+---------------------------+
//!               | struct virtio_net_hdr_v1   | Ethernet frame            |
//!               | 12 bytes, little-endian    | 14 bytes and more         |
//!               +----------------------------+---------------------------+
//! ```
//!
//! The header (virtio 1.2 §5.1.6) carries checksum and segmentation offload both ways. Its `num_buffers` belongs to the
//! card; a link neither fills nor reads it.
//!
//! Invariant: a link never blocks. "No frame waits" and "no room now" are [`io::ErrorKind::WouldBlock`].

use std::io;
use std::os::fd::AsRawFd;

use crate::Result;

/// Bytes of the header in front of each frame, both ways (`struct virtio_net_hdr_v1`).
pub const HEADER_BYTES: usize = 12;

/// The largest thing a read returns: the header, an Ethernet header with two VLAN tags, and 64 KiB of a packet.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + 14 + 8 + 65_536;

/// What the card at the other end can take in the frames that it reads. All off: whole packets with checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be missing. The others need this one.
    pub checksum: bool,
    /// TCP over IPv4 may come unsegmented.
    pub tso4: bool,
    /// TCP over IPv6 may come unsegmented.
    pub tso6: bool,
}

/// What a card is connected to. Its descriptor becomes readable when a frame has come.
pub trait Link: AsRawFd + Send {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// The largest packet that it carries, in bytes, without the Ethernet header.
    ///
    /// # Errors
    /// The link is gone.
    fn mtu(&self) -> Result<u16>;

    /// Whether frames may travel with checksums missing and TCP unsegmented, both ways: what the card offers its driver.
    fn offers_offloads(&self) -> bool {
        true
    }

    /// Says what the card has agreed to read.
    ///
    /// # Errors
    /// The link cannot do it.
    fn set_offloads(&self, offloads: Offloads) -> Result<()>;

    /// Reads one frame with its header; what of it is longer than `buffer` is lost.
    ///
    /// # Errors
    /// `WouldBlock` when no frame waits; anything else means that the link is gone.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Whether it takes a frame now. One that says no becomes readable when that has changed; one that never says no
    /// drops what it has no room for.
    fn may_write(&self) -> bool {
        true
    }

    /// Writes one frame with its header.
    ///
    /// # Errors
    /// `WouldBlock` when the link takes no more now; others when it does not take this frame.
    fn write(&self, frame: &[u8]) -> io::Result<usize>;
}
