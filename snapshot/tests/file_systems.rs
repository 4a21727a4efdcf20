//! File systems that are full, read-only, or can share extents, and disks that are no files. Needs to mount; where
//! that is not permitted, or a tool is missing, a test says so and passes.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ckvmm_snapshot::{CopyMethod, Error, Image, Progress, StagedImage, StateMap, Store};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;

/// Lets one test run at a time: a command that another thread starts has, for a moment, every file of this process open,
/// and what is removed meanwhile gives its room back only later.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command of the system; `None`, and the reason printed, if that cannot be.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let output = match Command::new(program).args(arguments).env("PATH", path).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: {program}: {error}");
            return None;
        }
    };
    if !output.status.success() {
        println!("skipped: {program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A mounted file system, gone when dropped.
struct Mount {
    directory: tempfile::TempDir,
    _image: Option<tempfile::NamedTempFile>,
}

impl Mount {
    fn tmpfs(options: &str) -> Option<Mount> {
        let directory = tempfile::tempdir().expect("directory");
        let at = directory.path().to_str().expect("UTF-8");
        run("mount", &["-t", "tmpfs", "-o", options, "ckvmm-test", at])?;
        Some(Mount { directory, _image: None })
    }

    /// A new file system on a loop device.
    fn made_by(mkfs: &str) -> Option<Mount> {
        let directory = tempfile::tempdir().expect("directory");
        let image = tempfile::NamedTempFile::new().expect("file");
        image.as_file().set_len(512 * MIB).expect("length");
        let from = image.path().to_str().expect("UTF-8");
        run(mkfs, &["-q", from])?;
        run("mount", &["-o", "loop", from, directory.path().to_str().expect("UTF-8")])?;
        Some(Mount { directory, _image: Some(image) })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.path().to_str().expect("UTF-8")]);
    }
}

fn busy_ram(bytes: u64) -> GuestMemoryMmap {
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).expect("RAM");
    for at in (0..bytes).step_by(4096) {
        ram.write_obj(at + 1, GuestAddress(at)).expect("in RAM");
    }
    ram
}

fn no_space(error: Error, file: &str, bytes: u64) {
    match &error {
        Error::NoSpace { path, wanted, free } => {
            assert!(path.ends_with(file), "{error}");
            assert_eq!(*wanted, bytes, "{error}");
            assert!(*free < 4 * MIB, "{error}");
        }
        other => panic!("{other}"),
    }
    let line = error.to_string();
    assert!(line.contains("no space left") && line.contains("choose another directory"), "{line}");
}

#[test]
fn a_full_file_system_fails_the_checkpoint_and_nothing_else() {
    let _alone = alone();
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let target = mount.path().join("000001");
    let create = || StagedImage::create(&target).expect("there is room to begin");
    let progress = Progress::new();

    let error = create().write_memory(&busy_ram(32 * MIB), &[], &progress).expect_err("no room for memory");
    no_space(error, "memory", 32 * MIB);
    assert_eq!(common::names_in(mount.path()), [""; 0], "dropped, it gives the room back");

    let big = common::Counter { count: 0, buffer: vec![1; 8 << 20] };
    let mut state = StateMap::new();
    state.put("big", &big).expect("new");
    let error = create().write_state(&state).expect_err("no room for state");
    no_space(error, "state", state.encode().len() as u64);

    let disk = common::sparse_file(16 * MIB, &[(MIB, &[7; 8 << 20])]);
    let mut staged = create();
    common::capture_disk(&mut staged, "root", &disk).expect("begins");
    no_space(staged.finish_disks(&progress).expect_err("no room for the disk"), "disks/root", 16 * MIB);
    drop(staged);
    assert_eq!(common::names_in(mount.path()), [""; 0]);

    common::checkpoint(&target).expect("a small one still goes");
}

#[test]
fn no_inodes_is_no_space_at_every_step() {
    let _alone = alone();
    let mut failures = 0;
    // The root, the staging directory, disks/, five files and the manifest.
    for inodes in 1.. {
        let Some(mount) = Mount::tmpfs(&format!("nr_inodes={inodes}")) else { return };
        let target = mount.path().join("a");
        match common::checkpoint(&target) {
            Ok(path) => {
                Image::open(&path).expect("whole").verify(&Progress::new()).expect("whole");
                break;
            }
            Err(Error::NoSpace { .. }) => failures += 1,
            Err(error) => panic!("{inodes} inodes: {error}"),
        }
        assert_eq!(common::names_in(mount.path()), [""; 0], "{inodes} inodes");
    }
    assert!(failures >= 8, "{failures}");
}

#[test]
fn a_restore_without_room_leaves_no_disk() {
    let _alone = alone();
    let Some(mount) = Mount::tmpfs("size=4m") else { return };
    let store = tempfile::tempdir().expect("directory");
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    common::fill(&mut staged).expect("fills");
    let disk = common::sparse_file(16 * MIB, &[(MIB, &[7; 8 << 20])]);
    common::capture_disk(&mut staged, "data", &disk).expect("captures");
    staged.finish_disks(&Progress::new()).expect("digests");
    let image = Image::open(&staged.commit(common::head()).expect("commits")).expect("opens");
    let to = mount.path().join("working.raw");
    no_space(image.materialise_disk("data", &to).expect_err("no room"), "working.raw", 16 * MIB);
    assert!(!to.exists());
    // Across file systems there are no shared extents, yet a copy.
    assert_eq!(image.materialise_disk("root", &to).expect("room enough"), CopyMethod::Copy);
    assert_eq!(std::fs::metadata(&to).expect("metadata").len(), 20_000);
}

#[test]
fn a_read_only_file_system_is_named() {
    let _alone = alone();
    let Some(mount) = Mount::tmpfs("size=16m") else { return };
    let path = common::checkpoint(&mount.path().join("000001")).expect("commits");
    std::fs::create_dir(mount.path().join(format!(".STAGING-{}", uuid::Uuid::from_u128(7)))).expect("mkdir");
    let at = mount.path().to_str().expect("UTF-8");
    if run("mount", &["-o", "remount,ro", at]).is_none() {
        return;
    }
    let read_only = |error: Error| {
        assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
        assert!(error.to_string().contains("read-only; choose a directory that can be written"), "{error}");
    };
    let store = Store::new(mount.path());
    read_only(StagedImage::create(&mount.path().join("000002")).expect_err("read-only"));
    read_only(StagedImage::create(&mount.path().join("new/000002")).expect_err("read-only"));
    read_only(store.stage().expect_err("read-only"));
    read_only(store.sweep_staging().expect_err("read-only"));
    read_only(store.remove("000001").expect_err("read-only"));
    let image = Image::open(&path).expect("reading needs no writing");
    image.verify(&Progress::new()).expect("verifies");
    read_only(image.materialise_disk("root", &mount.path().join("disk")).expect_err("read-only"));
    let elsewhere = tempfile::tempdir().expect("directory");
    image.materialise_disk("root", &elsewhere.path().join("disk")).expect("elsewhere it goes");
}

/// Bytes that a file system has left.
fn free(path: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(path).expect("statvfs");
    stat.blocks_free() * stat.fragment_size()
}

fn shares_extents(mkfs: &str) {
    let Some(mount) = Mount::made_by(mkfs) else { return };
    let live = mount.path().join("live.raw");
    let disk = File::options().read(true).write(true).create_new(true).open(&live).expect("create");
    disk.set_len(64 * MIB + 100).expect("length");
    disk.write_all_at(&[1; 5 << 20], 3 * MIB).expect("write");
    disk.write_all_at(b"end", 64 * MIB + 97).expect("write");
    let mut staged = StagedImage::create(&mount.path().join("store/000001")).expect("create");
    common::fill(&mut staged).expect("fills");
    disk.sync_all().expect("sync");
    let before = free(mount.path());
    common::capture_disk(&mut staged, "data", &disk).expect("begins");
    staged.finish_disks(&Progress::new()).expect("captures");
    disk.sync_all().expect("sync");
    let taken = before.saturating_sub(free(mount.path()));
    assert!(taken < 2 * MIB, "{taken} bytes for a disk whose extents are shared");
    disk.write_all_at(&[2; 5 << 20], 3 * MIB).expect("the guest runs on");
    let path = staged.commit(common::head()).expect("commits");

    let image = Image::open(&path).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    let working = mount.path().join("working.raw");
    assert_eq!(image.materialise_disk("data", &working).expect("makes a disk"), CopyMethod::Reflink);
    let working = File::options().read(true).write(true).open(&working).expect("open");
    let mut found = vec![0; 5 << 20];
    working.read_exact_at(&mut found, 3 * MIB).expect("read");
    assert!(found == [1; 5 << 20], "the instant of the capture");
    assert_eq!(working.metadata().expect("metadata").len(), 64 * MIB + 100);
    working.write_all_at(&[3; 5 << 20], 3 * MIB).expect("write");
    image.verify(&Progress::new()).expect("the image stays as it is");
}

#[test]
fn btrfs_shares_extents() {
    let _alone = alone();
    shares_extents("mkfs.btrfs");
}

#[test]
fn xfs_shares_extents() {
    let _alone = alone();
    shares_extents("mkfs.xfs");
}

/// A block device, detached when dropped.
struct Loop(PathBuf);

impl Drop for Loop {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.0.to_str().expect("UTF-8")]);
    }
}

#[test]
fn a_block_device_is_captured_without_its_zeros() {
    let _alone = alone();
    let mut backing = tempfile::NamedTempFile::new().expect("file");
    backing.as_file().set_len(32 * MIB).expect("length");
    backing.as_file().write_all_at(b"boot", 0).expect("write");
    backing.as_file().write_all_at(&[5; 10_000], 9 * MIB + 5).expect("write");
    std::io::Write::flush(&mut backing).expect("flush");
    let from = backing.path().to_str().expect("UTF-8");
    let Some(device) = run("losetup", &["--find", "--show", "--read-only", from]) else { return };
    let device = Loop(PathBuf::from(device));
    let store = tempfile::tempdir().expect("directory");
    let mut staged = StagedImage::create(&store.path().join("a")).expect("create");
    common::fill(&mut staged).expect("fills");
    common::capture_disk(&mut staged, "data", &File::open(&device.0).expect("open")).expect("captures");
    staged.finish_disks(&Progress::new()).expect("digests");
    let path = staged.commit(common::head()).expect("commits");
    Image::open(&path).expect("opens").verify(&Progress::new()).expect("verifies");
    let disk = path.join("disks/data");
    assert!(std::fs::read(&disk).expect("read") == std::fs::read(backing.path()).expect("read"));
    assert!(common::allocated(&disk) < MIB, "{}", common::allocated(&disk));
}
