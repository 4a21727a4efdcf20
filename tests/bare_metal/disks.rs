//! A guest that writes the same number to RAM, to one disk and to another, each when the one before is done, on every
//! file system that shares extents or does not: no image has a disk ahead of RAM, or behind what RAM knows to be done;
//! and whenever the VM is killed, the live disks hold what the guest was told is flushed.
//!
//! What each sector must hold follows from the newest number on its disk: `disk_model.rs`. File systems are made on loop
//! devices, which takes root; where that cannot be, a test says that it is skipped.
//!
//! The moments of cuts are chosen by chance: the only delays here. Kills come at one step of a checkpoint after the
//! other, as its directory shows them.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ckvmm_snapshot::Progress;
use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    console::{Lines, value},
    mount,
    process::Ckvmm,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    disk_model::{FIRST_ADDRESS, SECTOR_BYTES, WORDS, record, sector},
    guest, picture,
    random::Random,
};

const SEED: u64 = 77;
pub(crate) const DISKS: [&str; 2] = ["first", "second"];
/// 16 clusters of those in which disks are captured.
const DISK_BYTES: u64 = 1 << 20;
/// Lives of the guest on each file system, in the lab, whose processor is emulated, and cuts in one.
const LIVES: usize = 4;
const LIVES_IN_THE_LAB: usize = 1;
const CUTS_A_LIFE: usize = 10;
/// Kills on each file system: at the first step of a checkpoint, at the second, and so on to the end, and again.
const KILLS: u32 = 24;
const KILLS_IN_THE_LAB: u32 = 6;
const LONGEST_REST: Duration = Duration::from_millis(20);

/// A file system, and a VM's home on it. They go when this goes.
struct Place {
    home: Option<Home>,
    directory: Home,
}

impl Place {
    /// `None` if it cannot be had.
    fn on(mkfs: &str) -> Option<Place> {
        if guest::skipped() || !mount::enter_namespace() {
            return None;
        }
        let directory = Home::in_memory();
        let at = directory.join("mounted");
        fs::create_dir(&at).expect("it is empty");
        mount::made_by(mkfs, &directory.join("image"), &at).then(|| Place { home: Some(Home::within(&at)), directory })
    }

    fn home(&self) -> &Home {
        self.home.as_ref().expect("it is there until the end")
    }
}

/// What runs the guest, with two empty disks that are made in `home`.
pub(crate) fn config(home: &Home, flush: u32) -> Value {
    let disks = DISKS.map(|id| {
        let path = home.join(format!("{id}.img"));
        let file = fs::File::create_new(&path).expect("it is not there yet");
        file.set_len(DISK_BYTES).expect("there is room");
        json!({ "id": id, "path": path })
    });
    let mut config = guest::config("linux", "16MiB", &format!("job=disks seed={SEED} mib=1 flush={flush}"));
    config["disks"] = disks.as_slice().into();
    config
}

impl Drop for Place {
    fn drop(&mut self) {
        self.home = None;
        mount::unmount(&self.directory.join("mounted"));
    }
}

fn in_the_lab() -> bool {
    env::var_os("CKVMM_LAB").is_some()
}

/// The newest number on a disk. Every sector holds what it must, then.
pub(crate) fn newest(path: &Path, disk: u64) -> u64 {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let sectors = (bytes.len() / SECTOR_BYTES) as u64;
    let newest = words.iter().step_by(WORDS).copied().max().expect("it has sectors");
    let numbers = newest.saturating_sub(sectors - 1).max(1)..=newest;
    let holds: BTreeMap<u64, u64> = numbers.map(|n| (sector(n, sectors), n)).collect();
    for (at, found) in words.chunks_exact(WORDS).enumerate() {
        let n = holds.get(&(at as u64)).copied();
        let wanted = n.map_or([0; WORDS], |n| record(SEED, disk, n));
        let path = path.display();
        assert!(found == wanted, "{path}: sector {at} is not of {n:?}, but of {}; newest: {newest}", found[0]);
    }
    newest
}

/// Holds an image against the model, RAM and both disks; the number that RAM has.
pub(crate) fn check(home: &Home, path: &Path) -> u64 {
    let image = picture::open(path);
    image.verify(&Progress::new()).unwrap_or_else(|error| panic!("{error}"));
    let header = picture::check(path);
    let first = picture::read(&image, FIRST_ADDRESS, 8).try_into().map(u64::from_le_bytes).expect("8 bytes");
    let ram = first + header.steps.saturating_sub(header.arena_bytes / 8);
    let found = home.join("found");
    let [one, two] = [0, 1].map(|disk| {
        image.materialise_disk(DISKS[disk], &found).expect("it has the disk");
        let newest = newest(&found, disk as u64);
        fs::remove_file(&found).expect("it is there");
        newest
    });
    let path = path.display();
    assert!(one <= ram && two <= one, "{path}: a disk is ahead: RAM {ram}, disks {one} and {two}");
    assert!(two + 1 >= ram, "{path}: a disk lacks what was done: RAM {ram}, disks {one} and {two}");
    ram
}

fn cuts(mkfs: &str) {
    let Some(place) = Place::on(mkfs) else { return };
    let home = place.home();
    let mut random = Random::seeded();
    let mut vm = home.boot(&config(home, 200));
    let mut last = 0;
    let lives = if in_the_lab() { LIVES_IN_THE_LAB } else { LIVES };
    for life in 0..lives {
        let mut images: Vec<(PathBuf, u64)> = Vec::new();
        for cut in 0..CUTS_A_LIFE {
            random.wait(LONGEST_REST);
            let mode = ["auto", "stop"][cut % 2];
            let full = random.below(4) == 0;
            home.api().begin_checkpoint(&json!({ "mode": mode, "full": full }).to_string());
            let image = bare_metal::committed(&vm);
            let ram = check(home, &image);
            assert!(ram >= last, "from {last} back to {ram}");
            last = ram;
            images.push((image, ram));
        }
        assert!(last > images[0].1, "the guest stands still");
        vm.kill9();
        // The guest's later writes have not reached an image that was made before.
        for (image, ram) in &images {
            assert_eq!(check(home, image), *ram);
        }
        let (image, ram) = &images[random.below(images.len() as u64) as usize];
        let work = format!("work{life}");
        vm = home.restore(image, &["--work", &work]);
        bare_metal::goes_on(&mut vm);
        last = *ram;
    }
    println!("{mkfs}: {} cuts, and the guest is at {last}", lives * CUTS_A_LIFE);
}

/// The last number of which the guest has said that both disks have flushed it. A kill may cut its last line off, and
/// that number's end: then it is less, and not the largest.
fn flushed(console: &Lines) -> u64 {
    let lines = console.all();
    let numbers = lines.iter().filter_map(|line| value(line.strip_prefix("CKVMM flushed ")?, "n")?.parse().ok());
    numbers.max().unwrap_or(0)
}

/// What can be seen of a checkpoint while it is made: the names in its directory, and in that of its disks.
fn made_so_far(home: &Home) -> String {
    let mut names = home.names("checkpoints");
    // `latest`, and what is whole.
    let Some(dir) = names.iter().find(|name| name.starts_with(".STAGING-")).cloned() else {
        names.retain(|name| !name.starts_with('.'));
        return format!("{} checkpoints", names.len().saturating_sub(1));
    };
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.join(" ")
    };
    let dir = home.join("checkpoints").join(dir);
    format!("{}; disks: {}", list(&dir), list(&dir.join("disks")))
}

/// Lets a checkpoint come to the step after `steps` others that can be seen. False if it is durable before that.
fn come_to(home: &Home, vm: &Ckvmm, steps: u32) -> bool {
    let mut seen = made_so_far(home);
    vm.signal(Signal::SIGUSR1);
    for _ in 0..steps {
        let deadline = Instant::now() + LIMIT;
        // Steps come faster than one could be told of them.
        loop {
            let now = made_so_far(home);
            if now != seen {
                seen = now;
                break;
            }
            if vm.messages.all().iter().any(|line| line.contains("durable")) {
                return false;
            }
            assert!(Instant::now() < deadline, "time is over at {seen}");
        }
    }
    true
}

fn kills(mkfs: &str) {
    let Some(place) = Place::on(mkfs) else { return };
    let home = place.home();
    let config = config(home, 1);
    let begin = |least: u64| -> (Ckvmm, [PathBuf; 2]) {
        let vm = home.boot(&config);
        let found =
            vm.console.all().into_iter().find(|line| line.starts_with("CKVMM found")).expect("before it writes");
        let found = ["disk0", "disk1"].map(|disk| value(&found, disk).and_then(|n| n.parse().ok()).expect("a number"));
        assert!(found.iter().all(|n: &u64| *n >= least), "flushed {least}, and the guest finds {found:?}");
        let disks = home.api().vm()["disks"].clone();
        vm.console.expect("CKVMM flushed", LIMIT);
        (vm, DISKS.map(|id| disks[id].as_str().expect("a path").into()))
    };
    let (vm, _) = begin(0);
    bare_metal::checkpoint(&vm);
    let mut acknowledged = flushed(&vm.kill9().0);
    let mut met: BTreeMap<String, u32> = BTreeMap::new();
    let (mut steps, mut rounds, mut meanwhile) = (0, 0, 0);
    let kills = if in_the_lab() { KILLS_IN_THE_LAB } else { KILLS };
    for _ in 0..kills {
        let (vm, disks) = begin(acknowledged);
        let before = flushed(&vm.console);
        let under_way = come_to(home, &vm, steps);
        let (console, _) = vm.kill9();
        console.wait_for_end(LIMIT);
        (steps, rounds) = if under_way { (steps + 1, rounds) } else { (0, rounds + 1) };
        let so_far = made_so_far(home);
        *met.entry(if so_far.ends_with(" checkpoints") { "none".into() } else { so_far }).or_default() += 1;
        let now = flushed(&console);
        assert!(now >= before && before > acknowledged, "{now}, {before} before the kill, {acknowledged} at boot");
        meanwhile += now - before;
        let [one, two] = [0, 1].map(|disk| newest(&disks[disk], disk as u64));
        assert!(two >= now && (two == one || two + 1 == one), "flushed {now}, and the disks have {one} and {two}");
        acknowledged = now;
    }
    begin(acknowledged).0.kill9();
    assert!(meanwhile > 0, "nothing was flushed during a checkpoint");
    println!(
        "{mkfs}: {kills} kills, {rounds} times to the end; {acknowledged} numbers flushed, {meanwhile} during one"
    );
    println!("{mkfs}: they met {met:#?}");
}

#[test]
fn no_disk_is_ahead_of_ram_on_ext4() {
    cuts("mkfs.ext4");
}

#[test]
fn no_disk_is_ahead_of_ram_on_btrfs() {
    cuts("mkfs.btrfs");
}

#[test]
fn no_disk_is_ahead_of_ram_on_xfs() {
    cuts("mkfs.xfs");
}

#[test]
fn what_was_flushed_is_there_after_a_kill_on_ext4() {
    kills("mkfs.ext4");
}

#[test]
fn what_was_flushed_is_there_after_a_kill_on_btrfs() {
    kills("mkfs.btrfs");
}

#[test]
fn what_was_flushed_is_there_after_a_kill_on_xfs() {
    kills("mkfs.xfs");
}
