//! What is written comes back, is private, sparse and untouched by reading.

mod common;

use std::os::unix::fs::{FileExt, PermissionsExt};

use ckvmm_snapshot::{Chunk, CopyMethod, Error, Image, Phase, Progress, Region, Run, StagedImage};
use common::{CHUNK, Counter, HIGH};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[test]
fn a_checkpoint_comes_back() {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("000001")).expect("commits");
    let mut image = Image::open(&path).expect("opens");

    let manifest = image.manifest();
    let head = common::head();
    assert_eq!((manifest.name.as_str(), manifest.mode.as_str()), ("node0", "stop"));
    assert_eq!((manifest.lineage, manifest.parent, manifest.created), (head.lineage, head.parent, head.created));
    assert_eq!((&manifest.config, &manifest.host), (&head.config, &head.host));
    assert_eq!((manifest.memory_bytes, manifest.pause_us), (72 << 10, 1500));
    let files: Vec<&String> = manifest.files.keys().collect();
    assert_eq!(files, ["disks/root", "disks/root.map", "memory", "memory.map", "state"]);

    let mut state = image.take_state().expect("the first time");
    assert_eq!(state.take::<Counter>("counter/0").expect("is there"), common::counter());
    state.finish().expect("nothing else");
    assert!(matches!(image.take_state(), Err(Error::StateMissing { .. })));

    let memory = image.memory();
    assert_eq!(
        memory.regions(),
        [
            Region { guest_address: 0, bytes: 64 << 10, file_offset: 0 },
            Region { guest_address: HIGH, bytes: 8 << 10, file_offset: CHUNK },
        ]
    );
    assert_eq!(
        memory.plan().mapped,
        [
            Run { guest_address: 0, bytes: 64 << 10, file_offset: 0, layer: 0 },
            Run { guest_address: HIGH, bytes: 8 << 10, file_offset: CHUNK, layer: 0 },
        ]
    );
    let mut bytes = [0; 4];
    memory.layer(0).read_exact_at(&mut bytes, CHUNK + 0x1ffc).expect("read");
    assert_eq!(&bytes, b"high");

    assert_eq!(image.disk_ids().collect::<Vec<_>>(), ["root"]);
    assert_eq!(image.disk_bytes("root"), Some(20_000));
    let progress = Progress::new();
    image.verify(&progress).expect("nothing has changed");
    assert_eq!(progress.phase(), Phase::Verify);
    assert_eq!(progress.bytes_done(), progress.bytes_total());
}

#[test]
fn all_of_it_is_private() {
    let above = tempfile::tempdir().expect("directory");
    let store = above.path().join("checkpoints");
    let path = common::checkpoint(&store.join("000001")).expect("makes the store");
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!((mode(&store), mode(&path), mode(&path.join("disks"))), (0o700, 0o700, 0o700));
    for file in common::files_in(&path) {
        assert_eq!(mode(&path.join(&file)), 0o600, "{}", file.display());
    }
}

#[test]
fn reading_leaves_the_image_as_it_is() {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("000001")).expect("commits");
    let contents = || -> Vec<Vec<u8>> {
        common::files_in(&path).iter().map(|file| std::fs::read(path.join(file)).expect("read")).collect()
    };
    let before = contents();
    for round in 0..2 {
        let image = Image::open(&path).expect("opens");
        let disk = store.path().join(format!("working-{round}.raw"));
        image.materialise_disk("root", &disk).expect("makes a disk");
        let working = std::fs::OpenOptions::new().write(true).open(&disk).expect("is the owner's");
        working.write_all_at(b"changed", 0).expect("can be written");
        image.verify(&Progress::new()).expect("the image has not changed");
    }
    assert!(before == contents(), "the same bytes in the same files");
}

#[test]
fn zero_memory_takes_no_space() {
    let store = tempfile::tempdir().expect("directory");
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).expect("RAM");
    ram.write_obj(1_u8, GuestAddress(10 * CHUNK + 5)).expect("in RAM");
    ram.write_obj(1_u8, GuestAddress(11 * CHUNK)).expect("in RAM");
    ram.write_obj(1_u8, GuestAddress(31 * CHUNK + CHUNK - 1)).expect("in RAM");
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    staged.write_state(&common::small_state()).expect("state");
    let progress = Progress::new();
    assert_eq!(staged.write_memory(&ram, &[], &progress).expect("memory"), 3 * CHUNK);
    assert_eq!((progress.bytes_done(), progress.bytes_total()), (64 << 20, 64 << 20));
    let path = staged.commit(common::head()).expect("commits");
    let image = Image::open(&path).expect("opens");
    assert_eq!(
        image.memory().plan().mapped,
        [
            Run { guest_address: 10 * CHUNK, bytes: 2 * CHUNK, file_offset: 10 * CHUNK, layer: 0 },
            Run { guest_address: 31 * CHUNK, bytes: CHUNK, file_offset: 31 * CHUNK, layer: 0 },
        ]
    );
    assert_eq!((image.memory().bytes(), image.memory().data_bytes()), (64 << 20, 3 * CHUNK));
    assert!(common::allocated(&path.join("memory")) <= 3 * CHUNK, "holes within data chunks too");
    image.verify(&Progress::new()).expect("verifies");
}

#[test]
fn a_disk_keeps_content_and_holes() {
    let store = tempfile::tempdir().expect("directory");
    let huge = 1 << 40;
    let disk = common::sparse_file(huge, &[(0, b"a"), (5 * CHUNK - 1, b"bc"), (huge - 1, b"d")]);
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    common::fill(&mut staged).expect("fills");
    let live = common::capture_disk(&mut staged, "data", &disk).expect("captures");
    // The guest runs on; the captured disk does not change.
    live.before_change(0..5);
    disk.write_all_at(b"later", 0).expect("write");
    staged.finish_disks(&Progress::new()).expect("digests");
    let path = staged.commit(common::head()).expect("commits");
    let image = Image::open(&path).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    let copy = store.path().join("working.raw");
    image.materialise_disk("data", &copy).expect("makes a disk");
    assert!(common::allocated(&copy) < CHUNK, "{} bytes", common::allocated(&copy));
    let copy = std::fs::File::open(&copy).expect("open");
    assert_eq!(copy.metadata().expect("metadata").len(), huge);
    for (offset, expected) in [(0, b"a\0"), (5 * CHUNK - 1, b"bc"), (huge - 2, b"\0d")] {
        let mut found = [0; 2];
        copy.read_exact_at(&mut found, offset).expect("read");
        assert_eq!(&found, expected, "at {offset}");
    }
}

#[test]
fn disks_of_every_size_come_back() {
    let store = tempfile::tempdir().expect("directory");
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    common::fill(&mut staged).expect("fills");
    let sizes = [0, 1, 511, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7];
    let content = |size: u64| -> Vec<u8> { (0..size).map(|at| (at / 3 % 251) as u8).collect() };
    for size in sizes {
        let disk = common::sparse_file(size, &[(0, &content(size))]);
        common::capture_disk(&mut staged, &format!("d{size}"), &disk).expect("captures");
    }
    staged.finish_disks(&Progress::new()).expect("digests");
    let image = Image::open(&staged.commit(common::head()).expect("commits")).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    for size in sizes {
        let to = store.path().join(size.to_string());
        image.materialise_disk(&format!("d{size}"), &to).expect("makes a disk");
        assert!(std::fs::read(&to).expect("read") == content(size), "{size}");
    }
}

#[test]
fn a_disk_is_made_once_and_only_if_it_is_there() {
    let store = tempfile::tempdir().expect("directory");
    let image = Image::open(&common::checkpoint(&store.path().join("a")).expect("commits")).expect("opens");
    let to = store.path().join("disk");
    assert!(matches!(image.materialise_disk("data", &to), Err(Error::Disk { .. })));
    assert!(!to.exists());
    assert!(matches!(image.materialise_disk("root", &to), Ok(CopyMethod::Copy | CopyMethod::Reflink)));
    assert!(matches!(image.materialise_disk("root", &to), Err(Error::Exists { .. })));
    let nowhere = store.path().join("missing/disk");
    let error = image.materialise_disk("root", &nowhere).expect_err("no such directory").to_string();
    assert!(error.contains("missing/disk") && error.contains("No such file"), "{error}");
}

#[test]
fn wrong_disks_are_refused() {
    let store = tempfile::tempdir().expect("directory");
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    for id in ["", "..", "a/b", "A", "-a", "a.map", "a\0", &"a".repeat(64)] {
        assert!(
            matches!(common::capture_disk(&mut staged, id, &common::small_disk()), Err(Error::Disk { .. })),
            "{id:?}"
        );
    }
    common::capture_disk(&mut staged, "root", &common::small_disk()).expect("captures");
    assert!(matches!(common::capture_disk(&mut staged, "root", &common::small_disk()), Err(Error::Disk { .. })));
    staged.finish_disks(&Progress::new()).expect("digests");
    assert!(matches!(common::capture_disk(&mut staged, "root", &common::small_disk()), Err(Error::Disk { .. })));
}

#[test]
fn memory_that_is_not_whole_pages_is_refused() {
    let store = tempfile::tempdir().expect("directory");
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 5000)]).expect("RAM");
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    let error = staged.write_memory(&ram, &[], &Progress::new()).expect_err("not whole pages");
    assert!(matches!(error, Error::Memory { .. }), "{error}");
}

#[test]
fn chunks_of_a_map_are_those_of_the_file() {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("a")).expect("commits");
    let map =
        ckvmm_snapshot::ChunkMap::decode(&std::fs::read(path.join("memory.map")).expect("read")).expect("decodes");
    let memory = std::fs::read(path.join("memory")).expect("read");
    let chunks: Vec<_> = map.chunks().collect();
    assert_eq!(chunks.len(), 2);
    for (range, chunk) in chunks {
        let bytes = &memory[range.start as usize..range.end as usize];
        assert_eq!(chunk, Chunk::Data(map.tagging().tag(bytes)), "padding counts");
    }
}

#[test]
fn what_was_under_way_to_a_network_card_comes_back_or_is_missed() {
    let store = tempfile::tempdir().expect("directory");
    let mut staged = StagedImage::create(&store.path().join("n-0")).expect("room");
    staged.write_state(&common::small_state()).expect("writes");
    staged.write_memory(&common::small_ram(), &[], &Progress::new()).expect("writes");
    staged.write_network("eth0", b"frames").expect("writes");
    let path = staged.commit(common::head()).expect("commits");

    let image = Image::open(&path).expect("opens");
    assert_eq!(image.manifest().format_version, 3, "one that knows nothing of it must not restore it");
    assert_eq!(image.network_ids().collect::<Vec<_>>(), ["eth0"]);
    assert_eq!(image.network("eth0").expect("reads").as_deref(), Some(&b"frames"[..]));
    assert_eq!(image.network("eth1").expect("looks"), None);
    let flat = image.flatten(&store.path().join("flat"), &Progress::new()).expect("flattens");
    let flat = Image::open(&flat).expect("opens");
    assert_eq!(flat.network("eth0").expect("reads").as_deref(), Some(&b"frames"[..]));

    std::fs::write(path.join("network/eth0"), b"Frames").expect("write");
    assert!(matches!(Image::open(&path), Err(Error::Digest { .. })));
}
