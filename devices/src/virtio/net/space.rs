//! What a network card tells its driver: features and configuration space (virtio 1.2 §5.1.3, §5.1.4).

use virtio_bindings::virtio_net::*;

/// Length of `struct virtio_net_config` up to and with its MTU.
const SPACE_BYTES: usize = 12;

/// What every card offers.
const BASE: u64 =
    1 << VIRTIO_NET_F_MTU | 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_STATUS;

/// What one on a link with offloads offers, too. A TAP can do all of it.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6;

/// All that a card offers, on a link with or without offloads.
pub(super) fn features(offloads: bool) -> u64 {
    if offloads { BASE | OFFLOADS } else { BASE }
}

/// §5.1.3.1: what segments TCP needs checksums to go with it.
pub(super) fn go_together(features: u64) -> bool {
    let has = |feature: u32| features & 1 << feature != 0;
    let needs = [
        (VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_CSUM),
        (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_CSUM),
        (VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_CSUM),
        (VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_CSUM),
    ];
    needs.iter().all(|&(feature, needed)| !has(feature) || has(needed))
}

/// The configuration space.
pub(super) struct Space {
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    pub(super) link_up: bool,
}

impl Space {
    /// `struct virtio_net_config`: mac, status, max_virtqueue_pairs (not offered), mtu.
    pub(super) fn bytes(&self) -> [u8; SPACE_BYTES] {
        let status = if self.link_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut bytes = [0; SPACE_BYTES];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6..8].copy_from_slice(&status.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        bytes
    }
}
