//! A directory of checkpoints: names, order, the hint, removal.

mod common;

use std::path::Path;

use ckvmm_snapshot::{Error, Image, StagedImage, Store};

fn at(path: &Path, time: &str) {
    let mut staged = StagedImage::create(path).expect("create");
    common::fill(&mut staged).expect("fills");
    let created = time.parse().expect("a time");
    staged.commit(ckvmm_snapshot::ManifestHead { created, ..common::head() }).expect("commits");
}

fn listed(store: &Store) -> Vec<String> {
    let entries = store.list().expect("lists");
    entries.iter().map(|entry| entry.path.file_name().expect("name").to_string_lossy().into_owned()).collect()
}

#[test]
fn numbers_follow_each_other() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::new(directory.path().join("store"));
    assert_eq!(store.next_name().expect("no store yet"), "000001");
    assert!(store.latest().expect("no store yet").is_none());
    assert!(store.list().is_err(), "a store that is not there is not an empty one");
    std::fs::create_dir_all(store.path().join("000041")).expect("mkdir");
    std::fs::write(store.path().join("0000099"), "no number: seven digits begin with no zero").expect("write");
    std::fs::write(store.path().join("99x"), "").expect("write");
    assert_eq!(store.next_name().expect("name"), "000042", "whatever has the number 41");
    std::fs::create_dir(store.path().join("999999")).expect("mkdir");
    assert_eq!(store.next_name().expect("name"), "1000000");
}

#[test]
fn stage_takes_the_number_at_the_commit() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::new(directory.path().join("store"));
    let mut first = store.stage().expect("makes the store");
    let mut second = store.stage().expect("stages");
    common::fill(&mut first).expect("fills");
    common::fill(&mut second).expect("fills");
    assert_eq!(second.commit(common::head()).expect("commits"), store.path().join("000001"));
    assert_eq!(first.commit(common::head()).expect("commits"), store.path().join("000002"));
}

#[test]
fn the_list_is_in_order_and_the_newest_is_found_without_the_hint() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::new(directory.path());
    at(&directory.path().join("000010"), "2024-01-01T00:00:00Z");
    at(&directory.path().join("zz-old"), "2001-01-01T00:00:00Z");
    at(&directory.path().join("aa-young"), "2002-01-01T00:00:00Z");
    // The clock went back; the number did not.
    at(&directory.path().join("000011"), "1999-01-01T00:00:00Z");
    std::fs::create_dir(directory.path().join("not-one")).expect("mkdir");
    assert_eq!(listed(&store), ["zz-old", "aa-young", "000010", "000011"]);

    assert_eq!(std::fs::read_link(directory.path().join("latest")).expect("a link"), Path::new("000011"));
    let image = Image::open(&directory.path().join("latest")).expect("opens");
    assert_eq!(image.path().file_name(), Some("000011".as_ref()), "the checkpoint, not the link");
    std::fs::remove_file(directory.path().join("latest")).expect("rm");
    let latest = store.latest().expect("looks").expect("is there");
    assert_eq!((latest.number, latest.path), (Some(11), directory.path().join("000011")));

    store.remove("000011").expect("removes");
    store.remove("000010").expect("removes");
    assert_eq!(store.latest().expect("looks").expect("is there").path, directory.path().join("aa-young"));
}

#[test]
fn a_damaged_checkpoint_is_listed_with_its_error_and_not_passed_over() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::new(directory.path());
    for name in ["000001", "000002"] {
        common::checkpoint(&directory.path().join(name)).expect("commits");
    }
    std::fs::write(directory.path().join("000002/manifest.json"), "{}").expect("write");
    let entries = store.list().expect("lists");
    assert!(entries[0].manifest.is_ok());
    assert!(matches!(entries[1].manifest, Err(Error::Damaged { .. })));
    let latest = store.latest().expect("looks").expect("is there");
    assert_eq!(latest.number, Some(2), "going on from an older one would lose work in silence");
    assert!(latest.manifest.is_err());
}

#[test]
fn the_hint_is_only_for_numbers_and_takes_no_name_away() {
    let directory = tempfile::tempdir().expect("directory");
    let latest = directory.path().join("latest");
    common::checkpoint(&directory.path().join("before-upgrade")).expect("commits");
    assert!(latest.symlink_metadata().is_err(), "a user's own name in a user's own directory");
    std::fs::write(&latest, "mine").expect("write");
    common::checkpoint(&directory.path().join("000001")).expect("commits");
    assert_eq!(std::fs::read(&latest).expect("read"), b"mine");
    std::fs::remove_file(&latest).expect("rm");
    for name in ["000002", "000003"] {
        common::checkpoint(&directory.path().join(name)).expect("commits");
        assert_eq!(std::fs::read_link(&latest).expect("a link"), Path::new(name));
    }
    assert_eq!(common::names_in(directory.path()).len(), 5, "no temporary link is left");
}

#[test]
fn only_checkpoints_are_removed() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::new(directory.path().join("store"));
    common::checkpoint(&store.path().join("000001")).expect("commits");
    common::checkpoint(&directory.path().join("outside")).expect("commits");
    std::fs::create_dir(store.path().join("other")).expect("mkdir");
    for name in ["", ".", "..", "../outside", "missing", "other", "latest", "000001/disks", "/"] {
        let error = store.remove(name).expect_err("not a checkpoint of this store");
        assert!(matches!(error, Error::NotACheckpoint { .. }), "{name:?}: {error}");
    }
    let image = Image::open(&store.path().join("000001")).expect("opens");
    store.remove("000001").expect("removes");
    assert_eq!(common::names_in(store.path()), ["latest", "other"]);
    image.verify(&ckvmm_snapshot::Progress::new()).expect("who has it open keeps it");
}
