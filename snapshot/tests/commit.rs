//! A checkpoint is whole or not there. (The order of operations, and what failures and crashes at each of them leave,
//! is tested beside the code, where a layer between it and the file system can be slipped in.)

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ckvmm_snapshot::{Error, Image, Progress, StagedImage, Store};
use nix::fcntl::{Flock, FlockArg};

#[test]
fn without_a_commit_nothing_is_left() {
    let store = tempfile::tempdir().expect("directory");
    let mut staged = StagedImage::create(&store.path().join("000001")).expect("create");
    common::fill(&mut staged).expect("fills");
    assert_eq!(common::names_in(store.path()).len(), 1, "the staging directory");
    assert!(common::names_in(store.path())[0].starts_with(".STAGING-"));
    drop(staged);
    assert_eq!(common::names_in(store.path()), [""; 0]);
}

#[test]
fn a_directory_without_a_manifest_is_not_a_checkpoint() {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("000001")).expect("commits");
    std::fs::rename(path.join("manifest.json"), path.join("other.json")).expect("rename");
    let error = Image::open(&path).expect_err("not a checkpoint");
    assert!(matches!(error, Error::NotACheckpoint { .. }), "{error}");
    assert!(error.to_string().contains("manifest.json"), "{error}");
    assert!(Store::new(store.path()).list().expect("lists").is_empty());
    assert!(Store::new(store.path()).latest().expect("looks").is_none());
}

#[test]
fn other_wrong_names_say_what_they_are() {
    let store = tempfile::tempdir().expect("directory");
    let message = |path: &Path| Image::open(path).expect_err("not a checkpoint").to_string();
    assert!(message(&store.path().join("missing")).contains("does not exist"));
    let file = store.path().join("file");
    std::fs::write(&file, "x").expect("write");
    assert!(message(&file).contains("not a directory"), "{}", message(&file));
    let path = common::checkpoint(&store.path().join("000001")).expect("commits");
    let found = message(store.path());
    assert!(found.contains("name one, for example") && found.contains(path.to_str().expect("UTF-8")), "{found}");
}

#[test]
fn an_image_is_committed_only_if_it_is_complete() {
    let store = tempfile::tempdir().expect("directory");
    let create = || StagedImage::create(&store.path().join("000001")).expect("create");
    let incomplete = |staged: StagedImage| match staged.commit(common::head()) {
        Err(Error::Incomplete { what }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(incomplete(create()), "state");
    let mut staged = create();
    staged.write_state(&common::small_state()).expect("state");
    assert_eq!(incomplete(staged), "memory");
    let mut staged = create();
    common::fill(&mut staged).expect("fills");
    common::capture_disk(&mut staged, "data", &common::small_disk()).expect("captures");
    assert!(incomplete(staged).contains("disks/data"));

    // A part that failed is a part that is missing, even if the caller goes on.
    let mut staged = create();
    staged.write_state(&common::small_state()).expect("state");
    let cancelled = Progress::new();
    cancelled.cancel();
    assert!(matches!(staged.write_memory(&common::small_ram(), &[], &cancelled), Err(Error::Cancelled)));
    assert_eq!(incomplete(staged), "memory");
    let mut staged = create();
    common::fill(&mut staged).expect("fills");
    let directory = std::fs::File::open(store.path()).expect("open");
    common::capture_disk(&mut staged, "data", &directory).expect_err("a directory is no disk");
    staged.finish_disks(&Progress::new()).expect("nothing is left to do");
    assert!(incomplete(staged).contains("disks/data"));
    assert_eq!(common::names_in(store.path()), [""; 0]);
}

#[test]
fn cancelling_ends_each_long_operation() {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("000001")).expect("commits");
    let cancelled = Progress::new();
    cancelled.cancel();
    let image = Image::open(&path).expect("opens");
    assert!(matches!(image.verify(&cancelled), Err(Error::Cancelled)));
    let mut staged = StagedImage::create(&store.path().join("000002")).expect("create");
    common::capture_disk(&mut staged, "root", &common::small_disk()).expect("captures");
    assert!(matches!(staged.finish_disks(&cancelled), Err(Error::Cancelled)));
    assert!(matches!(staged.write_memory(&common::small_ram(), &[], &cancelled), Err(Error::Cancelled)));
    drop(staged);
    assert_eq!(common::names_in(store.path()), ["000001", "latest"]);
}

#[test]
fn nothing_is_overwritten() {
    let store = tempfile::tempdir().expect("directory");
    let path = store.path().join("000001");
    let taken: [&dyn Fn(); 4] = [
        &|| std::fs::create_dir(&path).expect("mkdir"),
        &|| std::fs::write(&path, "mine").expect("write"),
        &|| std::os::unix::fs::symlink("nowhere", &path).expect("symlink"),
        &|| drop(common::checkpoint(&path).expect("commits")),
    ];
    for take in taken {
        // Taken before it begins,
        take();
        let refused = StagedImage::create(&path).expect_err("the name is taken");
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
        remove(&path);
        // and taken while it works.
        let mut staged = StagedImage::create(&path).expect("the name is free");
        common::fill(&mut staged).expect("fills");
        take();
        let refused = staged.commit(common::head()).expect_err("the name is taken");
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
        assert!(path.symlink_metadata().is_ok());
        remove(&path);
        let left = common::names_in(store.path());
        assert!(left.is_empty() || left == ["latest"], "{left:?}");
    }
}

fn remove(path: &Path) {
    match path.symlink_metadata().expect("exists").is_dir() {
        true => std::fs::remove_dir_all(path).expect("rm"),
        false => std::fs::remove_file(path).expect("rm"),
    }
}

#[test]
fn the_name_never_shows_anything_but_a_whole_checkpoint() {
    let store = tempfile::tempdir().expect("directory");
    let path = store.path().join("000001");
    let watcher = std::thread::spawn({
        let path = path.clone();
        move || {
            let mut seen = 0;
            while seen < 10 {
                if path.exists() {
                    let image = Image::open(&path).expect("what has the name can be opened");
                    image.verify(&Progress::new()).expect("and is whole");
                    seen += 1;
                }
                std::thread::yield_now();
            }
        }
    });
    common::checkpoint(&path).expect("commits");
    watcher.join().expect("the watcher found no fault");
}

#[test]
fn places_that_cannot_hold_a_checkpoint_are_named() {
    let store = tempfile::tempdir().expect("directory");
    let message = |path: &Path| StagedImage::create(path).expect_err("cannot be").to_string();
    let deep = store.path().join("a/b/000001");
    assert!(message(&deep).contains("nor does the directory above"), "{}", message(&deep));
    std::fs::write(store.path().join("file"), "x").expect("write");
    let in_file = store.path().join("file/000001");
    assert!(message(&in_file).contains("not a directory"), "{}", message(&in_file));
    let in_in_file = store.path().join("file/store/000001");
    assert!(message(&in_in_file).contains("not a directory"), "{}", message(&in_in_file));
    assert!(!message(Path::new("/")).is_empty());
    assert!(!message(Path::new("..")).is_empty());
    assert_eq!(common::names_in(store.path()), ["file"]);
}

#[test]
fn a_sweep_removes_what_is_dead_and_nothing_else() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::new(directory.path());
    let path = common::checkpoint(&directory.path().join("000001")).expect("commits");
    let mut alive = StagedImage::create(&directory.path().join("000002")).expect("create");
    common::fill(&mut alive).expect("fills");

    let dead = directory.path().join(format!(".STAGING-{}", uuid::Uuid::from_u128(7)));
    std::fs::create_dir_all(dead.join("disks")).expect("mkdir");
    std::fs::write(dead.join("memory"), "half").expect("write");
    let link = directory.path().join(format!(".latest-{}", uuid::Uuid::from_u128(8)));
    std::os::unix::fs::symlink("000001", &link).expect("symlink");

    // Not ours, however alike they look.
    let elsewhere = tempfile::tempdir().expect("directory");
    std::fs::write(elsewhere.path().join("precious"), "x").expect("write");
    let trap = directory.path().join(format!(".STAGING-{}", uuid::Uuid::from_u128(9)));
    std::os::unix::fs::symlink(elsewhere.path(), &trap).expect("symlink");
    for name in [".STAGING-notes", "STAGING", ".hidden"] {
        std::fs::create_dir(directory.path().join(name)).expect("mkdir");
    }
    let file = directory.path().join(format!(".STAGING-{}", uuid::Uuid::from_u128(10)));
    std::fs::write(&file, "x").expect("write");

    let mut removed = store.sweep_staging().expect("sweeps");
    removed.sort();
    assert_eq!(removed, [dead, link]);
    assert!(elsewhere.path().join("precious").exists());
    assert!(trap.is_symlink() && file.exists());
    alive.commit(common::head()).expect("the living were left alone");
    Image::open(&path).expect("and so were checkpoints");
    assert!(store.sweep_staging().expect("sweeps").is_empty());
    assert!(Store::new(directory.path().join("missing")).sweep_staging().expect("nothing there").is_empty());
}

#[test]
fn a_sweep_waits_for_nobody() {
    let directory = tempfile::tempdir().expect("directory");
    let busy = directory.path().join(format!(".STAGING-{}", uuid::Uuid::from_u128(7)));
    std::fs::create_dir(&busy).expect("mkdir");
    let open = std::fs::File::open(&busy).expect("open");
    let lock = Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).expect("locks");
    let store = Store::new(directory.path());
    assert!(store.sweep_staging().expect("sweeps").is_empty());
    drop(lock);
    assert_eq!(store.sweep_staging().expect("sweeps"), [busy]);
}

#[test]
fn sweeps_and_checkpoints_at_once_lose_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                Store::new(directory.path()).sweep_staging().expect("sweeps");
            }
        });
        let makers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let mut staged = Store::new(directory.path()).stage().expect("stages");
                        common::fill(&mut staged).expect("fills");
                        staged.commit(common::head()).expect("commits");
                    }
                })
            })
            .collect();
        let made: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
        end.store(true, Ordering::Relaxed);
        assert!(made.iter().all(Result::is_ok), "no maker failed");
    });
    let entries = Store::new(directory.path()).list().expect("lists");
    let numbers: Vec<_> = entries.iter().map(|entry| entry.number).collect();
    assert_eq!(numbers, (1..=20).map(Some).collect::<Vec<_>>(), "each its own number, none skipped");
    for entry in entries {
        Image::open(&entry.path).expect("opens").verify(&Progress::new()).expect("verifies");
    }
}
