//! An image of each released format version loads, for ever. Each was written by the test below that is ignored; a version
//! that has been released is never written again. `golden/v1-tags` is one of version 1 with chunk maps of version 2.

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ckvmm_snapshot::{Chunk, ChunkMap, Image, Progress, Region, Run, StagedImage};
use common::{CHUNK, Counter, HIGH};

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version)
}

#[test]
fn version_1_loads() {
    ["v1", "v1-tags"].into_iter().for_each(loads);
}

fn loads(version: &str) {
    let mut image = Image::open(&golden(version)).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    let manifest = image.manifest();
    assert_eq!((manifest.format_version, manifest.name.as_str(), manifest.pause_us), (1, "node0", 1500));
    assert_eq!(manifest.created, "2024-05-06T07:08:09Z".parse().expect("a time"));
    assert_eq!(manifest.config, common::head().config);

    let mut state = image.take_state().expect("once");
    assert_eq!(state.take::<Counter>("counter/0").expect("is there"), common::counter());
    state.finish().expect("nothing else");

    let memory = image.memory();
    let low = Region { guest_address: 0, bytes: 64 << 10, file_offset: 0 };
    let high = Region { guest_address: HIGH, bytes: 8 << 10, file_offset: CHUNK };
    assert_eq!(memory.regions(), [low, high]);
    let run = |region: Region| {
        let Region { guest_address, bytes, file_offset } = region;
        Run { guest_address, bytes, file_offset, layer: 0 }
    };
    assert_eq!(memory.plan().mapped, [low, high].map(run));
    for (offset, expected) in [(0x1000, "low\0"), (CHUNK + 0x1ffc, "high")] {
        let mut found = [0; 4];
        memory.layer(0).read_exact_at(&mut found, offset).expect("read");
        assert_eq!(&found, expected.as_bytes());
    }

    let directory = tempfile::tempdir().expect("directory");
    let disk = directory.path().join("root.raw");
    image.materialise_disk("root", &disk).expect("makes a disk");
    let mut expected = vec![0; 20_000];
    expected[..4].copy_from_slice(b"boot");
    expected[19_999] = b'!';
    assert!(std::fs::read(disk).expect("read") == expected);
}

#[test]
fn today_s_files_are_those_of_version_1() {
    let directory = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&directory.path().join("a")).expect("commits");
    for file in ["state", "memory", "memory.map", "disks/root", "disks/root.map"] {
        let [new, old] = [&path, &golden("v1-tags")].map(|image| without_tags(file, &image.join(file)));
        assert!(new == old, "{file}: the format moved without a new version");
    }
}

/// The bytes of a file; of a chunk map without the key, which is a random one, and what was made with it.
fn without_tags(name: &str, path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).expect("read");
    if name.ends_with(".map") {
        let tags =
            ChunkMap::decode(&bytes).expect("decodes").chunks().filter(|(_, chunk)| *chunk != Chunk::Zero).count();
        let first = bytes.len() - 32 * tags;
        bytes[40..56].fill(0);
        bytes[first..].fill(0);
    }
    bytes
}

/// What has not changed is found by digests that are made as the old image's are.
#[test]
fn what_is_built_on_version_1_has_digests_like_its() {
    let directory = tempfile::tempdir().expect("directory");
    let old = directory.path().join("old");
    std::fs::create_dir_all(old.join("disks")).expect("directory");
    for file in ["manifest.json", "state", "memory", "memory.map", "disks/root", "disks/root.map"] {
        std::fs::copy(golden("v1").join(file), old.join(file)).expect("copies");
    }
    let base = Arc::new(Image::open(&old).expect("opens"));
    let mut staged = StagedImage::create(&directory.path().join("new")).expect("create");
    staged.build_on(&base).expect("builds");
    staged.write_state(&common::small_state()).expect("writes");
    let ram = common::small_ram();
    assert_eq!(staged.write_memory(&ram, &[], &Progress::new()).expect("writes"), 0, "nothing has changed");
    common::capture_disk(&mut staged, "root", &common::small_disk()).expect("captures");
    staged.finish_disks(&Progress::new()).expect("finishes");
    let new = staged.commit(common::head()).expect("commits");
    Image::open(&new).expect("opens").verify(&Progress::new()).expect("is whole");
    let map = |image: &Path| std::fs::read(image.join("memory.map")).expect("read");
    assert!(map(&new) == map(&old), "the map is another");

    let flat = directory.path().join("flat");
    Image::open(&new).expect("opens").flatten(&flat, &Progress::new()).expect("flattens");
    Image::open(&flat).expect("opens").verify(&Progress::new()).expect("is whole");
}

#[test]
#[ignore = "writes the golden image of a format version that has not been released"]
fn write_golden() {
    let mut staged = StagedImage::create(&golden("v1-tags")).expect("create");
    common::fill(&mut staged).expect("fills");
    staged.commit(common::head()).expect("commits");
}
