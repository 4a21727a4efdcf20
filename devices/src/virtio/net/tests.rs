use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use ckvmm_net::Tap;
use ckvmm_net::link::{FRAME_BYTES_MAX, HEADER_BYTES};
use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;

use super::*;
use crate::sync::lock;
use crate::virtio::blk::BlkState;
use crate::virtio::specimen::{Specimen, virtio_laws};
use crate::virtio::testing::{DATA, FILL, Piece, Rig};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MTU: u16 = 1500;
const FRAME: u64 = DATA + 0x1000;
const BUFFERS: u64 = DATA + 0x2_0000;
const VERSION_1: u64 = 1 << 32;

/// A link whose far end the test holds.
pub(in crate::virtio) struct Pair {
    near: UnixDatagram,
    offloads: Arc<Mutex<Offloads>>,
}

impl AsRawFd for Pair {
    fn as_raw_fd(&self) -> RawFd {
        self.near.as_raw_fd()
    }
}

impl Link for Pair {
    fn name(&self) -> &str {
        "pair"
    }
    fn mtu(&self) -> ckvmm_net::Result<u16> {
        Ok(MTU)
    }
    fn set_offloads(&self, offloads: Offloads) -> ckvmm_net::Result<()> {
        *lock(&self.offloads) = offloads;
        Ok(())
    }
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.near.recv(buffer)
    }
    fn write(&self, frame: &[u8]) -> io::Result<usize> {
        self.near.send(frame)
    }
}

struct Bench {
    rig: Rig,
    far: UnixDatagram,
    cable: Cable,
    counters: Arc<NetCounters>,
    offloads: Arc<Mutex<Offloads>>,
}

pub(in crate::virtio) fn pair() -> (Box<Pair>, UnixDatagram) {
    let (near, far) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (Box::new(Pair { near, offloads: Arc::default() }), far)
}

fn idle() -> Bench {
    let (link, far) = pair();
    let offloads = link.offloads.clone();
    let net = Net::new(NetConfig { link, mac: MAC }).unwrap();
    let (cable, counters) = (net.cable(), net.counters());
    Bench { rig: Rig::new(Box::new(net)), far, cable, counters, offloads }
}

fn bench(features: u64) -> Bench {
    let mut bench = idle();
    bench.rig.start(features | VERSION_1 | 1 << 29);
    bench
}

fn mergeable() -> Bench {
    bench(1 << VIRTIO_NET_F_MRG_RXBUF)
}

/// A header of zeroes and `bytes` of frame, no two alike.
pub(in crate::virtio) fn frame(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend((0..bytes).map(|n| (n % 251) as u8));
    frame
}

impl Bench {
    fn send_to_guest(&self, frame: &[u8]) {
        self.far.send(frame).unwrap();
    }

    /// Offers receive buffers of these lengths, one after the other in memory; returns where they are.
    fn offer_buffers(&mut self, lengths: &[u32]) -> Vec<u64> {
        let mut at = BUFFERS;
        let places = lengths.iter().map(|&bytes| {
            let place = at;
            self.rig.offer(RECEIVE, &[Piece::In(place, bytes)]);
            at += u64::from(bytes);
            place
        });
        places.collect()
    }

    fn transmit(&mut self, frame: &[u8]) {
        self.rig.put(FRAME, frame);
        self.rig.offer(TRANSMIT, &[Piece::Out(FRAME, frame.len() as u32)]);
        self.rig.kick(TRANSMIT);
        let used = self.rig.used(TRANSMIT);
        assert_eq!(used.len(), 1, "every chain is used");
        assert_eq!(used[0].1, 0);
    }

    fn sent(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let bytes = self.far.recv(&mut buffer).ok()?;
        buffer.truncate(bytes);
        Some(buffer)
    }

    fn drops(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        (count(&self.counters.receive_drops), count(&self.counters.transmit_drops))
    }
}

struct NetSpecimen;

impl Specimen for NetSpecimen {
    const QUEUE: usize = TRANSMIT;

    fn make() -> (Box<dyn VirtioDevice>, Box<dyn Any>) {
        let (link, far) = pair();
        (Box::new(Net::new(NetConfig { link, mac: MAC }).unwrap()), Box::new(far))
    }

    fn offer(rig: &mut Rig) {
        rig.put(FRAME, &frame(60));
        rig.offer(TRANSMIT, &[Piece::Out(FRAME, 72)]);
    }

    fn check(rig: &mut Rig) {
        rig.wait_used(TRANSMIT, 1);
    }

    fn misfits(state: &DeviceState) -> Vec<(DeviceState, &'static str)> {
        let DeviceState::Net(state) = state else { panic!("{state:?}") };
        let disk = BlkState { id: "root".into(), sectors: 8, read_only: false };
        let too_long = vec![0; FRAME_BYTES_MAX + 1];
        vec![
            (DeviceState::Blk(disk), "kind of device is virtio-blk, this machine's is virtio-net"),
            (
                DeviceState::Net(NetState { mac: [2, 0, 0, 0, 0, 2], ..state.clone() }),
                "MAC address is 02:00:00:00:00:02, this machine's is 02:00:00:00:00:01",
            ),
            (DeviceState::Net(NetState { frame: too_long, ..state.clone() }), "corrupt: a frame of"),
            (DeviceState::Net(NetState { frame: vec![0; 11], ..state.clone() }), "corrupt: a frame of 11 bytes"),
        ]
    }
}

virtio_laws!(NetSpecimen);

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
        rig.offer(TRANSMIT, &[Piece::Out(FRAME, request.len() as u32)]);
        rig.write(0x50, TRANSMIT as u32);
        let mut received = 0;
        loop {
            assert!(manager.run_with_timeout(10_000).unwrap() > 0, "no ARP reply in {received} frames");
            for (head, bytes) in rig.used(RECEIVE) {
                let frame = rig.bytes(BUFFERS + 2048 * u64::from(head), bytes as usize);
                let frame = &frame[HEADER_BYTES..];
                if frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] && frame[28..32] == [10, 0, 0, 1] {
                    return;
                }
                received += 1;
                assert!(received < 32, "no ARP reply");
            }
        }
    });
    thread.join().unwrap();
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
        let mut left = 0;
        while bench.far.send(&[]).is_ok() && left < 100 { left += 1; }
        prop_assert!(arrived + bench.drops().0 as usize <= frames.len());
        prop_assert_eq!(bench.rig.status(), 15);
    }
}
