//! Whatever is done to the files of a committed image: it is seen, it is named, and nothing panics.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ckvmm_snapshot::{ChunkMap, Error, FileDigest, Image, Manifest, Progress, Result, StateMap};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// A committed image of its own for a test.
struct Victim {
    _store: tempfile::TempDir,
    path: PathBuf,
}

impl Victim {
    fn new() -> Victim {
        let store = tempfile::tempdir().expect("directory");
        let path = common::checkpoint(&store.path().join("000001")).expect("commits");
        check(&path).expect("is whole");
        Victim { _store: store, path }
    }

    fn flip(&self, file: &Path, at: u64, bits: u8) {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(file)).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ bits], at).expect("write");
    }
}

fn check(path: &Path) -> Result<()> {
    Image::open(path)?.verify(&Progress::new())
}

const ALL_FILES: [&str; 6] = ["disks/root", "disks/root.map", "manifest.json", "memory", "memory.map", "state"];

#[test]
fn these_are_all_the_files() {
    let victim = Victim::new();
    assert_eq!(common::files_in(&victim.path), ALL_FILES.map(PathBuf::from));
}

#[test]
fn every_flipped_byte_of_a_small_file_is_seen_at_once() {
    let victim = Victim::new();
    for file in ["disks/root.map", "manifest.json", "memory.map", "state"] {
        let file = Path::new(file);
        for at in 0..std::fs::metadata(victim.path.join(file)).expect("metadata").len() {
            for bits in [0x01, 0x20, 0xff] {
                victim.flip(file, at, bits);
                let error = Image::open(&victim.path).expect_err("damage").to_string();
                victim.flip(file, at, bits);
                assert!(error.contains(file.to_str().expect("UTF-8")), "byte {at} of {}: {error}", file.display());
            }
        }
    }
    check(&victim.path).expect("whole again");
}

#[test]
fn any_flipped_byte_of_a_large_file_is_found_in_its_chunk() {
    let victim = Victim::new();
    let flips = ["memory", "disks/root"].map(|file| {
        let bytes = std::fs::metadata(victim.path.join(file)).expect("metadata").len();
        (Just(file), 0..bytes, 1..=255_u8).boxed()
    });
    let [memory, disk] = flips;
    let mut runner = TestRunner::new(Config { cases: 128, failure_persistence: None, ..Config::default() });
    let test = |(file, at, bits): (&str, u64, u8)| {
        victim.flip(Path::new(file), at, bits);
        let seen = check(&victim.path);
        victim.flip(Path::new(file), at, bits);
        match seen {
            Err(Error::Digest { path, offset, bytes }) => {
                prop_assert_eq!(path, victim.path.join(file));
                prop_assert!((offset..offset + bytes).contains(&at), "{} in {}+{}", at, offset, bytes);
            }
            other => prop_assert!(false, "byte {} of {}: {:?}", at, file, other),
        }
        Ok(())
    };
    runner.run(&prop_oneof![memory, disk], test).expect("holds");
    check(&victim.path).expect("whole again");
}

#[test]
fn the_first_and_last_byte_of_every_chunk_count() {
    let victim = Victim::new();
    let ends = [
        ("memory", 0),
        ("memory", common::CHUNK - 1),
        ("memory", common::CHUNK),
        ("memory", common::CHUNK + 8191),
        ("disks/root", 0),
        ("disks/root", 10_000),
        ("disks/root", 19_999),
    ];
    for (file, at) in ends {
        victim.flip(Path::new(file), at, 1);
        let error = check(&victim.path).expect_err("damage");
        victim.flip(Path::new(file), at, 1);
        assert!(matches!(error, Error::Digest { .. }), "byte {at} of {file}: {error}");
    }
}

/// Replaces a file by something else for as long as `look` takes.
fn with_replaced(victim: &Victim, file: &str, replace: impl FnOnce(&Path), look: impl FnOnce(&Path)) {
    let (path, kept) = (victim.path.join(file), victim.path.join("kept"));
    std::fs::rename(&path, &kept).expect("rename");
    replace(&path);
    look(&victim.path);
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir(&path).expect("rmdir"),
        Ok(_) => std::fs::remove_file(&path).expect("rm"),
        Err(_) => {}
    }
    std::fs::rename(&kept, &path).expect("rename");
}

fn refused(file: &str, words: &'static [&'static str]) -> impl FnOnce(&Path) {
    let file = file.to_owned();
    move |path| {
        let line = Image::open(path).expect_err("damage").to_string();
        assert!(!line.contains('\n'), "{line}");
        let named = line.contains(&file) || (file == "manifest.json" && line.contains("not a checkpoint"));
        assert!(named && words.iter().any(|word| line.contains(word)), "{file}: {line}");
    }
}

#[test]
fn files_that_are_no_files_are_refused() {
    let victim = Victim::new();
    for file in ALL_FILES {
        with_replaced(&victim, file, |_| {}, refused(file, &["missing", "no manifest"]));
        with_replaced(
            &victim,
            file,
            |path| std::fs::create_dir(path).expect("mkdir"),
            refused(file, &["is a directory"]),
        );
        let kept = victim.path.join("kept");
        let link = |path: &Path| std::os::unix::fs::symlink(&kept, path).expect("symlink");
        with_replaced(&victim, file, link, refused(file, &["symbolic link"]));
        let pipe = |path: &Path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        with_replaced(&victim, file, pipe, refused(file, &["not a regular file"]));
    }
    check(&victim.path).expect("whole again");
}

#[test]
fn files_of_another_length_are_refused() {
    let victim = Victim::new();
    let words = &["damaged", "bytes long", "more than the limit"];
    for file in ALL_FILES {
        let whole = std::fs::read(victim.path.join(file)).expect("read");
        for bytes in [0, 1, whole.len() / 2, whole.len() - 1] {
            let truncate = |path: &Path| std::fs::write(path, &whole[..bytes]).expect("write");
            with_replaced(&victim, file, truncate, refused(file, words));
        }
        let longer = |path: &Path| std::fs::write(path, [whole.as_slice(), &[0]].concat()).expect("write");
        with_replaced(&victim, file, longer, refused(file, words));
        let endless = |path: &Path| {
            let file = std::fs::File::create(path).expect("create");
            file.set_len(1 << 42).expect("length");
        };
        with_replaced(&victim, file, endless, refused(file, words));
    }
    check(&victim.path).expect("whole again");
}

#[test]
fn a_file_truncated_after_opening_is_an_error_when_verified() {
    let victim = Victim::new();
    let image = Image::open(&victim.path).expect("opens");
    let memory = OpenOptions::new().write(true).open(victim.path.join("memory")).expect("open");
    memory.set_len(common::CHUNK).expect("truncate");
    assert!(matches!(image.verify(&Progress::new()), Err(Error::Size { .. })));
}

#[test]
fn files_of_another_checkpoint_are_refused() {
    let (victim, other) = (Victim::new(), tempfile::tempdir().expect("directory"));
    let mut staged = ckvmm_snapshot::StagedImage::create(&other.path().join("a")).expect("create");
    let progress = Progress::new();
    let ram = common::small_ram();
    vm_memory::Bytes::write_obj(&ram, 1_u8, vm_memory::GuestAddress(0)).expect("in RAM");
    staged.write_memory(&ram, &[], &progress).expect("memory");
    staged.write_state(&StateMap::new()).expect("state");
    common::capture_disk(&mut staged, "root", &common::sparse_file(20_000, &[(0, b"x")])).expect("captures");
    staged.finish_disks(&progress).expect("digests");
    let other = staged.commit(common::head()).expect("commits");
    for file in ALL_FILES {
        let copy = |path: &Path| {
            std::fs::copy(other.join(file), path).expect("copy");
        };
        with_replaced(&victim, file, copy, |path| drop(check(path).expect_err(file)));
    }
}

#[test]
fn files_that_agree_with_their_digests_but_not_with_each_other_are_refused() {
    let victim = Victim::new();
    // Puts the map of one file in the place of another's, and has the manifest say so.
    let swap = |manifest: &mut Manifest, from: &str, to: &str| {
        let map = std::fs::read(victim.path.join(format!("{from}.map"))).expect("read");
        std::fs::write(victim.path.join(format!("{to}.map")), map).expect("write");
        let entry = manifest.files[&format!("{from}.map")];
        let FileDigest::Whole(digest) = entry.digest else { panic!("a map is digested as a whole") };
        manifest.files.insert(format!("{to}.map"), entry);
        manifest.files.get_mut(to).expect("is there").digest = FileDigest::Chunks(digest);
    };
    let resize = |manifest: &mut Manifest, name: &str, bytes: u64| {
        let file = OpenOptions::new().write(true).open(victim.path.join(name)).expect("open");
        file.set_len(bytes).expect("length");
        manifest.files.get_mut(name).expect("is there").bytes = bytes;
    };
    type Lie<'a> = &'a dyn Fn(&mut Manifest);
    let lies: [(&str, Lie); 5] = [
        ("memory that the manifest states", &|manifest| manifest.memory_bytes += 4096),
        ("of a file of 20000 bytes", &|manifest| swap(manifest, "disks/root", "memory")),
        ("not the memory", &|manifest| {
            swap(manifest, "disks/root", "memory");
            resize(manifest, "memory", 20_000);
        }),
        ("has regions of memory", &|manifest| {
            swap(manifest, "memory", "disks/root");
            resize(manifest, "disks/root", common::CHUNK + 8192);
        }),
        ("bytes long, saved with", &|manifest| manifest.files.get_mut("state").expect("is there").bytes += 1),
    ];
    let before: Vec<_> = ALL_FILES.iter().map(|file| std::fs::read(victim.path.join(file)).expect("read")).collect();
    for (words, lie) in lies {
        let mut manifest = Manifest::load(&victim.path).expect("loads");
        lie(&mut manifest);
        std::fs::write(victim.path.join("manifest.json"), manifest.encode().expect("encodes")).expect("write");
        let line = Image::open(&victim.path).expect_err(words).to_string();
        assert!(line.contains(words), "{words}: {line}");
        for (file, content) in ALL_FILES.iter().zip(&before) {
            std::fs::write(victim.path.join(file), content).expect("write");
        }
        check(&victim.path).expect("whole again");
    }
}

/// Bytes that look like `whole` for a while: a mutation of it, or nothing like it at all.
fn mutated(whole: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let len = whole.len();
    let edits = proptest::collection::vec((0..len, any::<u8>()), 0..6);
    let similar =
        (edits, 0..=len, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(move |(edits, keep, tail)| {
            let mut bytes = whole.clone();
            edits.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(keep);
            bytes.extend(tail);
            bytes
        });
    prop_oneof![similar, proptest::collection::vec(any::<u8>(), 0..2000)]
}

fn small_file(name: &str) -> Vec<u8> {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("a")).expect("commits");
    std::fs::read(path.join(name)).expect("read")
}

#[test]
fn decoders_take_any_bytes() {
    let config = || Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let run = |name: &str, decode: fn(&[u8])| {
        let test = |bytes: Vec<u8>| {
            decode(&bytes);
            Ok(())
        };
        TestRunner::new(config()).run(&mutated(small_file(name)), test).expect("no panic");
    };
    run("state", |bytes| {
        // What decodes can be taken apart, and is what it would be written as.
        if let Ok(mut map) = StateMap::decode(bytes) {
            assert_eq!(map.encode(), bytes);
            let _ = map.take::<common::Counter>("counter/0");
        }
    });
    run("memory.map", |bytes| {
        if let Ok(map) = ChunkMap::decode(bytes) {
            assert_eq!(map.encode(), bytes);
            assert!(map.chunks().last().is_none_or(|(range, _)| range.end == map.file_bytes()));
        }
    });
    run("manifest.json", |bytes| drop(Manifest::decode(bytes)));
}

#[test]
fn an_image_of_any_bytes_is_refused_without_a_panic() {
    let victim = Victim::new();
    let whole: Vec<Vec<u8>> =
        ALL_FILES.iter().map(|file| std::fs::read(victim.path.join(file)).expect("read")).collect();
    let small = ALL_FILES.iter().zip(&whole).filter(|(_, whole)| whole.len() < 10_000);
    let any = small.map(|(file, whole)| (Just(*file), mutated(whole.clone())).boxed()).collect::<Vec<_>>();
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let test = |(file, bytes): (&str, Vec<u8>)| {
        let path = victim.path.join(file);
        let before = std::fs::read(&path).expect("read");
        std::fs::write(&path, &bytes).expect("write");
        let seen = check(&victim.path);
        std::fs::write(&path, &before).expect("write");
        prop_assert_eq!(seen.is_ok(), bytes == before);
        Ok(())
    };
    runner.run(&proptest::strategy::Union::new(any), test).expect("holds");
}
