//! What a disk answers to each request.

use ckvmm_snapshot::{Progress, StagedImage};
use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{FILL, REGION_BYTES};

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

/// Cuts `bytes` from `address` on into pieces at the given places.
fn cut(address: u64, bytes: u64, cuts: &[u64], piece: fn(u64, u32) -> Piece) -> Vec<Piece> {
    let mut places: Vec<u64> = cuts.iter().map(|cut| cut % (bytes + 1)).chain([0, bytes]).collect();
    places.sort_unstable();
    places.windows(2).map(|ends| piece(address + ends[0], (ends[1] - ends[0]) as u32)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a request is cut into descriptors (§2.7.4.4), also across the border of two regions of RAM, it is the
    /// same request.
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

#[test]
fn what_a_request_changes_is_captured_before() {
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        let mut bench = bench(false);
        let store = tempfile::tempdir().unwrap();
        let mut staged = StagedImage::create(&store.path().join("image")).unwrap();
        staged.prepare_disk("root", &bench.live).unwrap();
        staged.cut_disks();
        // Whole blocks of the file system, so that they can become a hole.
        let (data, bytes) = if kind == VIRTIO_BLK_T_OUT { (vec![0x77; 4096], 4096) } else { (range(8, 8, 0), 16) };
        bench.rig.put(BUFFER, &data);
        assert_eq!(bench.request(kind, 8, &[Piece::Out(BUFFER, bytes)]).0, OK);
        assert_ne!(bench.sector(9), [9; 512], "{kind} changes the disk");
        staged.finish_disks(&Progress::new()).unwrap();
        let staging = std::fs::read_dir(store.path()).unwrap().next().unwrap().unwrap().path();
        let captured = std::fs::read(staging.join("disks/root")).unwrap();
        assert_eq!(captured[9 * 512..10 * 512], [9; 512], "{kind}: as it was at the cut");
    }
}
