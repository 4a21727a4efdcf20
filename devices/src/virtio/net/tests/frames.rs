//! Which frames go where, both ways.

use proptest::prelude::*;

use super::*;

#[test]
fn a_driver_is_told_address_mtu_and_link() {
    let bench = idle();
    let mut space = [0xff; 16];
    crate::BusDevice::read(&*bench.rig.mmio, 0x100, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0xdc, 5, 0, 0, 0, 0]);
    bench.cable.plug(false);
    crate::BusDevice::read(&*bench.rig.mmio, 0x106, &mut space[..2]);
    assert_eq!(space[..2], [0, 0]);
}

#[test]
fn segmentation_without_checksums_is_not_accepted() {
    for (features, ok) in [
        (1 << VIRTIO_NET_F_HOST_TSO4, false),
        (1 << VIRTIO_NET_F_GUEST_TSO6, false),
        (1 << VIRTIO_NET_F_GUEST_TSO6 | 1 << VIRTIO_NET_F_CSUM, false),
        (1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_CSUM, true),
    ] {
        let bench = idle();
        bench.rig.negotiate(features | VERSION_1);
        assert_eq!(bench.rig.status() == 11, ok, "{features:#x}");
    }
}

#[test]
fn the_link_learns_what_the_driver_has_agreed_to_and_forgets_it_at_the_reset() {
    let bench = bench(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4);
    assert_eq!(*lock(&bench.offloads), Offloads { checksum: true, tso4: true, tso6: false });
    bench.rig.reset();
    assert_eq!(*lock(&bench.offloads), Offloads::default());
}

#[test]
fn a_frame_is_sent_as_it_stands() {
    let mut bench = bench(0);
    let mut sent = frame(1514);
    sent[..2].copy_from_slice(&[1, 1]); // checksum and segmentation are the kernel's affair
    bench.transmit(&sent);
    assert_eq!(bench.sent(), Some(sent));
    assert_eq!(bench.counters.transmitted_bytes.load(Ordering::SeqCst), 1514);
}

#[test]
fn what_is_no_frame_is_dropped_and_its_buffer_used() {
    let mut bench = bench(0);
    bench.transmit(&frame(13));
    bench.transmit(&[0; 5]);
    bench.rig.offer(TRANSMIT, &[Piece::In(FRAME, 100)]);
    bench.rig.offer(TRANSMIT, &[Piece::Out(0, 0x10_0000), Piece::Out(0, 0x10_0000)]);
    bench.rig.kick(TRANSMIT);
    assert_eq!(bench.rig.used(TRANSMIT).len(), 2);
    assert_eq!((bench.sent(), bench.drops()), (None, (0, 4)));
    assert_eq!(bench.rig.status(), 15);
}

#[test]
fn a_frame_is_received_into_one_buffer() {
    let mut bench = bench(0);
    let places = bench.offer_buffers(&[2048, 2048]);
    bench.rig.kick(RECEIVE);
    assert!(bench.rig.used(RECEIVE).is_empty());
    let mut received = frame(1000);
    bench.send_to_guest(&received);
    bench.rig.wake();
    assert_eq!(bench.rig.used(RECEIVE), [(0, 1012)]);
    received[10] = 1; // num_buffers
    assert_eq!(bench.rig.bytes(places[0], 1013), [received, vec![FILL]].concat());
    assert_eq!(bench.counters.received_bytes.load(Ordering::SeqCst), 1000);
}

#[test]
fn frames_wait_in_the_link_until_there_are_buffers() {
    let mut bench = bench(0);
    for _ in 0..3 {
        bench.send_to_guest(&frame(100));
    }
    bench.rig.wake();
    assert_eq!(bench.rig.used(RECEIVE), []);
    bench.offer_buffers(&[200, 200]);
    bench.rig.kick(RECEIVE);
    assert_eq!(bench.rig.used(RECEIVE).len(), 2);
    bench.offer_buffers(&[200]);
    bench.rig.kick(RECEIVE);
    assert_eq!((bench.rig.used(RECEIVE).len(), bench.drops()), (1, (0, 0)));
}

#[test]
fn a_large_frame_is_spread_over_buffers_that_are_all_full_but_the_last() {
    let mut bench = mergeable();
    let places = bench.offer_buffers(&[500, 100, 500, 500]);
    let mut received = frame(900);
    bench.send_to_guest(&received);
    bench.rig.wake();
    assert_eq!(bench.rig.used(RECEIVE), [(0, 500), (1, 100), (2, 312)]);
    received[10] = 3;
    assert_eq!(bench.rig.bytes(places[0], 913), [received, vec![FILL]].concat());
}

#[test]
fn a_frame_that_lacks_buffers_is_saved_and_delivered_after_a_restore() {
    let mut bench = mergeable();
    bench.offer_buffers(&[500, 100]);
    bench.send_to_guest(&frame(900));
    bench.send_to_guest(&frame(50));
    bench.rig.wake();
    assert_eq!(bench.rig.used(RECEIVE), []);
    bench.rig.mmio.drain().unwrap();
    let state = bench.rig.mmio.save().unwrap();
    let DeviceState::Net(NetState { frame: saved, .. }) = &state.device else { panic!("{state:?}") };
    assert_eq!(*saved, frame(900));
    let mut there = idle();
    there.rig.set_memory(bench.rig.memory());
    there.rig.mmio.restore(state).unwrap();
    bench.rig.mmio.undrain();
    there.rig.mmio.kick();
    for (bench, frames) in [(&mut bench, 2), (&mut there, 1)] {
        bench.rig.run();
        assert_eq!(bench.rig.used(RECEIVE), []);
        bench.rig.offer(RECEIVE, &[Piece::In(BUFFERS + 600, 312)]);
        bench.rig.offer(RECEIVE, &[Piece::In(BUFFERS + 2000, 500)]);
        bench.rig.kick(RECEIVE);
        let used = bench.rig.used(RECEIVE);
        assert_eq!(used[..3], [(0, 500), (1, 100), (2, 312)]);
        assert_eq!(bench.rig.bytes(BUFFERS + 12, 900), frame(900)[12..]);
        assert_eq!(used.len(), 2 + frames);
    }
}

#[test]
fn a_frame_that_no_buffers_can_ever_hold_is_dropped() {
    let mut bench = bench(0);
    bench.offer_buffers(&[100, 100]);
    bench.send_to_guest(&frame(500));
    bench.send_to_guest(&frame(60));
    bench.rig.wake();
    assert_eq!((bench.rig.used(RECEIVE), bench.drops()), (vec![(0, 72)], (1, 0)));

    let mut bench = mergeable();
    bench.offer_buffers(&[1; 256]);
    bench.send_to_guest(&frame(500));
    bench.send_to_guest(&frame(60));
    bench.rig.wake();
    assert_eq!((bench.rig.used(RECEIVE).len(), bench.drops()), (72, (1, 0)));
}

#[test]
fn a_guest_gets_no_offload_that_it_has_not_agreed_to() {
    let (checksum, tso4) = (1 << VIRTIO_NET_F_GUEST_CSUM, 1 << VIRTIO_NET_F_GUEST_TSO4);
    for (flags, segmentation, features, fit) in [
        (1, 0, 0, false),
        (1, 0, checksum, true),
        (2, 0, 0, true),
        (1, 1, checksum, false),
        (1, 1, checksum | tso4, true),
        (1, 4, checksum | tso4, false),
        (0, 3, checksum | tso4, false),
        (1, 0x81, checksum | tso4, false),
    ] {
        let mut bench = bench(features);
        bench.offer_buffers(&[500]);
        let mut frame = frame(100);
        frame[..2].copy_from_slice(&[flags, segmentation]);
        bench.send_to_guest(&frame);
        bench.rig.wake();
        assert_eq!(bench.rig.used(RECEIVE).len() == 1, fit, "{flags} {segmentation} {features:#x}");
    }
    let mut bench = bench(0);
    bench.offer_buffers(&[500]);
    for bytes in [0, 1, 5, 12] {
        bench.send_to_guest(&vec![0; bytes]);
    }
    bench.send_to_guest(&frame(60));
    bench.rig.wake();
    assert_eq!((bench.rig.used(RECEIVE).len(), bench.drops()), (1, (4, 0)), "no frames");
}

#[test]
fn a_card_on_a_link_without_offloads_offers_none() {
    let offered = |offers| {
        let (mut link, _far) = pair();
        link.offers = offers;
        Net::new(NetConfig { link, mac: MAC }).unwrap().features()
    };
    let names = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
    ];
    let offloads = names.into_iter().fold(0, |all, name| all | 1 << name);
    assert_eq!(offered(true) & offloads, offloads);
    assert_eq!(offered(false), offered(true) & !offloads);
}

#[test]
fn a_pulled_cable_drops_frames_and_the_driver_is_told() {
    let mut bench = bench(1 << VIRTIO_NET_F_STATUS);
    bench.offer_buffers(&[500, 500]);
    bench.rig.run();
    let generation = bench.rig.read(0xfc);
    bench.cable.plug(true);
    assert_eq!((bench.rig.edges.take(), bench.rig.read(0xfc)), (0, generation), "no change");
    bench.cable.plug(false);
    assert_eq!((bench.rig.edges.take(), bench.rig.read(0x60)), (1, 2));
    assert_ne!(bench.rig.read(0xfc), generation);
    bench.transmit(&frame(60));
    bench.send_to_guest(&frame(60));
    bench.rig.wake();
    assert_eq!((bench.rig.used(RECEIVE), bench.sent(), bench.drops()), (vec![], None, (1, 1)));
    bench.rig.mmio.drain().unwrap();
    let state = bench.rig.mmio.save().unwrap();
    let there = idle();
    there.rig.mmio.restore(state).unwrap();
    assert!(!there.cable.is_plugged());
    bench.rig.mmio.undrain();
    bench.cable.plug(true);
    bench.send_to_guest(&frame(60));
    bench.rig.wake();
    assert_eq!(bench.rig.used(RECEIVE).len(), 1);
    bench.rig.reset();
    bench.rig.edges.take();
    bench.cable.plug(false);
    assert_eq!(bench.rig.edges.take(), 0, "nobody to be told");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever buffers a guest offers, frames arrive whole, in order and once, or not at all and counted.
    #[test]
    fn frames_arrive_whole_and_in_order(
        merge in any::<bool>(),
        frames in prop::collection::vec(1_usize..3000, 1..8),
        buffers in prop::collection::vec(1_u32..2000, 1..40),
    ) {
        let mut bench = if merge { mergeable() } else { self::bench(0) };
        for &bytes in &frames {
            bench.send_to_guest(&frame(bytes));
        }
        let places = bench.offer_buffers(&buffers);
        bench.rig.kick(RECEIVE);
        let used = bench.rig.used(RECEIVE);
        let mut expected = frames.iter();
        let mut taken = used.iter();
        let mut arrived = 0;
        while let Some(&(head, bytes)) = taken.next() {
            let mut got = bench.rig.bytes(places[usize::from(head)], bytes as usize);
            let (mut short, mut count) = (bytes < buffers[usize::from(head)], 1);
            // A header that is cut in two would hide its count: read on until it is whole.
            while got.len() < HEADER_BYTES || count < u16::from_le_bytes([got[10], got[11]]) {
                let &(head, bytes) = taken.next().expect("all buffers of a frame are used together");
                prop_assert!(!short, "a buffer that is not full is the last");
                short = bytes < buffers[usize::from(head)];
                got.extend(bench.rig.bytes(places[usize::from(head)], bytes as usize));
                count += 1;
            }
            prop_assert!(merge || count == 1);
            (got[10], got[11]) = (0, 0);
            prop_assert!(expected.any(|&bytes| frame(bytes) == got), "a frame of {} bytes from nowhere", got.len());
            arrived += 1;
        }
        prop_assert!(arrived + bench.drops().0 as usize <= frames.len());
        prop_assert_eq!(bench.rig.status(), 15);
    }
}
