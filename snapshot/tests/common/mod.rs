//! A small machine to make checkpoints of.
#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses some of this")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ckvmm_snapshot::{LiveDisk, ManifestHead, Progress, Result, Saved, StagedImage, StateMap};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes in a chunk.
pub const CHUNK: u64 = ckvmm_snapshot::limits::CHUNK_BYTES;

/// Where the second region of the small machine's RAM begins.
pub const HIGH: u64 = 4 << 30;

/// The state of a device that counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    pub count: u64,
    #[serde(with = "serde_bytes")]
    pub buffer: Vec<u8>,
}

impl Saved for Counter {
    const KIND: &'static str = "counter";
    const VERSION: u16 = 1;
}

pub fn counter() -> Counter {
    Counter { count: 42, buffer: vec![0, 1, 0xff] }
}

/// 64 KiB of RAM at 0 and 8 KiB at 4 GiB, with a few bytes in each.
pub fn small_ram() -> GuestMemoryMmap {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 10), (GuestAddress(HIGH), 8 << 10)]).expect("RAM");
    ram.write_slice(b"low", GuestAddress(0x1000)).expect("in RAM");
    ram.write_slice(b"high", GuestAddress(HIGH + 0x1ffc)).expect("in RAM");
    ram
}

/// A sparse file with some bytes at some places.
pub fn sparse_file(bytes: u64, data: &[(u64, &[u8])]) -> File {
    let file = tempfile::tempfile().expect("temporary file");
    file.set_len(bytes).expect("length");
    for (offset, bytes) in data {
        file.write_all_at(bytes, *offset).expect("write");
    }
    file
}

pub fn small_disk() -> File {
    sparse_file(20_000, &[(0, b"boot"), (19_999, b"!")])
}

pub fn head() -> ManifestHead {
    ManifestHead {
        name: "node0".to_owned(),
        lineage: Uuid::from_u128(1),
        parent: Some(Uuid::from_u128(2)),
        created: "2024-05-06T07:08:09Z".parse().expect("a time"),
        mode: "stop".to_owned(),
        config: serde_json::json!({ "version": 1, "name": "node0" }),
        host: serde_json::json!({ "model": "a CPU" }),
        pause_us: 1500,
        started: Instant::now(),
    }
}

pub fn small_state() -> StateMap {
    let mut state = StateMap::new();
    state.put("counter/0", &counter()).expect("a new name");
    state
}

/// Captures a disk as it is now. Whoever changes it later says so to what this returns.
pub fn capture_disk(staged: &mut StagedImage, id: &str, disk: &File) -> Result<Arc<LiveDisk>> {
    let disk = Arc::new(LiveDisk::new(disk.try_clone().expect("a descriptor")));
    staged.prepare_disk(id, &disk)?;
    staged.cut_disks();
    Ok(disk)
}

/// Everything but the commit.
pub fn fill(staged: &mut StagedImage) -> Result<()> {
    let progress = Progress::new();
    staged.write_state(&small_state())?;
    staged.write_memory(&small_ram(), &[], &progress)?;
    capture_disk(staged, "root", &small_disk())?;
    staged.finish_disks(&progress)
}

/// A checkpoint of the small machine.
pub fn checkpoint(to: &Path) -> Result<PathBuf> {
    let mut staged = StagedImage::create(to)?;
    fill(&mut staged)?;
    staged.commit(head())
}

/// The names in a directory, in order.
pub fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every regular file under a directory, relative to it, in order.
pub fn files_in(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_path_buf()];
    while let Some(now) = directories.pop() {
        for name in names_in(&now) {
            let path = now.join(name);
            match path.is_dir() {
                true => directories.push(path),
                false => files.push(path.strip_prefix(directory).expect("is under it").to_path_buf()),
            }
        }
    }
    files.sort();
    files
}

/// Bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).expect("metadata").blocks() * 512
}
