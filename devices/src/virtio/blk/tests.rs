//! A disk in a machine: what its tests are made of, and the laws of devices.

mod in_flight;
mod requests;

use std::any::Any;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use virtio_bindings::virtio_blk::*;

use super::request::ByteRange;
use super::*;
use crate::GuestRam;
use crate::sync::{lock, wait};
use crate::virtio::chain::Segments;
use crate::virtio::rng::RngState;
use crate::virtio::specimen::{Specimen, virtio_laws};
use crate::virtio::testing::{DATA, Piece, Rig};

const SECTORS: u64 = 256;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;
const NOTHING: u8 = 0xee;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Where a disk's requests wait until the test lets them through.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    arrived: AtomicUsize,
}

impl Gate {
    fn pass(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        let mut closed = lock(&self.closed);
        while *closed {
            closed = wait(&self.opened, closed);
        }
    }

    fn set(&self, closed: bool) {
        *lock(&self.closed) = closed;
        self.opened.notify_all();
    }
}

/// A file whose requests pass a gate, and that can be told to fail.
struct Gated {
    file: FileStorage,
    gate: Arc<Gate>,
    flushes: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

impl Gated {
    fn pass(&self) -> io::Result<()> {
        self.gate.pass();
        if self.broken.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl Storage for Gated {
    fn read(&self, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>) {
        self.pass().map_or_else(|error| (0, Err(error)), |()| self.file.read(ram, data, offset))
    }
    fn write(&self, ram: &GuestRam, data: &Segments, offset: u64) -> (u64, io::Result<()>) {
        self.pass().map_or_else(|error| (0, Err(error)), |()| self.file.write(ram, data, offset))
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.pass()
    }
    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.pass().and_then(|()| self.file.discard(range))
    }
    fn write_zeroes(&self, range: ByteRange, unmap: bool) -> io::Result<()> {
        self.pass().and_then(|()| self.file.write_zeroes(range, unmap))
    }
}

/// A disk of `SECTORS` in a machine, its gate, and its file.
struct Bench {
    rig: Rig,
    file: File,
    live: Arc<LiveDisk>,
    gate: Arc<Gate>,
    flushes: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
    counters: Arc<BlkCounters>,
}

/// Sector `n` is full of `n`.
fn new_file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for sector in 0..SECTORS {
        file.write_all(&[sector as u8; SECTOR_BYTES as usize]).unwrap();
    }
    file
}

fn bench(read_only: bool) -> Bench {
    let mut bench = idle(read_only);
    bench.rig.start_with_all();
    bench
}

fn idle(read_only: bool) -> Bench {
    let file = new_file();
    let live = live(file.try_clone().unwrap());
    let (gate, flushes, broken) = (Arc::<Gate>::default(), Arc::default(), Arc::default());
    let storage = Gated {
        file: FileStorage::new(Arc::clone(&live)),
        gate: gate.clone(),
        flushes: Arc::clone(&flushes),
        broken: Arc::clone(&broken),
    };
    let geometry = Geometry { sectors: SECTORS, read_only };
    let blk = Blk::with_storage("disk-with-a-name-of-more-than-20".into(), geometry, Box::new(storage)).unwrap();
    let counters = blk.counters();
    Bench { rig: Rig::new(Box::new(blk)), file, live, gate, flushes, broken, counters }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Bench {
    /// One request with these pieces between header and status. Returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        self.rig.put(HEADER, &header(kind, sector));
        self.rig.put(STATUS, &[NOTHING]);
        let pieces = [&[Piece::Out(HEADER, 16)], data, &[Piece::In(STATUS, 1)]].concat();
        let head = self.rig.offer(REQUESTS, &pieces);
        self.rig.kick(REQUESTS);
        let used = self.rig.wait_used(REQUESTS, 1);
        assert_eq!(used[0].0, head);
        (self.rig.bytes(STATUS, 1)[0], used[0].1)
    }

    /// A discard or write-zeroes request with these ranges.
    fn ranges(&mut self, kind: u32, ranges: &[Vec<u8>]) -> u8 {
        let bytes = ranges.concat();
        self.rig.put(BUFFER, &bytes);
        let (status, written) = self.request(kind, 0, &[Piece::Out(BUFFER, bytes.len() as u32)]);
        assert_eq!(written, 1);
        status
    }

    fn sector(&self, sector: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR_BYTES as usize];
        self.file.read_exact_at(&mut bytes, sector * SECTOR_BYTES).unwrap();
        bytes
    }

    /// Offers a write of sector `n` for each of `sectors`, from a buffer full of `!n`, all at once.
    fn offer_writes(&mut self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let (header_at, buffer, status) = (place(sector, 0), place(sector, 16), place(sector, 528));
            self.rig.put(header_at, &header(VIRTIO_BLK_T_OUT, sector));
            self.rig.put(buffer, &[!(sector as u8); 512]);
            self.rig.put(status, &[NOTHING]);
            let pieces = [Piece::Out(header_at, 16), Piece::Out(buffer, 512), Piece::In(status, 1)];
            self.rig.offer(REQUESTS, &pieces);
        }
    }

    fn check_writes(&self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            assert_eq!(self.rig.bytes(place(sector, 528), 1), [OK]);
            assert_eq!(self.sector(sector), [!(sector as u8); 512]);
        }
    }

    fn wait_arrived(&self, count: usize) {
        while self.gate.arrived.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

fn place(sector: u64, offset: u64) -> u64 {
    BUFFER + sector * 1024 + offset
}

struct BlkSpecimen;

impl Specimen for BlkSpecimen {
    const QUEUE: usize = REQUESTS;

    fn make() -> (Box<dyn VirtioDevice>, Box<dyn Any>) {
        (Box::new(Blk::new(config(new_file())).unwrap()), Box::new(()))
    }

    fn offer(rig: &mut Rig) {
        rig.put(HEADER, &header(VIRTIO_BLK_T_IN, 7));
        rig.put(STATUS, &[NOTHING]);
        rig.put(BUFFER, &[NOTHING; 512]);
        rig.offer(REQUESTS, &[Piece::Out(HEADER, 16), Piece::In(BUFFER, 512), Piece::In(STATUS, 1)]);
    }

    fn check(rig: &mut Rig) {
        assert_eq!(rig.wait_used(REQUESTS, 1)[0].1, 513);
        assert_eq!((rig.bytes(BUFFER, 512), rig.bytes(STATUS, 1)), (vec![7; 512], vec![OK]));
    }

    fn misfits(state: &DeviceState) -> Vec<(DeviceState, &'static str)> {
        let DeviceState::Blk(state) = state else { panic!("{state:?}") };
        vec![
            (DeviceState::Rng(RngState {}), "kind of device is virtio-rng, this machine's is virtio-blk"),
            (
                DeviceState::Blk(BlkState { id: "home".into(), ..state.clone() }),
                "disk root: its saved id is home, this machine's is root",
            ),
            (
                DeviceState::Blk(BlkState { sectors: 255, ..state.clone() }),
                "size in sectors is 255, this machine's is 256",
            ),
            (DeviceState::Blk(BlkState { read_only: true, ..state.clone() }), "read-only mode is true"),
        ]
    }
}

virtio_laws!(BlkSpecimen);

fn live(file: File) -> Arc<LiveDisk> {
    Arc::new(LiveDisk::new(file))
}

fn config(file: File) -> BlkConfig {
    BlkConfig { id: "root".into(), disk: live(file), read_only: false }
}
