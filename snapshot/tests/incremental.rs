//! Checkpoints that build on others, held against a model of RAM and a disk, in chains longer than there may be layers.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ckvmm_snapshot::limits::LAYERS_MAX;
use ckvmm_snapshot::{Error, Image, LiveDisk, Progress, Result, StagedImage};
use common::CHUNK;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
const RAM: u64 = 3 * CHUNK + 5 * PAGE;
const DISK: u64 = 2 * CHUNK + 3 * PAGE + 512;

/// A machine that is checkpointed over and over, and what is in it.
struct Guest {
    memory: GuestMemoryMmap,
    disk: Arc<LiveDisk>,
    ram: Vec<u8>,
    sectors: Vec<u8>,
    base: Option<Arc<Image>>,
}

/// Whoever writes guest RAM.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Stop,
    Fork,
}

impl Guest {
    fn new() -> Self {
        Guest {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("RAM"),
            disk: Arc::new(LiveDisk::new(common::sparse_file(DISK, &[]))),
            ram: vec![0; RAM as usize],
            sectors: vec![0; DISK as usize],
            base: None,
        }
    }

    fn write_ram(&mut self, at: u64, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min((RAM - at) as usize)];
        self.memory.write_slice(bytes, GuestAddress(at)).expect("in RAM");
        self.ram[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn write_disk(&mut self, at: u64, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min((DISK - at) as usize)];
        self.disk.before_change(at..at + bytes.len() as u64);
        self.disk.file().write_all_at(bytes, at).expect("on the disk");
        self.sectors[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn begin(&self, to: &Path) -> Result<StagedImage> {
        let mut staged = StagedImage::create(to)?;
        if let Some(base) = &self.base {
            staged.build_on(base)?;
        }
        Ok(staged)
    }

    /// Everything but the commit; bytes of RAM that were written.
    fn capture(&self, staged: &mut StagedImage, mode: Mode) -> Result<u64> {
        let progress = Progress::new();
        staged.prepare_disk("root", &self.disk)?;
        let written = match mode {
            Mode::Stop => {
                let written = staged.write_memory(&self.memory, &[], &progress)?;
                staged.cut_disks();
                written
            }
            Mode::Fork => {
                let writer =
                    staged.prepare_writer(&self.memory, &[])?.fork(&self.memory).map_err(|refused| refused.error)?;
                staged.cut_disks();
                staged.finish_memory(writer, &progress)?
            }
        };
        staged.write_state(&common::small_state())?;
        staged.finish_disks(&progress)?;
        Ok(written)
    }

    fn checkpoint(&mut self, to: &Path, mode: Mode) -> u64 {
        let mut staged = self.begin(to).expect("builds on the last one");
        let written = self.capture(&mut staged, mode).expect("captures");
        let path = staged.commit(common::head()).expect("commits");
        self.base = Some(Arc::new(Image::open(&path).expect("opens")));
        written
    }
}

/// RAM as the image `path` has it, put together as a restore does it.
fn ram_of(image: &Image) -> Vec<u8> {
    let mut found = vec![0; RAM as usize];
    let plan = image.memory().plan();
    for run in plan.mapped.iter().chain(&plan.read) {
        let place = &mut found[run.guest_address as usize..][..run.bytes as usize];
        image.memory().layer(run.layer).read_exact_at(place, run.file_offset).expect("read");
    }
    found
}

#[track_caller]
fn is(path: &Path, ram: &[u8], sectors: &[u8]) {
    let image = Image::open(path).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    assert!(ram_of(&image) == ram, "{}: RAM is not that of the cut", path.display());
    let directory = tempfile::tempdir().expect("directory");
    let disk = directory.path().join("root.raw");
    image.materialise_disk("root", &disk).expect("makes a disk");
    assert!(fs::read(&disk).expect("read") == sectors, "{}: the disk is not that of the cut", path.display());
}

/// What a guest does between two checkpoints.
#[derive(Debug, Clone)]
enum Step {
    Ram(u64, u8, usize),
    Disk(u64, u8, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop_oneof![4 => 1..200_usize, 2 => 4096..9000_usize, 1 => Just(CHUNK as usize)];
    let byte = || prop_oneof![1 => Just(0_u8), 3 => any::<u8>()];
    prop_oneof![
        (0..RAM, byte(), bytes()).prop_map(|(at, byte, count)| Step::Ram(at, byte, count)),
        (0..DISK, byte(), bytes()).prop_map(|(at, byte, count)| Step::Disk(at, byte, count)),
    ]
}

/// Chains of random lengths with random writes: each member is what the guest was at its cut, also after others have
/// been removed, in both modes; a checkpoint that fails in between changes nothing.
#[test]
fn each_member_of_a_chain_is_of_its_instant() {
    let generation = (prop::collection::vec(step(), 0..6), any::<bool>(), 0..8_u8);
    let chain = prop::collection::vec(generation, 1..LAYERS_MAX + 12);
    let mut runner = TestRunner::new(Config { cases: 6, failure_persistence: None, ..Config::default() });
    runner
        .run(&chain, |chain| {
            let store = tempfile::tempdir().expect("directory");
            let mut guest = Guest::new();
            let mut kept: Vec<(PathBuf, Vec<u8>, Vec<u8>)> = Vec::new();
            for (index, (steps, forks, chance)) in chain.into_iter().enumerate() {
                for step in steps {
                    match step {
                        Step::Ram(at, byte, count) => guest.write_ram(at, &vec![byte; count]),
                        Step::Disk(at, byte, count) => guest.write_disk(at, &vec![byte; count]),
                    }
                }
                let mode = if forks { Mode::Fork } else { Mode::Stop };
                if chance == 0 {
                    // Everything is captured, and then it comes to nothing.
                    let mut staged = guest.begin(&store.path().join("lost")).expect("begins");
                    guest.capture(&mut staged, mode).expect("captures");
                    drop(staged);
                }
                if chance == 1 && !kept.is_empty() {
                    let (path, ..) = kept.remove(index % kept.len());
                    fs::remove_dir_all(path).expect("removes");
                }
                if chance == 1
                    && kept.iter().all(|(path, ..)| guest.base.as_ref().is_some_and(|base| base.path() != path))
                {
                    // It was the last one, and other names of its files may be left, or none.
                    guest.base = None;
                }
                let path = store.path().join(format!("c{index}"));
                guest.checkpoint(&path, mode);
                kept.push((path, guest.ram.clone(), guest.sectors.clone()));
            }
            for (path, ram, sectors) in &kept {
                is(path, ram, sectors);
            }
            prop_assert_eq!(common::names_in(store.path()).len(), kept.len(), "nothing else is left");
            Ok(())
        })
        .unwrap();
}

#[test]
fn only_pages_and_clusters_that_changed_are_stored() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_ram(0, &vec![7; RAM as usize]);
    guest.write_disk(0, &vec![8; DISK as usize]);
    assert_eq!(guest.checkpoint(&store.path().join("a"), Mode::Fork), RAM, "the first one is whole");
    assert_eq!(guest.checkpoint(&store.path().join("b"), Mode::Fork), 0, "nothing has changed");
    for page in [3, 4, 600] {
        guest.write_ram(page * PAGE + 5, &[page as u8]);
    }
    // The same again is no change.
    guest.write_ram(2 * CHUNK, &[7; 100]);
    guest.write_disk(CHUNK + 100, &[9]);
    assert_eq!(guest.checkpoint(&store.path().join("c"), Mode::Stop), 3 * PAGE);
    let own = |name: &str| common::allocated(&store.path().join("c").join(name));
    assert!(own("memory") <= 3 * PAGE && own("disks/root") <= 64 << 10, "{} {}", own("memory"), own("disks/root"));
    assert_eq!(common::names_in(&store.path().join("b")).len(), 7, "what holds nothing is not linked, all else is");
    fs::remove_dir_all(store.path().join("a")).expect("removes");
    fs::remove_dir_all(store.path().join("b")).expect("removes");
    is(&store.path().join("c"), &guest.ram, &guest.sectors);
    assert!(Image::open(&store.path().join("c")).expect("opens").manifest().is_incremental());
}

#[test]
fn there_are_never_more_layers_than_the_limit() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_ram(0, &vec![7; RAM as usize]);
    guest.write_disk(0, &vec![8; DISK as usize]);
    for index in 0..2 * LAYERS_MAX as u64 {
        // Every one has something that no later one replaces.
        guest.write_ram(index * 2 * PAGE, &[1; PAGE as usize]);
        guest.write_disk(index % 32 * (64 << 10), &[index as u8]);
        guest.checkpoint(&store.path().join(format!("{index}")), Mode::Fork);
    }
    let last = guest.base.as_ref().expect("there is one");
    assert_eq!(last.memory().layers(), LAYERS_MAX + 1);
    is(last.path(), &guest.ram, &guest.sectors);
}

#[test]
fn a_disk_that_changed_during_a_checkpoint_that_failed_is_captured_by_the_next() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_disk(0, &vec![8; DISK as usize]);
    guest.checkpoint(&store.path().join("a"), Mode::Stop);
    guest.write_disk(70_000, b"before the cut");
    let mut staged = guest.begin(&store.path().join("lost")).expect("begins");
    staged.prepare_disk("root", &guest.disk).expect("prepares");
    staged.cut_disks();
    guest.write_disk(CHUNK, b"after the cut");
    drop(staged);
    guest.checkpoint(&store.path().join("b"), Mode::Stop);
    is(&store.path().join("b"), &guest.ram, &guest.sectors);
    assert!(common::allocated(&store.path().join("b/disks/root")) <= 2 * (64 << 10), "two clusters");
}

#[test]
fn a_disk_that_is_captured_no_more_leaves_no_links() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_ram(0, &vec![7; RAM as usize]);
    guest.write_disk(0, &[8]);
    guest.checkpoint(&store.path().join("a"), Mode::Stop);
    let mut staged = guest.begin(&store.path().join("b")).expect("begins");
    staged.write_memory(&guest.memory, &[], &Progress::new()).expect("writes");
    staged.write_state(&common::small_state()).expect("writes");
    let path = staged.commit(common::head()).expect("commits");
    assert_eq!(common::names_in(&path.join("disks")), [""; 0]);
    let image = Image::open(&path).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    assert!(ram_of(&image) == guest.ram && image.disk_ids().count() == 0);
}

#[test]
fn what_cannot_be_linked_cannot_be_built_on() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_ram(0, &vec![7; RAM as usize]);
    let first = store.path().join("a");
    guest.checkpoint(&first, Mode::Stop);
    fs::remove_dir_all(&first).expect("removes");
    let mut staged = StagedImage::create(&store.path().join("b")).expect("begins");
    let error = staged.build_on(guest.base.as_ref().expect("there is one")).expect_err("it has no name any more");
    assert!(error.to_string().contains("cannot link it"), "{error}");
    guest.capture(&mut staged, Mode::Fork).expect("captures");
    let path = staged.commit(common::head()).expect("commits");
    assert!(!Image::open(&path).expect("opens").manifest().is_incremental(), "a full one");
    assert_eq!(common::names_in(&path), ["disks", "manifest.json", "memory", "memory.map", "state"]);
    is(&path, &guest.ram, &guest.sectors);
}

#[test]
fn a_base_whose_disk_cannot_be_read_is_an_error_of_the_base() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_disk(0, &vec![8; DISK as usize]);
    guest.checkpoint(&store.path().join("a"), Mode::Stop);
    let cut_off = fs::OpenOptions::new().write(true).open(store.path().join("a/disks/root")).expect("open");
    cut_off.set_len(CHUNK / 2).expect("shorter");
    for to in ["b", "c"] {
        guest.write_disk(0, b"a chunk of which the base has the rest");
        let mut staged = guest.begin(&store.path().join(to)).expect("builds on the first");
        let error = guest.capture(&mut staged, Mode::Stop).expect_err("the rest cannot be read");
        assert!(matches!(&error, Error::Base { path, .. } if *path == store.path().join("a")), "{error}");
    }
    guest.base = None;
    guest.checkpoint(&store.path().join("d"), Mode::Stop);
    is(&store.path().join("d"), &guest.ram, &guest.sectors);
}

#[test]
fn a_layer_that_is_missing_short_or_another_one_is_named() {
    let store = tempfile::tempdir().expect("directory");
    let mut guest = Guest::new();
    guest.write_ram(0, &vec![7; RAM as usize]);
    guest.checkpoint(&store.path().join("a"), Mode::Stop);
    guest.write_ram(PAGE, &[1]);
    let id = guest.base.as_ref().expect("there is one").manifest().id;
    guest.checkpoint(&store.path().join("b"), Mode::Stop);
    let layer = store.path().join("b").join(format!("memory.{id}"));
    let content = fs::read(&layer).expect("read");
    let named = |what: &str, error: Error| {
        let line = error.to_string();
        assert!(line.contains(&format!("memory.{id}: damaged: {what}")), "{line}");
    };
    fs::remove_file(&layer).expect("removes");
    named("it is missing", Image::open(&store.path().join("b")).expect_err("missing"));
    fs::write(&layer, &content[..content.len() - 1]).expect("write");
    named("", Image::open(&store.path().join("b")).expect_err("short"));
    let mut other = content;
    *other.last_mut().expect("not empty") ^= 1;
    fs::write(&layer, &other).expect("write");
    let image = Image::open(&store.path().join("b")).expect("opens");
    named("the", image.verify(&Progress::new()).expect_err("another one"));
    Image::open(&store.path().join("a")).expect("opens").verify(&Progress::new()).expect("it has files of its own");
}
