//! The process that writes guest RAM while the guest goes on: what becomes of guest and checkpoint when it dies, when
//! its VM does, and when the VM is to end meanwhile.
//!
//! The tests stop it with SIGSTOP: so whatever happens, happens while it writes.

use std::{collections::BTreeSet, fs, time::Instant};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    process::Ckvmm,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{ends, guest, picture};

/// RAM that takes long enough to write for a test to find its writer.
const JOB: &str = "job=write seed=3 mib=256 hot=16";

fn boot(home: &Home) -> Ckvmm {
    home.boot(&guest::config("linux", "320MiB", JOB))
}

/// A writer that has been stopped. It goes on when this goes.
pub(crate) struct Stopped(Pid);

impl Stopped {
    /// Asks for a checkpoint and stops the process that writes it, once it has settled and has its name.
    pub(crate) fn begin(vm: &Ckvmm) -> Stopped {
        vm.signal(Signal::SIGUSR1);
        let children = format!("/proc/{0}/task/{0}/children", vm.pid());
        let pid = soon("a writer", || {
            let children = fs::read_to_string(&children).expect("the VM is there");
            let pid = children.split_whitespace().next()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            // It is settled once the host would rather end it than the VM: it takes its name before.
            let victim = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?;
            let settled = name == "ckvmm-writer\n" && victim == "1000\n";
            settled.then(|| Pid::from_raw(pid.parse().expect("a number")))
        });
        kill(pid, Signal::SIGSTOP).expect("it writes");
        // One that is handed copies is there before the cut; who copies comes after it.
        soon("the cut", || {
            let threads = names_of_threads(vm);
            (!threads.contains("faults\n") || threads.contains("copier\n")).then_some(())
        });
        Stopped(pid)
    }

    /// False once it has ended, even if nobody has asked how.
    fn lives(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0));
        stat.is_ok_and(|stat| !stat.contains("(ckvmm-writer) Z"))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

fn names_of_threads(vm: &Ckvmm) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", vm.pid())).expect("the VM is there").flatten();
    threads.filter_map(|thread| fs::read_to_string(thread.path().join("comm")).ok()).collect()
}

/// What `look` finds, for which there is no event to wait for.
fn soon<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Some(found) => return found,
            None => assert!(begun.elapsed() < LIMIT, "{what} does not come"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_writer_costs_the_checkpoint_and_nothing_else() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut vm = boot(&home);
    let writer = Stopped::begin(&vm);
    bare_metal::goes_on(&mut vm);
    kill(writer.0, Signal::SIGKILL).unwrap();
    let line = vm.messages.expect("checkpoint: ", LIMIT);
    assert!(line.contains("the writer was killed") && line.ends_with("; the guest goes on"), "{line}");
    assert_eq!(home.names("checkpoints"), [""; 0], "nothing is left of it");
    bare_metal::goes_on(&mut vm);
    picture::check(&bare_metal::checkpoint(&vm));
}

#[test]
fn a_writer_does_not_outlive_its_vm() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let vm = boot(&home);
    let writer = Stopped::begin(&vm);
    vm.kill9();
    soon("the end of the writer", || (!writer.lives()).then_some(()));
    let left = home.names("checkpoints");
    assert!(left.iter().all(|name| name.starts_with(".STAGING-")), "{left:?}");
    let mut vm = boot(&home);
    assert_eq!(home.names("checkpoints"), [""; 0], "swept at the next start");
    bare_metal::goes_on(&mut vm);
}

#[test]
fn checkpoint_and_stop_comes_after_the_checkpoint_that_is_being_written() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut vm = boot(&home);
    let writer = Stopped::begin(&vm);
    vm.signal(Signal::SIGUSR1);
    vm.messages.expect("this signal makes no second one", LIMIT);
    vm.signal(Signal::SIGUSR2);
    bare_metal::goes_on(&mut vm);
    drop(writer);
    let (first, second) = (bare_metal::committed(&vm), bare_metal::committed(&vm));
    assert_eq!(vm.wait(LIMIT), 85);
    assert_eq!((&first, &second), (&home.checkpoint(1), &home.checkpoint(2)));
    let (first, second) = (picture::check(&first), picture::check(&second));
    assert!(second.steps > first.steps, "the guest went on between them");
}

#[test]
fn a_vm_that_ends_waits_for_its_checkpoint_unless_it_is_asked_again() {
    if guest::skipped() {
        return;
    }
    for asked_again in [false, true] {
        let home = Home::in_memory();
        let mut vm = boot(&home);
        let writer = Stopped::begin(&vm);
        vm.type_bytes(b"q");
        vm.messages.expect("the checkpoint is still being written", LIMIT);
        if asked_again {
            vm.signal(Signal::SIGTERM);
            vm.messages.expect("checkpoint: cancelled", LIMIT);
        }
        drop(writer);
        assert_eq!(vm.wait(LIMIT), 0);
        let names = home.names("checkpoints");
        if asked_again {
            assert_eq!(names, [""; 0]);
        } else {
            picture::check(&home.checkpoint(1));
        }
    }
}

#[test]
fn a_guest_that_does_not_power_off_in_time_leaves_the_checkpoint_that_is_being_written() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut config = guest::config("linux", "320MiB", JOB);
    config["stop_timeout"] = "100ms".into();
    let mut vm = home.boot(&config);
    let writer = Stopped::begin(&vm);
    vm.signal(Signal::SIGTERM);
    vm.messages.expect("did not power off within", LIMIT);
    vm.messages.expect("the checkpoint is still being written", LIMIT);
    drop(writer);
    assert_eq!(vm.wait(LIMIT), 1);
    picture::check(&home.checkpoint(1));
}

/// Writes to 128 MiB of RAM, says `.`, and waits until somebody types.
const FILLS_AND_WAITS: [u8; 37] = [
    0xbf, 0x00, 0x00, 0x00, 0x01, // mov edi, 16 MiB
    0xb9, 0x00, 0x00, 0x00, 0x01, // mov ecx, 16 Mi
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
    0xf3, 0x48, 0xab, // rep stosq
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x2e, 0xee, // mov al, '.'; out dx, al
    0xb0, 0x0a, 0xee, // mov al, 10; out dx, al
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec, 0xa8, 0x01, 0x74, 0xfb, // in al, dx; test al, 1; jz to the in
];

#[test]
fn a_guest_that_kvm_cannot_run_on_leaves_the_checkpoint_that_is_being_written() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let kernel = home.join("lost.elf");
    fs::write(&kernel, ends::lost_kernel(&FILLS_AND_WAITS)).expect("it can be written");
    let mut config = guest::config("linux", "192MiB", "");
    config["kernel"]["image"] = kernel.to_str().into();
    let mut vm = home.start(&config, &[]);
    vm.console.expect(".", LIMIT);
    let writer = Stopped::begin(&vm);
    vm.type_bytes(b"x");
    vm.messages.expect("the checkpoint is still being written", LIMIT);
    drop(writer);
    assert_eq!(vm.wait(LIMIT), 1);
    home.ok(["verify", home.checkpoint(1).to_str().expect("UTF-8")]);
}

#[test]
fn the_guest_s_time_goes_on_while_its_checkpoint_is_written_and_its_memory_does_not_reach_it() {
    if guest::skipped() {
        return;
    }
    // Not in memory, where it may not be the child that writes.
    let home = Home::new();
    let mut vm = boot(&home);
    let before = guest::steps(&mut vm);
    let writer = Stopped::begin(&vm);
    let after = guest::steps(&mut vm);
    // All of the hot set is written again before the writer goes on.
    while guest::steps(&mut vm) < after + (16 << 20) / 8 {}
    drop(writer);
    let header = picture::check(&bare_metal::committed(&vm));
    assert!((before..=after).contains(&header.steps), "{} steps, the cut is in {before} to {after}", header.steps);
}

#[test]
fn a_guest_that_is_reset_while_its_ram_is_written_begins_again_and_its_checkpoint_is_of_before() {
    if guest::skipped() {
        return;
    }
    for mode in ["fork", "protect"] {
        if mode == "protect" && !guest::can_protect() {
            continue;
        }
        // As above.
        let home = Home::new();
        let mut config = guest::config("linux", "320MiB", JOB);
        config["checkpoint"]["mode"] = mode.into();
        let mut vm = home.boot(&config);
        bare_metal::goes_on(&mut vm);
        let before = guest::steps(&mut vm);
        let writer = Stopped::begin(&vm);
        // It may not have done a step since the cut.
        let after = guest::steps(&mut vm);
        vm.type_bytes(b"b");
        vm.console.expect("CKVMM reboot", LIMIT);
        vm.console.expect("CKVMM filled", LIMIT);
        drop(writer);
        let header = picture::check(&bare_metal::committed(&vm));
        let steps = header.steps;
        assert!(before > 0 && (before..=after).contains(&steps), "{mode}: {steps}, the cut is in {before} to {after}");
        bare_metal::goes_on(&mut vm);
        // Of the guest that runs now.
        picture::check(&bare_metal::checkpoint(&vm));
    }
}
