//! What goes over a link between two VMMs, whoever carries it: frames of a guest, and marks of a cut.
//!
//! Invariant: a link is reliable and first-in-first-out, and the colours on it only grow. So a packet of colour `e`
//! says that nothing older than `e` comes after it, and a marker is a packet that says only that.

use std::fmt;

/// A VM of the network, by its place in `net.json`; also the link to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u16);

/// The number of a cut, and the colour of whoever and whatever has it behind it. Each life of a network counts anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Colour(pub u64);

/// A life of the network: one more with every restore. What an older life left on its way is not of this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// What a frame is to the code that decides about it: something with a size. Bytes in a VMM, a number in a model.
pub trait Payload: Clone {
    /// What it counts against limits.
    fn bytes(&self) -> usize;
}

/// One packet on a link. `F` is the frame, with its virtio-net header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet<F> {
    /// The sender's life.
    pub incarnation: Incarnation,
    /// The sender's colour: for a frame when it was popped from the guest's ring, which may be long before it is sent.
    pub colour: Colour,
    /// Its place on the link, from 0 without gaps.
    pub link_seq: u64,
    /// What it carries.
    pub content: Content<F>,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content<F> {
    /// A frame of the sender's guest.
    Frame(F),
    /// Nothing: the sender has its colour now.
    Marker,
    /// The sender's guest has powered off; nothing follows.
    Bye,
}

impl<F> Packet<F> {
    /// The same packet with another form of its frame.
    pub fn map<G>(self, form: impl FnOnce(F) -> G) -> Packet<G> {
        let Packet { incarnation, colour, link_seq, content } = self;
        Packet { incarnation, colour, link_seq, content: content.map(form) }
    }
}

impl<F> Content<F> {
    /// The same with another form of the frame.
    pub fn map<G>(self, form: impl FnOnce(F) -> G) -> Content<G> {
        match self {
            Content::Frame(frame) => Content::Frame(form(frame)),
            Content::Marker => Content::Marker,
            Content::Bye => Content::Bye,
        }
    }

    /// The same, borrowed.
    pub fn as_ref(&self) -> Content<&F> {
        match self {
            Content::Frame(frame) => Content::Frame(frame),
            Content::Marker => Content::Marker,
            Content::Bye => Content::Bye,
        }
    }
}

impl Colour {
    /// Of what has no cut behind it.
    pub const NONE: Colour = Colour(0);
}

impl Node {
    /// Its place in tables.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl Payload for Vec<u8> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Payload for std::sync::Arc<[u8]> {
    fn bytes(&self) -> usize {
        self.len()
    }
}

impl fmt::Display for Node {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}
