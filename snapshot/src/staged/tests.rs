//! The commit under a file system that fails, or stops, at each of its operations in turn.

use std::path::{Path, PathBuf};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::fault::{Fault, Step, with};
use crate::manifest::ManifestHead;
use crate::{Image, Store};

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

struct Guest {
    memory: GuestMemoryMmap,
    disk: Arc<LiveDisk>,
    /// A child writes its memory.
    forked: bool,
}

fn guest(forked: bool) -> Guest {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 10)]).expect("memory");
    memory.write_obj(0x1234_5678_u32, GuestAddress(8)).expect("write");
    let disk = tempfile::tempfile().expect("file");
    files::write_at(&disk, b"disk", 5000).expect("write");
    Guest { memory, disk: Arc::new(LiveDisk::new(disk)), forked }
}

fn checkpoint(guest: &Guest, to: &Path) -> Result<PathBuf> {
    let progress = Progress::new();
    let mut staged = StagedImage::create(to)?;
    staged.prepare_disk("root", &guest.disk)?;
    staged.cut_disks();
    staged.write_state(&StateMap::new())?;
    if guest.forked {
        let writer = staged.prepare_writer(&guest.memory, &[])?.fork(&guest.memory).map_err(|refused| refused.error)?;
        staged.finish_memory(writer, &progress)?;
    } else {
        staged.write_memory(&guest.memory, &[], &progress)?;
    }
    staged.finish_disks(&progress)?;
    staged.commit(head())
}

fn assert_whole(path: &Path) {
    let image = Image::open(path).expect("opens");
    image.verify(&Progress::new()).expect("verifies");
    assert_eq!(image.disk_ids().collect::<Vec<_>>(), ["root"]);
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The operations of a checkpoint; not those of a child.
fn steps(guest: &Guest) -> Vec<Step> {
    let directory = tempfile::tempdir().expect("directory");
    let (result, steps) = with(Fault::None, || checkpoint(guest, &directory.path().join("000001")));
    result.expect("no fault, no failure");
    steps
}

#[test]
fn everything_is_durable_before_the_manifest_and_the_manifest_before_the_name() {
    for forked in [false, true] {
        assert_order(&steps(&guest(forked)));
    }
}

fn assert_order(steps: &[Step]) {
    let position = |operation: &str, end: &str| {
        let found = steps.iter().rposition(|step| step.operation == operation && step.path.ends_with(end));
        found.unwrap_or_else(|| panic!("no {operation} of {end} in {steps:#?}"))
    };
    let manifest = position("rename", "manifest.json");
    let publish = position("rename_new", "000001");
    for name in ["state", "memory", "memory.map", "disks/root", "disks/root.map"] {
        assert!(position("sync", name) < manifest, "{name}");
    }
    assert!(position("sync_dir", "disks") < manifest);
    let syncs_of_staging: Vec<usize> = steps
        .iter()
        .enumerate()
        .filter(|(_, step)| step.operation == "sync_dir" && step.path.to_string_lossy().contains("/.STAGING-"))
        .map(|(index, _)| index)
        .collect();
    assert!(syncs_of_staging.iter().any(|sync| *sync < manifest), "the names of the files");
    assert!(syncs_of_staging.iter().any(|sync| (manifest..publish).contains(sync)), "the manifest's name");
    assert!(position("sync", ".manifest.json.tmp") < manifest);
    let last_write = steps.iter().rposition(|step| matches!(step.operation, "write" | "copy" | "reflink" | "set_len"));
    assert!(last_write.expect("something was written") < position("sync", ".manifest.json.tmp"));
    assert_eq!(steps[publish + 1].operation, "sync_dir", "the name itself, at once");
    assert!(publish < position("rename", "latest"), "the hint comes last");
}

#[test]
fn a_failure_at_any_operation_leaves_nothing_or_all() {
    for (forked, errno) in [(false, libc::EIO), (false, libc::ENOSPC), (true, libc::EIO), (true, libc::ENOSPC)] {
        let guest = guest(forked);
        for at in 0..steps(&guest).len() {
            let store = tempfile::tempdir().expect("directory");
            let path = store.path().join("000001");
            let (result, steps) = with(Fault::Fail(at, errno), || checkpoint(&guest, &path));
            let failed = &steps[at];
            match result {
                Ok(_) => {
                    assert!(matches!(failed.operation, "symlink" | "rename"), "{failed:?} does not matter");
                    assert_whole(&path);
                }
                Err(error) => {
                    assert!(!path.exists(), "{failed:?}: {error}");
                    assert_eq!(names_in(store.path()), [""; 0], "{failed:?}: {error}");
                    assert_eq!(matches!(error, Error::NoSpace { .. }), errno == libc::ENOSPC, "{failed:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn dying_before_any_operation_leaves_nothing_or_all_once_swept() {
    for forked in [false, true] {
        die_everywhere(&guest(forked));
    }
}

fn die_everywhere(guest: &Guest) {
    let mut survived = 0;
    let count = steps(guest).len();
    for at in 0..=count {
        let store = tempfile::tempdir().expect("directory");
        let path = store.path().join("000001");
        // The result is of no interest: nobody is left to hear it.
        let (_, _) = with(Fault::Die(at), || checkpoint(guest, &path));
        for name in names_in(store.path()) {
            let whole = name == "000001" || name == "latest";
            assert!(whole || name.starts_with('.'), "{name} after {at} operations");
            if store.path().join(&name).join("manifest.json").exists() {
                assert_whole(&store.path().join(&name));
            }
        }
        Store::new(store.path()).sweep_staging().expect("sweeps");
        let rest = names_in(store.path());
        assert!(rest.iter().all(|name| !name.starts_with('.')), "{rest:?} after {at} operations");
        if path.exists() {
            assert_whole(&path);
            survived += 1;
        }
    }
    assert!((1..count).contains(&survived), "the checkpoint came to exist somewhere on the way");
}

#[test]
fn a_removed_name_is_durably_gone_before_its_files_are() {
    let store = tempfile::tempdir().expect("directory");
    checkpoint(&guest(false), &store.path().join("000001")).expect("commits");
    let (result, steps) = with(Fault::None, || Store::new(store.path()).remove("000001"));
    result.expect("no fault, no failure");
    let operations: Vec<_> = steps.iter().map(|step| step.operation).collect();
    assert_eq!(operations, ["rename_new", "sync_dir", "remove", "sync_dir", "remove_tree"]);
}

#[test]
fn removing_a_checkpoint_leaves_all_or_nothing_once_swept() {
    for at in 0..6 {
        let store = tempfile::tempdir().expect("directory");
        let path = checkpoint(&guest(false), &store.path().join("000001")).expect("commits");
        let (_, steps) = with(Fault::Die(at), || Store::new(store.path()).remove("000001"));
        assert!(steps.len() <= 6, "the loop covers every operation: {steps:?}");
        let left = names_in(store.path()).into_iter().map(|name| store.path().join(name));
        left.filter(|path| path.join("manifest.json").exists()).for_each(|path| assert_whole(&path));
        Store::new(store.path()).sweep_staging().expect("sweeps");
        match path.exists() {
            true => assert_whole(&path),
            false => assert_eq!(names_in(store.path()), ["latest"]),
        }
    }
}
