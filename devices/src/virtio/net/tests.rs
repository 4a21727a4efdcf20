//! A network card in a machine: what its tests are made of, and the laws of devices.

mod event_loop;
mod frames;

use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use ckvmm_net::link::{FRAME_BYTES_MAX, HEADER_BYTES};

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
/// How often a guest asks before it gives up, ten times a second.
const PATIENCE: usize = 200;

/// A link whose far end the test holds.
pub(in crate::virtio) struct Pair {
    near: UnixDatagram,
    offers: bool,
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
    fn offers_offloads(&self) -> bool {
        self.offers
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
    (Box::new(Pair { near, offers: true, offloads: Arc::default() }), far)
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
