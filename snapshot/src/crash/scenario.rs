//! Checkpoints whose journal is kept, and what their store must be after a power loss.
//!
//! ```text
//! the store is made │ 1: a named path │ one is given up │ 2: on 1, the next number, `latest` │ 1 is removed
//! ```
//!
//! They are made as mode `stop` makes them, with a disk that the guest writes to before it is captured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::journal::{Mark, Promises};
use super::outcomes::Random;
use crate::error::Result;
use crate::fault::mark;
use crate::manifest::ManifestHead;
use crate::{Image, LiveDisk, Progress, Saved, StagedImage, StateMap, Store, names};

/// In the directory of which the journal is kept.
const STORE: &str = "checkpoints";

/// Guest RAM, in two regions: address and bytes.
const RAM: [(u64, usize); 2] = [(0, 512 << 10), (4 << 30, 8 << 10)];
const DISK_BYTES: usize = 200_000;

/// What says in an image of which guest it is.
#[derive(Debug, Serialize, Deserialize)]
struct Number(u64);

impl Saved for Number {
    const KIND: &'static str = "number";
    const VERSION: u16 = 1;
}

/// What a checkpoint must hold. Every number makes another one.
#[derive(Debug)]
struct Picture {
    number: u64,
    /// By region.
    ram: Vec<Vec<u8>>,
    disk: Vec<u8>,
}

impl Picture {
    fn new(number: u64) -> Self {
        let mut ram: Vec<Vec<u8>> = RAM.iter().map(|(_, bytes)| vec![0; *bytes]).collect();
        // One of the pieces in which RAM is written, a bit of the next, and a bit of the next chunk.
        scatter(&mut ram[0][4096..240_000], number);
        // The same in each, as in an image that builds on another.
        scatter(&mut ram[0][300_000..310_000], 0);
        scatter(&mut ram[1][..5000], number + 2);
        let mut disk = vec![0; DISK_BYTES];
        // A whole cluster and more, a hole, and the end.
        scatter(&mut disk[..70_000], number + 3);
        scatter(&mut disk[190_000..], 0);
        Picture { number, ram, disk }
    }
}

/// Bytes of which none is zero, so that each that is lost is missed.
pub(super) fn scatter(bytes: &mut [u8], number: u64) {
    let mut random = Random::new(number);
    for eight in bytes.chunks_mut(8) {
        let random = (random.next() | 0x0101_0101_0101_0101).to_le_bytes();
        eight.copy_from_slice(&random[..eight.len()]);
    }
}

/// All that the journal is kept of.
pub(super) fn run(root: &Path) {
    let store = Store::new(root.join(STORE));
    let mut base = None;
    for number in 1..=2 {
        mark(Mark::Begun(number));
        let staged = match number {
            1 => StagedImage::create(&store.path().join(names::numbered(number))),
            _ => store.stage(),
        };
        let staged = filled(staged.expect("stages"), base.as_ref(), &Picture::new(number)).expect("fills");
        let path = staged.commit(head()).expect("commits");
        mark(Mark::Committed(number));
        base = Some(Arc::new(Image::open(&path).expect("opens")));
        if number == 1 {
            drop(filled(store.stage().expect("stages"), base.as_ref(), &Picture::new(99)).expect("fills"));
        }
    }
    mark(Mark::Removing(1));
    store.remove(&names::numbered(1)).expect("removes");
    mark(Mark::Removed(1));
}

/// Everything but the commit.
fn filled(mut staged: StagedImage, base: Option<&Arc<Image>>, picture: &Picture) -> Result<StagedImage> {
    let memory = GuestMemoryMmap::from_ranges(&RAM.map(|(address, bytes)| (GuestAddress(address), bytes)));
    let memory = memory.expect("memory");
    for ((address, _), bytes) in RAM.iter().zip(&picture.ram) {
        memory.write_slice(bytes, GuestAddress(*address)).expect("it is RAM");
    }
    let file = tempfile::tempfile().expect("file");
    file.write_all_at(&picture.disk[..70_000], 0).expect("write");
    file.set_len(DISK_BYTES as u64).expect("length");
    file.write_all_at(&picture.disk[190_000..], 190_000).expect("write");
    let disk = Arc::new(LiveDisk::new(file));
    if let Some(base) = base {
        staged.build_on(base)?;
        disk.is_as_in(base.manifest().id, DISK_BYTES as u64);
        disk.before_change(0..70_000);
    }

    let progress = Progress::new();
    staged.prepare_disk("root", &disk)?;
    staged.write_memory(&memory, &[], &progress)?;
    staged.cut_disks();
    let mut state = StateMap::new();
    state.put("number", &Number(picture.number))?;
    staged.write_state(&state)?;
    for offset in [66_000, 100_000, 195_000] {
        disk.before_change(offset..offset + 512);
        disk.file().write_all_at(&[0xee; 512], offset).expect("the guest goes on");
    }
    staged.finish_disks(&progress)?;
    Ok(staged)
}

fn head() -> ManifestHead {
    ManifestHead {
        name: "node0".to_owned(),
        lineage: Uuid::nil(),
        parent: None,
        created: jiff::Timestamp::UNIX_EPOCH,
        mode: "stop".to_owned(),
        config: serde_json::json!({}),
        host: serde_json::json!({}),
        pause_us: 1,
        started: Instant::now(),
    }
}

/// Compares the store in `root` with what was promised, then uses it again. An error says what is wrong.
pub(super) fn check(root: &Path, promises: &Promises) -> std::result::Result<(), String> {
    let store = Store::new(root.join(STORE));
    let found = whatever_has_a_manifest(store.path())?;
    let missing: Vec<_> = promises.must.difference(&found).collect();
    let unexpected: Vec<_> = found.difference(&promises.may).collect();
    if !missing.is_empty() || !unexpected.is_empty() {
        return Err(format!("{missing:?} are not there, {unexpected:?} are"));
    }
    shown(&store, &found)?;
    store.sweep_staging().map_err(|error| format!("sweep: {error}"))?;
    let left: Vec<String> = names_in(store.path()).into_iter().filter(|name| name.starts_with('.')).collect();
    if !left.is_empty() {
        return Err(format!("{left:?} is left after a sweep"));
    }
    shown(&store, &found)?;

    let next = Picture::new(found.last().copied().unwrap_or(0) + 1);
    let newest = store.latest().map_err(|error| format!("latest: {error}"))?;
    let base = newest.map(|entry| Image::open(&entry.path).map(Arc::new)).transpose();
    let base = base.map_err(|error| format!("the newest: {error}"))?;
    let stage = || filled(store.stage()?, base.as_ref(), &next)?.commit(head());
    stage().map_err(|error| format!("the next checkpoint: {error}"))?;
    shown(&store, &found.iter().copied().chain([next.number]).collect())?;
    is_whole(&store.path().join(names::numbered(next.number)), Some(next.number)).map(drop)
}

/// Numbers of the checkpoints there are. Whatever it is called, what has a manifest must be whole.
fn whatever_has_a_manifest(store: &Path) -> std::result::Result<BTreeSet<u64>, String> {
    let mut numbers = BTreeSet::new();
    for name in names_in(store) {
        let path = store.join(&name);
        if path.is_symlink() {
            continue;
        }
        if path.join(names::MANIFEST).symlink_metadata().is_err() {
            match names::is_staging(&name) {
                true => continue,
                // Nobody would ever see it or sweep it.
                false => return Err(format!("{name} has no manifest")),
            }
        }
        match names::number(&name) {
            Some(number) => {
                is_whole(&path, Some(number))?;
                numbers.insert(number);
            }
            None if names::is_staging(&name) => is_whole(&path, None)?,
            None => return Err(format!("{name} has a manifest")),
        }
    }
    Ok(numbers)
}

/// Sees that `dir` is a checkpoint of the guest `number`, if that is known, and of one and the same guest in all parts.
fn is_whole(dir: &Path, number: Option<u64>) -> std::result::Result<(), String> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let holds = || -> Result<(Image, Number)> {
        let mut image = Image::open(dir)?;
        image.verify(&Progress::new())?;
        let mut state = image.take_state()?;
        let found = state.take::<Number>("number")?;
        state.finish()?;
        Ok((image, found))
    };
    let (image, Number(found)) = holds().map_err(|error| format!("{name}: {error}"))?;
    if number.is_some_and(|number| number != found) {
        return Err(format!("{name} is checkpoint {found}"));
    }
    let picture = Picture::new(found);
    let memory = image.memory();
    for (region, wanted) in memory.regions().iter().zip(&picture.ram) {
        let mut bytes = vec![0; wanted.len()];
        for run in memory.plan().mapped {
            let Some(at) = run.guest_address.checked_sub(region.guest_address).map(|at| at as usize) else { continue };
            let Some(place) = bytes.get_mut(at..at + run.bytes as usize) else { continue };
            memory
                .layer(run.layer)
                .read_exact_at(place, run.file_offset)
                .map_err(|error| format!("{name}: {error}"))?;
        }
        if bytes != *wanted {
            return Err(format!("{name}: RAM at {:#x} is not what was written", region.guest_address));
        }
    }
    let copy = tempfile::tempdir().expect("directory");
    let disk = copy.path().join("root.raw");
    match image.materialise_disk("root", &disk).map(|_| fs::read(&disk)) {
        Ok(Ok(bytes)) if bytes == picture.disk => Ok(()),
        _ => Err(format!("{name}: the disk is not what was written")),
    }
}

/// Sees that the store shows these checkpoints and no others.
fn shown(store: &Store, numbers: &BTreeSet<u64>) -> std::result::Result<(), String> {
    let entries = match store.path().exists() {
        true => store.list().map_err(|error| format!("list: {error}"))?,
        false => Vec::new(),
    };
    let listed: BTreeMap<_, _> =
        entries.iter().map(|entry| (entry.number.unwrap_or(0), entry.manifest.is_ok())).collect();
    if listed != numbers.iter().map(|number| (*number, true)).collect() {
        return Err(format!("{listed:?} are listed"));
    }
    let latest = store.latest().map_err(|error| format!("latest: {error}"))?.and_then(|entry| entry.number);
    match latest == numbers.last().copied() {
        true => Ok(()),
        false => Err(format!("{latest:?} is shown as the newest")),
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect()
}
