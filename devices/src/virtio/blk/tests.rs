use std::any::Any;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::request::ByteRange;
use super::*;
use crate::sync::{lock, wait};
use crate::virtio::chain::Segments;
use crate::virtio::rng::RngState;
use crate::virtio::specimen::{Specimen, virtio_laws};
use crate::virtio::testing::{DATA, FILL, Piece, REGION_BYTES, Rig};

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
    let (gate, flushes, broken) = (Arc::<Gate>::default(), Arc::default(), Arc::default());
    let storage = Gated {
        file: FileStorage::new(file.try_clone().unwrap()),
        gate: gate.clone(),
        flushes: Arc::clone(&flushes),
        broken: Arc::clone(&broken),
    };
    let geometry = Geometry { sectors: SECTORS, read_only };
    let blk = Blk::with_storage("disk-with-a-name-of-more-than-20".into(), geometry, Box::new(storage)).unwrap();
    let counters = blk.counters();
    Bench { rig: Rig::new(Box::new(blk)), file, gate, flushes, broken, counters }
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

fn config(file: File) -> BlkConfig {
    BlkConfig { id: "root".into(), file, read_only: false }
}

#[test]
fn a_file_that_is_not_whole_sectors_is_refused() {
    for bytes in [0, 1, 511, 513, 1 << 20 | 1] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let error = Blk::new(config(file)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("disk root: its size of {bytes} bytes")), "{error}");
        assert!(error.contains("truncate --size=%512"), "{error}");
    }
    let directory = Blk::new(config(File::open("/").unwrap())).map(|_| ()).unwrap_err().to_string();
    assert!(directory.contains("neither a file nor a block device"), "{directory}");
}

#[test]
fn a_driver_is_told_size_and_limits() {
    for read_only in [false, true] {
        let bench = idle(read_only);
        let has = |feature: u32| bench.rig.offered() & 1 << feature != 0;
        assert_eq!(has(VIRTIO_BLK_F_RO), read_only);
        assert!(has(VIRTIO_BLK_F_FLUSH) && has(VIRTIO_BLK_F_SEG_MAX) && has(VIRTIO_BLK_F_SIZE_MAX));
        assert_eq!((has(VIRTIO_BLK_F_DISCARD), has(VIRTIO_BLK_F_WRITE_ZEROES)), (!read_only, !read_only));
        let field = |offset: u32| bench.rig.read(0x100 + offset);
        assert_eq!((field(0), field(4)), (SECTORS as u32, 0));
        assert_eq!((field(8), field(12), field(20)), (1 << 20, 126, 512));
        let limits = [36, 40, 44, 48, 52].map(field);
        assert_eq!(limits, if read_only { [0; 5] } else { [1 << 21, 16, 8, 1 << 17, 16] });
        assert_eq!((field(60), field(0xe00)), (0, 0), "beyond the end");
    }
}

#[test]
fn sectors_are_read_and_written() {
    let mut bench = bench(false);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 9, &[Piece::In(BUFFER, 1024)]), (OK, 1025));
    assert_eq!(bench.rig.bytes(BUFFER, 1025), [vec![9; 512], vec![10; 512], vec![FILL]].concat());
    bench.rig.put(BUFFER, &[0x77; 512]);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 255, &[Piece::Out(BUFFER, 512)]), (OK, 1));
    assert_eq!((bench.sector(254), bench.sector(255)), (vec![254; 512], vec![0x77; 512]));
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    assert_eq!((count(&bench.counters.read_bytes), count(&bench.counters.written_bytes)), (1024, 512));
}

#[test]
fn what_is_beyond_the_end_or_no_whole_sectors_is_an_io_error() {
    let mut bench = bench(false);
    let zeroes = vec![0; 65536];
    bench.rig.put(BUFFER, &zeroes);
    for (sector, bytes) in
        [(256, 512), (255, 1024), (u64::MAX, 512), (1 << 55, 512), (u64::MAX - 1, 1024), (0, 511), (0, 513), (3, 1)]
    {
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, sector, &[Piece::In(BUFFER, bytes)]).0, IOERR, "{sector} {bytes}");
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, sector, &[Piece::Out(BUFFER, bytes)]), (IOERR, 1));
    }
    assert_eq!(bench.rig.bytes(BUFFER, zeroes.len()), zeroes);
    assert_eq!(bench.sector(255), [255; 512]);
    assert_eq!(bench.counters.refused.load(Ordering::SeqCst), 16);
    let (status, _) = bench.request(VIRTIO_BLK_T_IN, 256, &[]);
    assert_eq!(status, OK, "nothing at the very end is there");
}

#[test]
fn more_data_than_the_limits_allow_is_an_io_error() {
    let mut bench = bench(false);
    let pieces = vec![Piece::In(0x10_0000, 0x10_0000); 127];
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &pieces).0, IOERR);
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let mut bench = bench(true);
    bench.rig.put(BUFFER, &range(0, 8, 0));
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[Piece::Out(BUFFER, 512)]).0, IOERR);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(bench.request(kind, 0, &[Piece::Out(BUFFER, 16)]).0, IOERR);
    }
    assert_eq!(bench.sector(1), [1; 512]);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, &[Piece::In(BUFFER, 512)]), (OK, 513));
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]).0, OK);
}

#[test]
fn a_disk_says_its_serial_number() {
    let mut bench = bench(false);
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, &[Piece::In(BUFFER, 20)]), (OK, 21));
    assert_eq!(bench.rig.bytes(BUFFER, 21), b"disk-with-a-name-of-\xa5");
    assert_eq!(space::serial_number("root"), *b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_request_that_no_disk_knows_is_unsupported() {
    let mut bench = bench(false);
    for kind in [2, 3, 14, 99, u32::MAX] {
        assert_eq!(bench.request(kind, 0, &[Piece::In(BUFFER, 512)]), (UNSUPP, 0), "{kind}");
    }
    assert_eq!(bench.rig.bytes(BUFFER, 512), [FILL; 512]);
}

#[test]
fn a_header_that_is_cut_short_is_an_io_error_and_no_room_for_a_status_a_reset() {
    let mut bench = bench(false);
    bench.rig.put(STATUS, &[NOTHING]);
    bench.rig.offer(REQUESTS, &[Piece::Out(HEADER, 15), Piece::In(STATUS, 1)]);
    bench.rig.kick(REQUESTS);
    bench.rig.wait_used(REQUESTS, 1);
    assert_eq!(bench.rig.bytes(STATUS, 1), [IOERR]);
    for pieces in [&[Piece::Out(HEADER, 16)][..], &[Piece::Out(HEADER, 16), Piece::In(STATUS, 0)]] {
        let mut bench = self::bench(false);
        bench.rig.put(HEADER, &header(VIRTIO_BLK_T_FLUSH, 0));
        bench.rig.offer(REQUESTS, pieces);
        bench.rig.kick(REQUESTS);
        assert_eq!(bench.rig.status(), 15 | 64);
        assert!(bench.rig.used(REQUESTS).is_empty());
    }
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    let mut bench = bench(false);
    let zero = vec![0; 512];
    assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 8, 0), range(16, 8, 0)]), OK);
    assert_eq!((bench.sector(0), bench.sector(8), bench.sector(16)), (zero.clone(), vec![8; 512], zero.clone()));
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(33, 3, 0), range(40, 8, 1), range(255, 1, 0)]), OK);
    assert_eq!((bench.sector(32), bench.sector(33), bench.sector(36)), (vec![32; 512], zero.clone(), vec![36; 512]));
    assert_eq!((bench.sector(47), bench.sector(255)), (zero.clone(), zero));
    assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * SECTOR_BYTES);
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(0, 0, 0)]), OK, "nothing is a range, too");
}

#[test]
fn ranges_that_cannot_be_change_nothing() {
    let mut bench = bench(false);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        for bad in [range(249, 8, 0), range(u64::MAX, 1, 0), range(0, u32::MAX, 0), range(1 << 60, 1, 0)] {
            assert_eq!(bench.ranges(kind, &[range(0, 8, 0), bad]), IOERR);
        }
        assert_eq!(bench.ranges(kind, &[range(0, 8, 0), range(8, 8, 2)]), UNSUPP);
        assert_eq!(bench.ranges(kind, &[range(0, 8, 0), vec![0; 15]]), IOERR);
        assert_eq!(bench.ranges(kind, &[]), IOERR);
        assert_eq!(bench.ranges(kind, &vec![range(0, 1, 0); 17]), IOERR);
    }
    assert_eq!(bench.ranges(VIRTIO_BLK_T_DISCARD, &[range(0, 8, 1)]), UNSUPP, "unmap is for write-zeroes");
    assert_eq!(bench.sector(1), [1; 512]);
}

#[test]
fn zeroes_are_written_by_hand_where_the_file_system_cannot() {
    let file = new_file();
    let all = ByteRange { offset: 512, bytes: (SECTORS - 2) * SECTOR_BYTES };
    storage::write_zeroes_by_hand(&file, all).unwrap();
    let mut bytes = vec![1; (SECTORS * SECTOR_BYTES) as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[512..bytes.len() - 512].iter().all(|&byte| byte == 0));
    assert_eq!(bytes[bytes.len() - 512..], [255; 512]);
}

#[test]
fn what_was_not_agreed_on_is_unsupported_and_writes_without_flush_are_durable() {
    let mut bench = idle(false);
    bench.rig.start(1 << 32);
    bench.rig.put(BUFFER, &range(0, 8, 0));
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(bench.request(kind, 0, &[Piece::Out(BUFFER, 16)]).0, UNSUPP);
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[Piece::In(BUFFER, 512)]).0, OK);
    assert_eq!(bench.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[Piece::Out(BUFFER, 512)]).0, OK);
    assert_eq!(bench.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn a_flush_flushes_and_a_write_before_it_does_not() {
    let mut bench = bench(false);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[Piece::Out(BUFFER, 512)]), (OK, 1));
    assert_eq!(bench.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
    assert_eq!(bench.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn an_error_of_the_host_is_told_to_the_guest() {
    let mut bench = bench(false);
    bench.broken.store(true, Ordering::SeqCst);
    bench.rig.put(BUFFER, &[0; 512]);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[Piece::In(BUFFER, 512)]), (IOERR, 0), "nothing is known written");
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, &[Piece::Out(BUFFER, 512)]), (IOERR, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, &[]), (IOERR, 1));
    assert_eq!(bench.ranges(VIRTIO_BLK_T_WRITE_ZEROES, &[range(0, 8, 0)]), IOERR);
    assert_eq!(bench.counters.host_errors.load(Ordering::SeqCst), 4);
    bench.broken.store(false, Ordering::SeqCst);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, &[Piece::In(BUFFER, 512)]), (OK, 513));
}

#[test]
fn a_file_that_shrinks_under_the_disk_is_an_io_error_of_what_is_gone() {
    let mut bench = bench(false);
    bench.file.set_len(10 * SECTOR_BYTES + 100).unwrap();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 9, &[Piece::In(BUFFER, 1024)]), (IOERR, 612));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 20, &[Piece::In(BUFFER, 512)]), (IOERR, 0));
}

#[test]
fn many_requests_are_in_flight_and_a_drain_waits_for_all_of_them() {
    let mut bench = bench(false);
    bench.gate.set(true);
    bench.offer_writes(0..80);
    bench.rig.kick(REQUESTS);
    bench.wait_arrived(WORKERS);
    assert!(bench.rig.used(REQUESTS).is_empty());
    let mmio = bench.rig.mmio.clone();
    let drain = std::thread::spawn(move || mmio.drain());
    bench.rig.want_interrupt(REQUESTS, true);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!drain.is_finished(), "drained with requests in flight");
    assert!(bench.rig.mmio.save().is_err());
    bench.gate.set(false);
    drain.join().unwrap().unwrap();
    // All is in the used ring and announced when the drain returns; what comes now is held back.
    assert_eq!(bench.rig.used(REQUESTS).len(), 80);
    assert!(bench.rig.edges.take() > 0);
    bench.check_writes(0..80);
    bench.rig.mmio.save().unwrap();
    bench.offer_writes(80..100);
    bench.rig.kick(REQUESTS);
    std::thread::sleep(Duration::from_millis(20));
    assert!(bench.rig.used(REQUESTS).is_empty());
    bench.rig.mmio.undrain();
    bench.rig.run();
    bench.rig.wait_used(REQUESTS, 20);
    bench.check_writes(80..100);
}

#[test]
fn a_drain_that_takes_too_long_is_an_error_and_the_disk_goes_on() {
    let mut bench = bench(false);
    bench.gate.set(true);
    bench.offer_writes(0..1);
    bench.rig.kick(REQUESTS);
    let error = bench.rig.mmio.drain_within(Duration::from_millis(10)).unwrap_err().to_string();
    assert!(error.contains("disk disk-with-a-name-of-more-than-20: requests are still in flight"), "{error}");
    bench.gate.set(false);
    bench.offer_writes(1..2);
    bench.rig.kick(REQUESTS);
    bench.rig.wait_used(REQUESTS, 2);
    bench.check_writes(0..2);
}

#[test]
fn a_reset_waits_for_what_is_in_flight_and_then_no_ram_is_touched() {
    let mut bench = bench(false);
    bench.gate.set(true);
    bench.offer_writes(0..20);
    bench.rig.kick(REQUESTS);
    bench.wait_arrived(WORKERS);
    let mmio = bench.rig.mmio.clone();
    let reset = std::thread::spawn(move || crate::BusDevice::write(&*mmio, 0x70, &[0; 4]));
    std::thread::sleep(Duration::from_millis(20));
    assert!(!reset.is_finished(), "reset with requests in flight");
    assert_eq!(bench.rig.read(0x100), SECTORS as u32, "other vCPUs are served meanwhile");
    bench.gate.set(false);
    reset.join().unwrap();
    assert_eq!(bench.rig.status(), 0);
    assert_eq!(bench.rig.used(REQUESTS).len(), 20);
    bench.check_writes(0..20);
    bench.rig.start_with_all();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 100, &[Piece::In(BUFFER, 512)]), (OK, 513));
}

#[test]
fn more_requests_than_the_queue_holds_go_through_it_in_turn() {
    let mut bench = bench(false);
    for first in (0..240).step_by(80) {
        bench.offer_writes(first..first + 80);
        bench.rig.kick(REQUESTS);
        bench.rig.wait_used(REQUESTS, 80);
    }
    bench.check_writes(0..240);
    assert_eq!(bench.counters.requests.load(Ordering::SeqCst), 240);
}

#[test]
fn workers_block_all_signals() {
    let _bench = idle(false);
    let workers = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
        let status = std::fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        status.starts_with("Name:\tdisk disk-with").then_some(status)
    });
    let mut seen = 0;
    for status in workers {
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        let blocked = u64::from_str_radix(blocked, 16).unwrap();
        let mut wanted = 0;
        for signal in nix::sys::signal::Signal::iterator() {
            use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};
            wanted |= if matches!(signal, SIGKILL | SIGSTOP) { 0 } else { 1 << (signal as u32 - 1) };
        }
        assert_eq!(blocked & wanted, wanted, "{blocked:#x}");
        seen += 1;
    }
    assert!(seen >= WORKERS, "{seen}");
}

/// Cuts `bytes` from `address` on into pieces at the given places.
fn cut(address: u64, bytes: u64, cuts: &[u64], piece: fn(u64, u32) -> Piece) -> Vec<Piece> {
    let mut places: Vec<u64> = cuts.iter().map(|cut| cut % (bytes + 1)).chain([0, bytes]).collect();
    places.sort_unstable();
    places.windows(2).map(|ends| piece(address + ends[0], (ends[1] - ends[0]) as u32)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a request is cut into descriptors (§2.7.4.4), also across the border of two regions of RAM, it is the same
    /// request.
    #[test]
    fn a_request_is_the_same_however_it_is_cut(
        sector in 0_u64..250, sectors in 1_u64..6, write in any::<bool>(), across in any::<bool>(),
        cuts in prop::collection::vec(any::<u64>(), 0..12),
    ) {
        let mut bench = bench(false);
        let bytes = sectors * SECTOR_BYTES;
        let data = if across { REGION_BYTES as u64 - 700 } else { BUFFER };
        let kind = if write { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
        let content: Vec<u8> = (0..bytes).map(|n| (n * 7 + 3) as u8).collect();
        // Header and data of a write are one run, as are data and status of a read.
        bench.rig.put(data - 16, &header(kind, sector));
        bench.rig.put(STATUS, &[NOTHING]);
        let mut pieces = if write {
            bench.rig.put(data, &content);
            cut(data - 16, 16 + bytes, &cuts, Piece::Out)
        } else {
            [cut(data - 16, 16, &cuts, Piece::Out), cut(data, bytes + 1, &cuts, Piece::In)].concat()
        };
        let status_at = if write { STATUS } else { data + bytes };
        pieces.extend(write.then_some(Piece::In(STATUS, 1)));
        bench.rig.offer(REQUESTS, &pieces);
        bench.rig.kick(REQUESTS);
        let used = bench.rig.wait_used(REQUESTS, 1);
        prop_assert_eq!(used[0].1 as u64, if write { 1 } else { bytes + 1 });
        prop_assert_eq!(bench.rig.bytes(status_at, 1), [OK]);
        let expected: Vec<u8> = match write {
            true => content,
            false => (0..sectors).flat_map(|n| [(sector + n) as u8; 512]).collect(),
        };
        let file: Vec<u8> = (0..sectors).flat_map(|n| bench.sector(sector + n)).collect();
        prop_assert_eq!(&file, &expected);
        prop_assert_eq!(bench.rig.bytes(data, bytes as usize), expected);
    }
}
