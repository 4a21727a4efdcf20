//! Which links a frame goes to: a static table of the network's cards, the same at every node.
//!
//! | to | goes |
//! |---|---|
//! | a node's address | to that node |
//! | a group address | to every node |
//! | an address that no card has (a guest that bridges its own) | to every node, as a switch does that has not learnt |
//! | the sender's own address, or no Ethernet header | nowhere |
//!
//! Invariant: pure, and of the frame only its destination is read.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use crate::link::HEADER_BYTES;
use crate::packet::Node;
use crate::wire::FRAME_BYTES_MIN;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// To one node.
    To(Node),
    /// To all nodes but the sender: a copy for each link.
    Everyone,
    /// It is dropped.
    Nowhere,
}

/// A node's view of the network's addresses.
#[derive(Debug, Clone)]
pub struct Switch {
    me: Node,
    nodes: HashMap<Mac, Node>,
}

impl Switch {
    /// The table of node `me`, from all cards in the order of the nodes.
    pub fn new(me: Node, macs: &[Mac]) -> Switch {
        debug_assert!(macs.len() <= usize::from(u16::MAX) + 1, "nodes have 16-bit numbers");
        let nodes = macs.iter().zip(0..=u16::MAX).map(|(mac, index)| (*mac, Node(index))).collect();
        Switch { me, nodes }
    }

    /// Where `frame`, with its virtio-net header, goes.
    pub fn route(&self, frame: &[u8]) -> Route {
        if frame.len() < FRAME_BYTES_MIN {
            return Route::Nowhere;
        }
        let mut destination = [0; 6];
        destination.copy_from_slice(&frame[HEADER_BYTES..HEADER_BYTES + 6]);
        match self.nodes.get(&destination) {
            // The lowest bit of the first byte: a group, and all of them are one.
            _ if destination[0] & 1 != 0 => Route::Everyone,
            Some(node) if *node == self.me => Route::Nowhere,
            Some(node) => Route::To(*node),
            None => Route::Everyone,
        }
    }
}

/// The address of the card whose guest has the IP address `ip`: locally administered, and as unique as that.
pub fn mac_of(ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = ip.octets();
    [0x02, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn macs() -> Vec<Mac> {
        (1..=3).map(|host| mac_of(Ipv4Addr::new(10, 77, 0, host))).collect()
    }

    fn frame(to: Mac) -> Vec<u8> {
        let mut frame = vec![0; FRAME_BYTES_MIN];
        frame[HEADER_BYTES..HEADER_BYTES + 6].copy_from_slice(&to);
        frame
    }

    #[test]
    fn a_frame_goes_where_its_destination_is() {
        let switch = Switch::new(Node(1), &macs());
        assert_eq!(switch.route(&frame(macs()[0])), Route::To(Node(0)));
        assert_eq!(switch.route(&frame(macs()[2])), Route::To(Node(2)));
        assert_eq!(switch.route(&frame([0xff; 6])), Route::Everyone);
        assert_eq!(switch.route(&frame([0x33, 0x33, 0, 0, 0, 1])), Route::Everyone, "IPv6 multicast");
        assert_eq!(switch.route(&frame([2, 1, 2, 3, 4, 5])), Route::Everyone, "nobody's");
    }

    #[test]
    fn a_frame_to_its_sender_or_without_destination_goes_nowhere() {
        let switch = Switch::new(Node(1), &macs());
        assert_eq!(switch.route(&frame(macs()[1])), Route::Nowhere);
        let broadcast = frame([0xff; 6]);
        for bytes in 0..FRAME_BYTES_MIN {
            assert_eq!(switch.route(&broadcast[..bytes]), Route::Nowhere, "{bytes}");
        }
    }

    #[test]
    fn addresses_are_those_of_single_cards_and_locally_given() {
        for mac in macs() {
            assert_eq!(mac[0] & 3, 2);
        }
        assert_eq!(macs()[0], [2, 0, 10, 77, 0, 1]);
    }
}
