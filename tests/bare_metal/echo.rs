//! What is typed while checkpoints are made reaches the guest once: not lost, not doubled.
//!
//! The processes before and after a restore read one pipe, so what the first has not taken from it the second does; and
//! both keep what the guest says in one log.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    thread,
};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    process::Ckvmm,
};
use nix::sys::signal::Signal;

use crate::guest::{self, PROTOCOLS};

/// Lines typed, of 20 bytes or so each: many times what the port's FIFO holds.
const LINES: u32 = 600;
/// Lines after which a live checkpoint is made.
const LIVE: u32 = 25;
/// Lines after which the VM is checkpointed, stopped and restored.
const STOP: u32 = 150;

#[test]
fn what_is_typed_during_checkpoints_is_neither_lost_nor_doubled() {
    if guest::skipped() {
        return;
    }
    guest::keep_early_signals();
    for protocol in PROTOCOLS {
        let home = Home::in_memory();
        let typed = (0..LINES).fold(String::new(), |mut text, line| {
            writeln!(text, "{line:06} {:x}", u64::from(line).wrapping_mul(0x9e37_79b9)).expect("a string takes it");
            text
        });
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        let bytes = typed.clone();
        let typist = thread::spawn(move || File::from(writer).write_all(bytes.as_bytes()).expect("it is read"));
        let config = guest::config(protocol, "16MiB", "job=echo");
        let file = ckvmm_tests::config::write(home.path(), &config);
        let start = |arguments: &[&str]| {
            let stdin = reader.try_clone().expect("a descriptor");
            Ckvmm::start_reading(home.path(), arguments.iter().chain(&["--api-socket", "s"]), stdin)
        };
        let mut vm = start(&["boot", "--config", file.to_str().expect("UTF-8"), "--state", "state"]);
        for line in (LIVE..LINES).step_by(LIVE as usize) {
            vm.console.expect(&format!("{line:06} "), LIMIT);
            if line % STOP == 0 {
                let image = stop(&mut vm);
                vm = start(&["restore", image.to_str().expect("UTF-8"), "--work", "state"]);
            } else {
                bare_metal::checkpoint(&vm);
            }
        }
        vm.console.expect(&format!("{:06} ", LINES - 1), LIMIT);
        typist.join().expect("all was typed");
        let log = fs::read_to_string(home.join("state/console.log")).expect("the console is logged");
        let (ready, echoed) = log.split_once("\r\n").expect("the guest said that it is ready");
        assert!(ready.contains("ready job=echo"), "{ready}");
        let differs = typed.lines().zip(echoed.lines()).find(|(typed, echoed)| typed != echoed);
        assert_eq!((differs, echoed.lines().count()), (None, LINES as usize), "typed, and what came back");
    }
}

fn stop(vm: &mut Ckvmm) -> PathBuf {
    vm.signal(Signal::SIGUSR2);
    let image = bare_metal::committed(vm);
    assert_eq!(vm.wait(LIMIT), 85);
    image
}
