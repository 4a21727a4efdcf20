//! Signals in each phase of a VM's life.

use std::fs::{self, File};

use ckvmm_tests::{
    LIMIT,
    api::wait_until,
    bare_metal::{self, Home},
    lines::{FAILED, is_error},
    process::Ckvmm,
};
use nix::sys::signal::Signal::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use serde_json::Value;

/// Checkpointed and stopped.
const CHECKPOINTED: i32 = 85;

/// A guest that takes no notice of the power button, with a long time to do so.
fn stubborn() -> Value {
    let mut config = bare_metal::config("job=write");
    config["stop_timeout"] = "24h".into();
    config
}

/// A VM that is still copying its disk when this returns: the copy takes seconds, its file is there at once.
fn starting(home: &Home, config: Value) -> Ckvmm {
    let config = bare_metal::with_disk(config, home.path(), 0);
    // Data without holes, so that there is something to copy.
    let disk = File::options().write(true).open(home.join("disk.raw")).unwrap();
    let mut from = std::io::Read::take(std::io::repeat(7), 1 << 30);
    std::io::copy(&mut from, &mut &disk).unwrap();
    let vm = home.start(&config, &[]);
    wait_until("the disk is being copied", || home.join("t.ckvmm/disks/root.raw.tmp").exists().then_some(()));
    vm
}

fn is_still_copying(home: &Home) -> bool {
    !home.join("t.ckvmm/disks/root.raw").exists()
}

#[test]
fn sigterm_while_starting_ends_it_at_once() {
    let home = Home::new();
    let mut vm = starting(&home, stubborn());
    vm.signal(SIGTERM);
    assert_eq!(vm.wait(LIMIT), FAILED);
    assert!(is_still_copying(&home), "it waited for the copy");
    let lines = vm.messages.all();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    is_error(&lines[0], &["still starting", "nothing of it is lost"]);
    // what was copied so far is no disk, and in nobody's way
    fs::write(home.join("disk.raw"), vec![5; 1 << 20]).unwrap();
    let mut config = stubborn();
    config["disks"] = serde_json::json!([{ "id": "root", "path": "disk.raw" }]);
    home.boot(&config);
    assert_eq!(home.names("t.ckvmm/disks"), ["root.base", "root.raw"]);
}

#[test]
fn sigusr1_while_starting_makes_a_checkpoint_once_it_runs() {
    let home = Home::new();
    let mut vm = starting(&home, stubborn());
    vm.signal(SIGUSR1);
    assert!(is_still_copying(&home), "the disk is too small for this test");
    bare_metal::committed(&vm);
    vm.console.expect("CKVMM filled", LIMIT);
    bare_metal::goes_on(&mut vm);
}

#[test]
fn sigusr2_while_starting_makes_a_checkpoint_once_it_runs_and_ends_it() {
    let home = Home::new();
    let mut vm = starting(&home, stubborn());
    vm.signal(SIGUSR2);
    assert!(is_still_copying(&home), "the disk is too small for this test");
    assert_eq!(vm.wait(LIMIT), CHECKPOINTED);
    vm.console.wait_for_end(LIMIT);
    let mut again = home.restore(&home.checkpoint(1), &["--work", "w"]);
    // The cut may be before this line, after it, or in it.
    if !vm.console.all().iter().any(|line| line.contains("CKVMM filled")) {
        again.console.expect("steps=", LIMIT);
    }
    bare_metal::goes_on(&mut again);
}

#[test]
fn sigusr1_while_running() {
    let home = Home::new();
    let mut vm = home.boot(&stubborn());
    for number in 1..=3 {
        assert_eq!(bare_metal::checkpoint(&vm), home.checkpoint(number));
        bare_metal::goes_on(&mut vm);
    }
}

#[test]
fn sigusr2_while_running_ends_it_with_85_and_loses_nothing() {
    let home = Home::new();
    let mut vm = home.boot(&stubborn());
    let before = bare_metal::steps(&mut vm);
    vm.signal(SIGUSR2);
    assert_eq!(vm.wait(LIMIT), CHECKPOINTED);
    let mut again = home.restore(&home.checkpoint(1), &["--work", "w"]);
    assert!(bare_metal::steps(&mut again) > before);
}

#[test]
fn sigterm_while_running_presses_the_power_button_and_then_waits() {
    let home = Home::new();
    let mut config = stubborn();
    config["stop_timeout"] = "200ms".into();
    let mut vm = home.boot(&config);
    vm.signal(SIGTERM);
    assert_eq!(vm.wait(LIMIT), FAILED);
    is_error(&vm.messages.all()[0], &["did not power off within 0.2 s", "stop_timeout"]);
}

#[test]
fn signals_while_paused() {
    let home = Home::new();
    let mut vm = home.boot(&stubborn());
    home.ok(["pause", "t"]);
    bare_metal::checkpoint(&vm);
    assert_eq!(home.api().vm()["state"], "paused", "a checkpoint changes nothing");
    home.ok(["resume", "t"]);
    bare_metal::goes_on(&mut vm);
    home.ok(["pause", "t"]);
    // a guest that stands still could not power off
    vm.signal(SIGTERM);
    wait_until("it is stopping", || (home.api().vm()["state"] == "stopping").then_some(()));
    bare_metal::goes_on(&mut vm);
    vm.signal(SIGINT);
    assert_eq!(vm.wait(LIMIT), FAILED);
    is_error(&vm.messages.expect("asked again", LIMIT).replace(": the", "; the"), &["the guest is ended"]);
}

#[test]
fn sigusr2_while_paused() {
    let home = Home::new();
    let mut vm = home.boot(&stubborn());
    home.ok(["pause", "t"]);
    vm.signal(SIGUSR2);
    assert_eq!(vm.wait(LIMIT), CHECKPOINTED);
    let mut again = home.restore(&home.checkpoint(1), &["--work", "w"]);
    bare_metal::goes_on(&mut again);
}

#[test]
fn signals_while_stopping() {
    let home = Home::new();
    let mut vm = home.boot(&stubborn());
    vm.signal(SIGTERM);
    wait_until("it is stopping", || (home.api().vm()["state"] == "stopping").then_some(()));
    for signal in [SIGUSR1, SIGUSR2] {
        vm.signal(signal);
        is_error(&vm.messages.expect("checkpoint", LIMIT), &["the VM is ending", "nothing left to capture"]);
    }
    for verb in ["pause", "resume", "checkpoint"] {
        let output = home.run([verb, "t"]);
        ckvmm_tests::lines::refused(&output, FAILED, &["the VM is ending"]);
    }
    assert_eq!(home.api().vm()["state"], "stopping");
    // it has all of its time
    bare_metal::goes_on(&mut vm);
    assert!(!home.join("checkpoints").exists());
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
}

/// A VM whose RAM takes a while to be written.
fn boot_large(home: &Home) -> Ckvmm {
    let mut config = stubborn();
    config["kernel"]["cmdline"] = "job=write mib=320 hot=1".into();
    config["memory"] = "352MiB".into();
    home.boot(&config)
}

/// A VM that is making a checkpoint when this returns, and the operation's path.
fn checkpointing(home: &Home) -> (Ckvmm, String) {
    let vm = boot_large(home);
    let operation = home.api().begin_checkpoint("");
    (vm, operation)
}

#[test]
fn sigusr1_while_checkpointing_makes_no_second_one() {
    let home = Home::new();
    let (mut vm, operation) = checkpointing(&home);
    vm.signal(SIGUSR1);
    is_error(&vm.messages.expect("SIGUSR1", LIMIT), &["a checkpoint is being made already"]);
    assert_eq!(home.api().ended(&operation)["state"], "done");
    bare_metal::goes_on(&mut vm);
    assert_eq!(home.names("checkpoints"), ["000001", "latest"]);
}

#[test]
fn sigusr2_while_checkpointing_makes_one_of_its_own_after_it() {
    let home = Home::new();
    let (mut vm, operation) = checkpointing(&home);
    vm.signal(SIGUSR2);
    assert_eq!(home.api().get(&operation).json()["state"], "running", "RAM is too small for this test");
    assert_eq!(vm.wait(LIMIT), CHECKPOINTED);
    assert_eq!(home.names("checkpoints"), ["000001", "000002", "latest"]);
    home.ok(["verify", home.checkpoint(2).to_str().unwrap()]);
}

/// Waits until RAM is being written for the operation: the guest stands still meanwhile.
fn standing(home: &Home, operation: &str) {
    wait_until("RAM is being written", || (home.api().get(operation).json()["phase"] == "memory").then_some(()));
}

#[test]
fn sigterm_while_the_guest_stands_still_gives_the_checkpoint_up() {
    let home = Home::new();
    let mut vm = boot_large(&home);
    let operation = home.api().begin_checkpoint(r#"{"mode": "stop"}"#);
    standing(&home, &operation);
    vm.signal(SIGTERM);
    let ended = home.api().ended(&operation);
    assert_eq!((&ended["state"], &ended["error"]), (&"failed".into(), &"checkpoint: cancelled".into()), "{ended}");
    wait_until("it is stopping", || (home.api().vm()["state"] == "stopping").then_some(()));
    bare_metal::goes_on(&mut vm);
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
    assert_eq!(home.names("checkpoints"), [""; 0]);
}

#[test]
fn sigterm_while_a_checkpoint_is_made_with_which_it_ends_is_needed_twice() {
    let home = Home::new();
    let mut vm = boot_large(&home);
    let operation = home.api().begin_checkpoint(r#"{"stop": true}"#);
    standing(&home, &operation);
    vm.signal(SIGTERM);
    is_error(&vm.messages.expect("ends once", LIMIT), &["ask again"]);
    vm.signal(SIGTERM);
    vm.messages.expect("checkpoint: cancelled; the guest goes on", LIMIT);
    wait_until("it is stopping", || (home.api().vm()["state"] == "stopping").then_some(()));
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
    assert_eq!(home.names("checkpoints"), [""; 0]);
}

#[test]
fn sigterm_while_checkpointing_stops_it_after_that() {
    let home = Home::new();
    let (mut vm, operation) = checkpointing(&home);
    vm.signal(SIGTERM);
    assert_eq!(home.api().ended(&operation)["state"], "done");
    wait_until("it is stopping", || (home.api().vm()["state"] == "stopping").then_some(()));
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
    home.ok(["verify", home.checkpoint(1).to_str().unwrap()]);
}
