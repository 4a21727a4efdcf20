//! Damage in RAM or disks of an image, which a restore does not read before the guest runs.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use ckvmm_tests::{
    LIMIT,
    api::wait_until,
    bare_metal::{self, Home},
    lines::{FAILED, is_error, refused},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const CHUNK: u64 = 2 << 20;

/// A guest that only has memory; it neither looks at what it once wrote nor writes.
fn still(mib: u64) -> Value {
    let mut config = bare_metal::config(&format!("job=pagefill mib={mib}"));
    config["memory"] = format!("{}MiB", mib + 16).into();
    config
}

fn damaged(config: &Value, home: &Home, file: &str, offset: u64) -> (PathBuf, String) {
    let vm = home.boot(config);
    let image = bare_metal::checkpoint(&vm);
    drop(vm);
    let path = image.join(file);
    let open = File::options().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    open.read_exact_at(&mut byte, offset).unwrap();
    open.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    let chunk = offset / CHUNK * CHUNK;
    (image, format!("{}: damaged: the {CHUNK} bytes at offset {chunk} differ", path.display()))
}

/// Full verification and `ckvmm verify` name the chunk, and no guest runs; in the background it is stopped.
fn is_found(home: &Home, image: &Path, what: &str) {
    let path = image.to_str().unwrap();
    refused(&home.run(["verify", path]), FAILED, &[what]);
    let verdict = home.run(["verify", path, "--json"]);
    let verdict: Value = serde_json::from_slice(&verdict.stdout).unwrap();
    assert!(verdict["whole"] == false && verdict["error"].as_str().unwrap().contains(what), "{verdict}");
    // A restore that goes on would have no end: it comes after those that have one.
    refused(&home.run(["restore", path, "--verify=full", "--work", "full"]), FAILED, &[what, "use another checkpoint"]);
    assert!(!home.join("full").exists(), "nothing is made for an image that is damaged");
    let mut vm = home.restore(image, &["--work", "background"]);
    assert_eq!(vm.wait(LIMIT), FAILED);
    let lines = vm.messages.all();
    let errors: Vec<&String> = lines.iter().filter(|line| !line.contains("the guest's copy is")).collect();
    assert_eq!(errors.len(), 1, "{lines:#?}");
    is_error(errors[0], &[what, "the guest runs from it and is stopped"]);
}

#[test]
fn a_flipped_byte_in_ram() {
    let home = Home::new();
    let (image, what) = damaged(&still(16), &home, "memory", (20 << 20) + 4711);
    is_found(&home, &image, &what);
}

#[test]
fn a_flipped_byte_in_a_disk() {
    let home = Home::new();
    let config = bare_metal::with_disk(still(4), home.path(), 6 << 20);
    let (image, what) = damaged(&config, &home, "disks/root", (4 << 20) + 17);
    is_found(&home, &image, &what);
}

/// Damage at the end of an image that takes a while to compare.
fn damaged_late(home: &Home) -> (PathBuf, String) {
    damaged(&still(320), home, "memory", (325 << 20) + 4711)
}

#[test]
fn a_guest_that_powers_off_before_the_damage_is_found() {
    let home = Home::new();
    let (image, what) = damaged_late(&home);
    let mut vm = home.restore(&image, &["--work", "w"]);
    vm.type_line("q");
    vm.console.expect("CKVMM poweroff", LIMIT);
    assert_eq!(vm.wait(LIMIT), FAILED, "its work is worth nothing");
    is_error(&vm.messages.all()[0], &[&what]);
}

#[test]
fn a_checkpoint_does_not_hand_damage_on() {
    let home = Home::new();
    let (image, what) = damaged_late(&home);
    let mut vm = home.restore(&image, &["--work", "w"]);
    wait_until("it takes signals", || home.api().try_ask("GET", "/v1/vm", ""));
    vm.signal(Signal::SIGUSR2);
    assert_eq!(vm.wait(LIMIT), FAILED);
    assert!(vm.messages.all().iter().any(|line| line.contains(&what)), "{:?}", vm.messages.all());
    assert_eq!(home.names("checkpoints"), ["000001", "latest"], "there is no new one");
}

#[test]
fn whoever_does_not_want_to_wait_for_the_verification() {
    let home = Home::new();
    let (image, _) = damaged_late(&home);
    let mut vm = home.restore(&image, &["--work", "w"]);
    vm.type_line("q");
    vm.console.expect("CKVMM poweroff", LIMIT);
    // whichever comes first, it ends, and not with success
    vm.signal(Signal::SIGTERM);
    assert_eq!(vm.wait(LIMIT), FAILED);
}
