//! Checkpoints that build on others: `list`, `prune`, `flatten`, `checkpoint --full`.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    lines::{FAILED, USAGE, refused},
    process::Ckvmm,
};

/// A VM with a disk, and a chain of three checkpoints of it.
fn chain() -> (Home, Ckvmm, [String; 3]) {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=write mib=16"), home.path(), 3 << 20);
    let mut vm = home.boot(&config);
    let checkpoints = [(); 3].map(|()| {
        bare_metal::goes_on(&mut vm);
        home.ok(["checkpoint", "t"])
    });
    (home, vm, checkpoints)
}

#[test]
fn list_says_what_is_shared() {
    let (home, _vm, [first, ..]) = chain();
    let entries = home.json(["list", "checkpoints", "--json"]);
    let [a, b, c] = &entries.as_array().unwrap()[..] else { panic!("{entries}") };
    assert_eq!(a["shared_bytes"], 0);
    assert_eq!(b["manifest"]["parent"], a["manifest"]["id"]);
    assert_eq!(c["manifest"]["parent"], b["manifest"]["id"]);
    let own = |entry: &serde_json::Value| entry["on_disk_bytes"].as_u64().unwrap();
    assert!(c["shared_bytes"].as_u64().unwrap() > 0 && own(c) > 0, "{c}");
    let table = home.ok(["list", "checkpoints"]);
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = ["CHECKPOINT", "AGE", "VM", "MEMORY", "OWN", "SHARED", "PAUSE", "DURATION", "MODE", "PARENT", "ID"];
    assert_eq!(lines.next().unwrap(), header);
    let rows: Vec<_> = lines.collect();
    assert_eq!(rows[0][9], "-");
    let auto = if ckvmm_snapshot::can_protect().is_ok() { "protect" } else { "fork" };
    assert_eq!((rows[1][8], rows[1][9]), (auto, &rows[0][10][..8]), "the parent is named: {table}");
    let inspected = home.ok(["inspect", &first]);
    assert!(inspected.contains("0B shared with other checkpoints"), "{inspected}");
}

#[test]
fn a_full_one_shares_nothing() {
    let (home, _vm, _) = chain();
    let full = home.ok(["checkpoint", "t", "--full"]);
    assert_eq!(home.json(["inspect", &full, "--json"])["shared_bytes"], 0);
    assert_eq!(fs::metadata(Path::new(&full).join("memory")).unwrap().nlink(), 1);
}

#[test]
fn prune_removes_the_oldest_and_breaks_nothing() {
    let (home, vm, [first, second, third]) = chain();
    let named = home.ok(["checkpoint", "t", "checkpoints/before-upgrade"]);
    let removed = home.ok(["prune", "checkpoints", "--keep", "1"]);
    assert_eq!(removed.lines().map(|line| home.join(line)).collect::<Vec<_>>(), [&first, &second].map(Path::new));
    assert_eq!(home.names("checkpoints"), ["000003", "before-upgrade", "latest"]);
    for kept in [&third, &named] {
        assert!(home.ok(["verify", kept]).contains("whole"));
    }
    assert_eq!(home.ok(["prune", "checkpoints", "--keep", "1"]), "", "nothing is left to remove");
    // the VM builds on what has been removed, too
    let next = home.ok(["checkpoint", "t"]);
    home.ok(["verify", &next]);
    vm.kill9();
    let mut vm = home.restore(Path::new(&next), &["--work", "w"]);
    bare_metal::goes_on(&mut vm);
}

#[test]
fn keep_of_a_clone_removes_no_other_s() {
    let home = Home::new();
    let mut config = bare_metal::config("job=write");
    config["checkpoint"]["keep"] = 1.into();
    let vm = home.boot(&config);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let mut clones = ["a", "b"].map(|name| {
        let mut vm = home.restore(&image, &["--work", name, "--set", &format!("name={name}")]);
        bare_metal::goes_on(&mut vm);
        vm
    });
    for name in ["a", "b", "a", "b"] {
        home.ok(["checkpoint", name]);
    }
    for vm in &mut clones {
        vm.type_line("q");
        assert_eq!(vm.wait(LIMIT), 0, "which waits until all is removed that is to be");
    }
    assert_eq!(home.names("checkpoints"), ["000001", "000004", "000005", "latest"]);
}

#[test]
fn prune_that_is_not_meant_so() {
    let (home, _vm, [first, ..]) = chain();
    refused(&home.run(["prune", "checkpoints", "--keep", "0"]), USAGE, &["--keep", "0"]);
    refused(&home.run(["prune", "checkpoints"]), USAGE, &["--keep"]);
    refused(&home.run(["prune", &first, "--keep", "1"]), USAGE, &["is one checkpoint"]);
    refused(&home.run(["prune", "nowhere", "--keep", "1"]), FAILED, &["nowhere: no such directory"]);
    assert_eq!(home.names("checkpoints").len(), 4);
}

#[test]
fn flatten_makes_one_that_needs_no_other() {
    let (home, vm, [.., third]) = chain();
    vm.kill9();
    let flat = home.ok(["flatten", &third, "flat"]);
    assert_eq!(Path::new(&flat), home.join("flat"));
    let [old, new] = [&third, &flat].map(|dir| home.json(["inspect", dir, "--json"])["manifest"].clone());
    for same in ["parent", "lineage", "created", "name", "config", "pause_us", "memory_bytes"] {
        assert_eq!(old[same], new[same], "{same}");
    }
    assert_eq!(
        (&old["files"]["memory"], &old["files"]["disks/root"]),
        (&new["files"]["memory"], &new["files"]["disks/root"])
    );
    assert_ne!(old["id"], new["id"]);
    assert_eq!(home.json(["inspect", "flat", "--json"])["shared_bytes"], 0);
    fs::remove_dir_all(home.join("checkpoints")).unwrap();
    assert!(home.ok(["verify", "flat"]).contains("whole"));
    let mut vm = home.restore(Path::new(&flat), &["--work", "w"]);
    bare_metal::goes_on(&mut vm);
}

#[test]
fn flatten_of_a_damaged_one_leaves_nothing() {
    let (home, _vm, [first, _, third]) = chain();
    fs::create_dir(home.join("there")).unwrap();
    refused(&home.run(["flatten", &third, "there"]), FAILED, &["there: exists already"]);
    let id = home.json(["inspect", &first, "--json"])["manifest"]["id"].as_str().unwrap().to_owned();
    let layer = Path::new(&third).join(format!("memory.{id}"));
    let at = 2 << 20;
    let mut byte = [0];
    let file = fs::OpenOptions::new().read(true).write(true).open(&layer).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, at).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[!byte[0]], at).unwrap();
    refused(&home.run(["flatten", &first, "flat"]), FAILED, &["000001/memory: damaged", "use another checkpoint"]);
    assert!(!home.join("flat").exists());
}
