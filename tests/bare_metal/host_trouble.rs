//! A host that fails a checkpoint: the guest goes on, one line says why, nothing is left, and the next one succeeds.
//!
//! Here: a disk that breaks (EIO), and a limit on memory. A full disk (ENOSPC) is in `tests/bad_input/checkpoints.rs`
//! (`a_store_without_room_for_ram`, `…_for_a_disk`, `…_for_a_name`), a writer that somebody kills in `writer.rs`
//! (`a_killed_writer_costs_the_checkpoint_and_nothing_else`).

use std::{fs, path::Path};

use ckvmm_tests::{
    LIMIT,
    api::wait_until,
    bare_metal::{self, Home},
    cgroup::{Cgroup, Limits},
    config,
    lines::{FAILED, is_error, refused},
    mount::{self, Device},
    process::{self, Ckvmm},
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{guest, picture, writer::Stopped};

const MIB: u64 = 1 << 20;
/// Of which one at least must succeed.
const ATTEMPTS: usize = 6;

/// The next checkpoint is whole, and of the guest as it is now.
fn succeeds(home: &Home, vm: &mut Ckvmm) {
    let least = guest::steps(vm);
    let image = bare_metal::checkpoint(vm);
    assert!(picture::check(&image).steps >= least, "it is of an earlier instant");
    home.ok(["verify", image.to_str().expect("UTF-8")]);
    bare_metal::goes_on(vm);
}

#[test]
fn a_disk_that_breaks_costs_the_checkpoint_and_nothing_else() {
    if guest::skipped() || !mount::enter_namespace() {
        return;
    }
    for mode in ["auto", "fork", "stop"] {
        let home = Home::in_memory();
        let store = home.join("checkpoints");
        fs::create_dir(&store).expect("an empty directory");
        let Some(disk) = Device::mount(&store, home.join("device"), 96 * MIB) else { return };
        let mut config = guest::config("linux", "32MiB", "job=write seed=7 mib=16 hot=1");
        config["checkpoint"]["mode"] = mode.into();
        let mut vm = home.boot(&config);
        // Less than the guest's memory, which is random: some of it must fail.
        disk.fail_beyond(8 * MIB);
        for signal in [Signal::SIGUSR1, Signal::SIGUSR2] {
            vm.signal(signal);
            let line = vm.messages.expect("the guest goes on", LIMIT);
            is_error(&line, &["checkpoints/.STAGING-", "Input/output error", "; the storage has failed"]);
            bare_metal::goes_on(&mut vm);
            assert_eq!(home.names("checkpoints"), [""; 0], "{mode}: nothing is left of it");
        }
        disk.mend();
        succeeds(&home, &mut vm);
        vm.kill9();
    }
}

/// A VM in a control group, whose guest has touched 24 MiB of its RAM and writes to 16 of them.
fn boot_in(group: &Cgroup, home: &Home, mode: &str) -> Ckvmm {
    let mut config = guest::config("linux", "48MiB", "job=write seed=3 mib=24 hot=16");
    config["checkpoint"]["mode"] = mode.into();
    let mut command = process::command(home.path());
    command.args(["boot", "--config"]).arg(config::write(home.path(), &config));
    let vm = Ckvmm::start_command(group.run(&command));
    vm.console.expect("CKVMM filled", LIMIT);
    vm
}

/// Bytes of a VM's memory that are no file's.
fn anonymous(vm: &Ckvmm) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).expect("the VM is there");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn mode(image: &Path) -> String {
    let manifest = fs::read_to_string(image.join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    manifest["mode"].as_str().expect("a word").to_owned()
}

#[test]
fn a_limit_on_memory_costs_the_checkpoint_and_nothing_else() {
    if guest::skipped() {
        return;
    }
    // With one CPU Linux may look for another victim before it has counted what it gets from the first.
    let killed_one = (0..ATTEMPTS).any(|_| {
        let Some(group) = Cgroup::new(Limits::Memory) else { return true };
        let home = Home::in_memory();
        let vm = boot_in(&group, &home, "fork");
        // The writer gives nothing back while it stands still, so all that the guest writes now is copied.
        let writer = Stopped::begin(&vm);
        group.limit(Some(group.charged() + 2 * MIB));
        is_the_writer_s_end(&group, &home, vm, Some(writer))
    });
    assert!(killed_one, "the limit kills the VM, too");
}

#[test]
fn an_image_in_memory_that_a_limit_has_no_room_for_costs_the_checkpoint_and_nothing_else() {
    if guest::skipped() || !guest::can_protect() {
        return;
    }
    // As above.
    let killed_one = (0..ATTEMPTS).any(|_| {
        let Some(group) = Cgroup::new(Limits::Memory) else { return true };
        let home = Home::in_memory();
        let vm = boot_in(&group, &home, "protect");
        group.limit(Some(group.charged() + 12 * MIB));
        vm.signal(Signal::SIGUSR1);
        is_the_writer_s_end(&group, &home, vm, None)
    });
    assert!(killed_one, "the limit kills the VM, too");
}

/// Waits for that. False if the VM's end came with that of its writer.
fn is_the_writer_s_end(group: &Cgroup, home: &Home, mut vm: Ckvmm, writer: Option<Stopped>) -> bool {
    let said = |line: &String| line.contains("the guest goes on");
    let line = wait_until("the writer is killed, and perhaps the VM", || {
        let line = vm.messages.all().into_iter().find(said);
        (line.is_some() || group.kills() > 1).then_some(line)
    });
    drop(writer);
    let Some(line) = line else {
        assert_eq!(group.kills(), 2, "both");
        return false;
    };
    is_error(&line, &["the writer was killed", "out of memory", "free memory"]);
    assert_eq!(group.kills(), 1, "the limit killed the writer, and nobody else");
    assert_eq!(home.names("checkpoints"), [""; 0], "nothing is left of it");
    bare_metal::goes_on(&mut vm);

    group.limit(None);
    succeeds(home, &mut vm);
    vm.kill9();
    true
}

#[test]
fn where_memory_is_short_a_guest_waits_for_its_writer_and_nobody_is_killed() {
    if guest::skipped() || !guest::can_protect() {
        return;
    }
    let Some(group) = Cgroup::new(Limits::Memory) else { return };
    let home = Home::in_memory();
    let mut vm = boot_in(&group, &home, "auto");
    // Enough for the image, and for copies of some of what the guest writes to while the writer stands still.
    group.limit(Some(group.charged() + 64 * MIB));
    let writer = Stopped::begin(&vm);
    drop(writer);
    assert_eq!(mode(&bare_metal::committed(&vm)), "protect");
    bare_metal::goes_on(&mut vm);
    assert_eq!(group.kills(), 0);

    group.limit(None);
    succeeds(&home, &mut vm);
    vm.kill9();
}

#[test]
fn where_memory_is_short_a_restored_guest_stands_still_and_nobody_is_killed() {
    if guest::skipped() {
        return;
    }
    let Some(group) = Cgroup::new(Limits::Memory) else { return };
    let home = Home::new();
    let vm = boot_in(&group, &home, "auto");
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let mut command = process::command(home.path());
    command.arg("restore").arg(&image).arg("--work").arg(home.join("work"));
    let mut vm = Ckvmm::start_command(group.run(&command));
    // What it has written to is its own.
    wait_until("it has written to its RAM", || (anonymous(&vm) >= 16 * MIB).then_some(()));
    bare_metal::goes_on(&mut vm);
    // Of this the 16 MiB that it writes to are taken: a copy of them and what others must find is not left.
    group.limit(Some(56 * MIB));
    vm.signal(Signal::SIGUSR1);
    is_error(&vm.messages.expect("stands still", LIMIT), &["control group", "may write to", "free memory"]);
    assert_eq!(mode(&bare_metal::committed(&vm)), "stop");
    bare_metal::goes_on(&mut vm);
    assert_eq!(group.kills(), 0);

    group.limit(None);
    // It depends on whether all of its RAM is its own by now.
    assert_ne!(mode(&bare_metal::checkpoint(&vm)), "stop", "there is room");
    vm.kill9();
}

#[test]
fn where_no_process_can_be_had_the_guest_stands_still_unless_that_was_not_asked_for() {
    if guest::skipped() {
        return;
    }
    let Some(group) = Cgroup::new(Limits::Tasks) else { return };
    let home = Home::in_memory();
    let mut vm = boot_in(&group, &home, "auto");
    group.limit(Some(group.charged()));
    vm.signal(Signal::SIGUSR1);
    is_error(&vm.messages.expect("the writer", LIMIT), &["cannot be started", "unavailable", "stands still"]);
    let image = bare_metal::committed(&vm);
    assert_eq!(mode(&image), "stop");
    home.ok(["verify", image.to_str().expect("UTF-8")]);

    let output = home.run(["checkpoint", bare_metal::NAME, "--mode", "fork"]);
    refused(&output, FAILED, &["the writer cannot be started", "use mode \"stop\""]);
    group.limit(None);
    succeeds(&home, &mut vm);
    vm.kill9();
}
