//! Checkpoints that cannot be made: each says why, the guest goes on, nothing is left, and the next one succeeds.

use std::{fs, path::Path};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    lines::{FAILED, is_error, refused},
    mount,
    process::Ckvmm,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// `ckvmm checkpoint` and SIGUSR1 fail alike, and leave the guest and the directory `store` as they were.
fn fails(home: &Home, vm: &mut Ckvmm, store: &str, given: Option<&Path>, named: &[&str]) {
    let before = home.names(store);
    let mut arguments = vec!["checkpoint", "t"];
    arguments.extend(given.map(|dir| dir.to_str().unwrap()));
    let line = refused(&home.run(&arguments), FAILED, named);
    let said = vm.messages.expect("the guest goes on", LIMIT);
    is_error(&said, named);
    assert!(said.contains(line.strip_prefix("ckvmm: ").unwrap()), "the VM says the same as the CLI: {said}");
    bare_metal::goes_on(vm);
    if given.is_none() {
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
            vm.signal(signal);
            is_error(&vm.messages.expect("the guest goes on", LIMIT), named);
            bare_metal::goes_on(vm);
        }
    }
    assert_eq!(home.names(store), before, "nothing is left");
}

/// A checkpoint succeeds and is whole.
fn succeeds(home: &Home) {
    let dir = home.ok(["checkpoint", "t"]);
    home.ok(["verify", &dir]);
}

#[test]
fn a_directory_that_exists() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    fs::create_dir(home.join("full")).unwrap();
    fs::write(home.join("full/precious"), "mine").unwrap();
    fails(&home, &mut vm, ".", Some(&home.join("full")), &["full: exists already", "another name"]);
    assert_eq!(home.names("full"), ["precious"]);
    // an empty one, and a checkpoint
    fs::create_dir(home.join("empty")).unwrap();
    fails(&home, &mut vm, ".", Some(&home.join("empty")), &["empty: exists already"]);
    succeeds(&home);
    fails(&home, &mut vm, "checkpoints", Some(&home.checkpoint(1)), &["000001: exists already"]);
    home.ok(["verify", home.checkpoint(1).to_str().unwrap()]);
}

#[test]
fn a_directory_in_a_place_that_does_not_exist() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    fs::write(home.join("file"), "").unwrap();
    fails(&home, &mut vm, ".", Some(&home.join("a/b/c")), &["a/b: it does not exist, nor does the directory above"]);
    fails(&home, &mut vm, ".", Some(&home.join("file/c")), &["file: it is not a directory"]);
    succeeds(&home);
}

#[test]
fn a_store_that_is_a_file() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    fs::write(home.join("checkpoints"), "").unwrap();
    fails(&home, &mut vm, ".", None, &["checkpoints: it is not a directory"]);
    fs::remove_file(home.join("checkpoints")).unwrap();
    succeeds(&home);
}

/// A VM whose store is a file system of its own.
fn with_small_store(bytes: u64, config: impl FnOnce(&Home) -> Value) -> Option<(Home, Ckvmm)> {
    if !mount::enter_namespace() {
        return None;
    }
    let home = Home::new();
    let store = home.join("checkpoints");
    fs::create_dir(&store).unwrap();
    mount::small(&store, bytes);
    let vm = home.boot(&config(&home));
    Some((home, vm))
}

#[test]
fn a_store_without_room_for_ram() {
    // A fork writes RAM while the state is written, which then may be what finds no room left; without, RAM comes first.
    for (mode, what) in [("fork", ": no space left"), ("stop", "/memory: no space left")] {
        let mut config = bare_metal::config("job=write mib=16");
        config["checkpoint"]["mode"] = mode.into();
        let Some((home, mut vm)) = with_small_store(24 * MIB, |_| config) else { return };
        fs::write(home.join("checkpoints/ballast"), vec![1; 12 << 20]).unwrap();
        let named = ["checkpoints/.STAGING-", what, "bytes wanted", "choose another directory"];
        fails(&home, &mut vm, "checkpoints", None, &named);
        fs::remove_file(home.join("checkpoints/ballast")).unwrap();
        succeeds(&home);
    }
}

#[test]
fn a_store_without_room_for_a_disk() {
    let with_disk = |home: &Home| bare_metal::with_disk(bare_metal::config("job=write mib=1"), home.path(), 16 << 20);
    let Some((home, mut vm)) = with_small_store(32 * MIB, with_disk) else { return };
    // RAM alone has room, the disk has none however little RAM takes: it is always the disk that fails.
    fs::write(home.join("checkpoints/ballast"), vec![1; 20 << 20]).unwrap();
    fails(&home, &mut vm, "checkpoints", None, &["/disks/root: no space left", "bytes wanted"]);
    fs::remove_file(home.join("checkpoints/ballast")).unwrap();
    succeeds(&home);
}

#[test]
fn a_store_without_room_for_a_name() {
    let Some((home, mut vm)) = with_small_store(24 * MIB, |_| bare_metal::config("job=write mib=1")) else { return };
    let ballast = vec![1; 23 << 20];
    fs::write(home.join("checkpoints/ballast"), &ballast).unwrap();
    // what is left of it, to the last page
    let rest = (0..).take_while(|n| fs::write(home.join(format!("checkpoints/b{n}")), [1; 4096]).is_ok()).count();
    fails(&home, &mut vm, "checkpoints", None, &["no space left", "choose another directory"]);
    fs::remove_file(home.join("checkpoints/ballast")).unwrap();
    succeeds(&home);
    assert!(rest > 0, "the file system was not full");
}

#[test]
fn a_store_that_is_read_only() {
    let Some((home, mut vm)) = with_small_store(64 * MIB, |_| bare_metal::config("job=write")) else { return };
    let store = home.join("checkpoints");
    succeeds(&home);
    mount::set_read_only(&store, true);
    fails(&home, &mut vm, "checkpoints", None, &["checkpoints", "read-only", "can be written"]);
    mount::set_read_only(&store, false);
    succeeds(&home);
}

/// RAM that takes a while to write: a second asker comes while it is.
fn slow() -> Value {
    let mut config = bare_metal::config("job=write mib=320 hot=1");
    config["memory"] = "352MiB".into();
    config
}

#[test]
fn a_second_checkpoint_while_one_is_made() {
    let home = Home::new();
    let mut vm = home.boot(&slow());
    let api = home.api();
    let first = api.begin_checkpoint("");
    let line = api.ask("POST", "/v1/checkpoints", "").problem(409);
    assert!(line.contains("one is being made already") && line.contains("; "), "{line}");
    let second = home.run(["checkpoint", "t"]);
    refused(&second, FAILED, &["checkpoint: one is being made already", "wait until it is done"]);
    vm.signal(Signal::SIGUSR1);
    is_error(&vm.messages.expect("SIGUSR1", LIMIT), &["a checkpoint is being made already"]);
    assert_eq!(api.get(&first).json()["state"], "running", "all this happened while the first was being made");
    assert_eq!(api.ended(&first)["state"], "done");
    bare_metal::goes_on(&mut vm);
    assert_eq!(home.names("checkpoints"), ["000001", "latest"]);
    home.ok(["verify", home.checkpoint(1).to_str().unwrap()]);
}

#[test]
fn what_a_crash_left_of_a_checkpoint_is_swept() {
    let home = Home::new();
    let vm = home.boot(&slow());
    home.api().begin_checkpoint("");
    ckvmm_tests::api::wait_until("RAM is being written", || {
        let store = fs::read_dir(home.join("checkpoints")).ok()?;
        store.flatten().find(|entry| entry.path().join("memory").exists())
    });
    vm.kill9();
    let left = home.names("checkpoints");
    assert!(left.len() == 1 && left[0].starts_with(".STAGING-"), "{left:?}");
    assert_eq!(home.json(["list", "checkpoints", "--json"]), json!([]), "it is no checkpoint");
    let mut vm = home.boot(&bare_metal::config("job=write"));
    assert_eq!(home.names("checkpoints"), [""; 0]);
    bare_metal::goes_on(&mut vm);
}

#[test]
fn a_mode_that_is_not_there() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    let output = home.run(["checkpoint", "t", "--mode", "sometimes"]);
    refused(&output, ckvmm_tests::lines::USAGE, &["sometimes", "ckvmm checkpoint --help"]);
    bare_metal::goes_on(&mut vm);
}
