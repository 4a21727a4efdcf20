//! An image of each released format version loads, for ever. `golden/v1` was written by the test below that is ignored;
//! a version that has been released is never written again.

mod common;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ckvmm_snapshot::{Image, Progress, Region, Run, StagedImage};
use common::{CHUNK, Counter, HIGH};

fn golden(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version)
}

#[test]
fn version_1_loads() {
    let mut image = Image::open(&golden("v1")).expect("opens");
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
        let (new, old) = (std::fs::read(path.join(file)), std::fs::read(golden("v1").join(file)));
        assert!(new.expect("read") == old.expect("read"), "{file}: the format moved without a new version");
    }
}

#[test]
#[ignore = "writes the golden image of a format version that has not been released"]
fn write_golden() {
    let mut staged = StagedImage::create(&golden("v1")).expect("create");
    common::fill(&mut staged).expect("fills");
    staged.commit(common::head()).expect("commits");
}
