//! A card in an event loop, and on a TAP.

use ckvmm_net::Tap;
use event_manager::{EventManager, SubscriberOps};

use super::*;

#[test]
fn a_guest_without_buffers_does_not_make_the_event_loop_spin() {
    let mut bench = bench(0);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(bench.rig.mmio.subscriber());
    bench.send_to_guest(&frame(60));
    while manager.run_with_timeout(50).unwrap() > 0 {}
    assert_eq!(manager.run_with_timeout(50).unwrap(), 0, "a frame waits, and the loop sleeps");
    bench.offer_buffers(&[500]);
    bench.rig.write(0x50, 0);
    while bench.rig.used(RECEIVE).is_empty() {
        assert!(manager.run_with_timeout(5000).unwrap() > 0, "the frame was forgotten");
    }
    bench.offer_buffers(&[500]);
    bench.send_to_guest(&frame(60));
    while bench.rig.used(RECEIVE).is_empty() {
        assert!(manager.run_with_timeout(5000).unwrap() > 0, "a new frame went unnoticed");
    }
}

#[test]
fn one_event_moves_no_more_than_its_share() {
    let mut bench = bench(0);
    for _ in 0..256 {
        bench.rig.put(FRAME, &frame(60));
        bench.rig.offer(TRANSMIT, &[Piece::Out(FRAME, 72)]);
    }
    bench.rig.mmio.queue_events()[TRANSMIT].read().ok();
    bench.rig.mmio.process(DeviceEvent::Queue(TRANSMIT));
    assert_eq!(bench.rig.used(TRANSMIT).len(), FRAMES_PER_EVENT);
    bench.rig.mmio.queue_events()[TRANSMIT].read().expect("it asked to be called again");
}

/// The whole way: a guest's ARP request through the card and a TAP to the host's stack, and its answer back.
#[test]
fn a_guest_and_the_host_talk_through_a_tap() {
    let thread = std::thread::spawn(|| {
        if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            return println!("skipped: no network namespace of our own: {errno}");
        }
        if let Err(error) = std::fs::File::open("/dev/net/tun") {
            return println!("skipped: /dev/net/tun: {error}");
        }
        for arguments in ["tuntap add dev tap0 mode tap", "addr add 10.0.0.1/24 dev tap0", "link set dev tap0 up"] {
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        }
        let net = Net::new(NetConfig { link: Box::new(Tap::open("tap0").unwrap()), mac: MAC }).unwrap();
        let mut rig = Rig::new(Box::new(net));
        rig.start_with_all();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(rig.mmio.subscriber());
        for buffer in 0..32 {
            rig.offer(RECEIVE, &[Piece::In(BUFFERS + 2048 * buffer, 2048)]);
        }
        rig.write(0x50, RECEIVE as u32);
        let mut request = vec![0; HEADER_BYTES];
        request.extend([0xff; 6]);
        request.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
        request.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        rig.put(FRAME, &request);
        // The host's stack loses what comes before it has seen the carrier: ask again, as a guest would.
        for _ in 0..PATIENCE {
            rig.offer(TRANSMIT, &[Piece::Out(FRAME, request.len() as u32)]);
            rig.write(0x50, TRANSMIT as u32);
            while manager.run_with_timeout(100).unwrap() > 0 {
                for (head, bytes) in rig.used(RECEIVE) {
                    let buffer = BUFFERS + 2048 * u64::from(head);
                    let frame = rig.bytes(buffer, bytes as usize);
                    let frame = &frame[HEADER_BYTES..];
                    if frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] && frame[28..32] == [10, 0, 0, 1] {
                        return;
                    }
                    rig.offer(RECEIVE, &[Piece::In(buffer, 2048)]);
                }
            }
            rig.used(TRANSMIT);
        }
        panic!("no ARP reply");
    });
    thread.join().unwrap();
}
