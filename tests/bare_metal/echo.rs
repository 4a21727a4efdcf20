//! What is typed while checkpoints are made reaches the guest once: not lost, not doubled.
//!
//! The processes before and after a restore read one pipe, so what the first has not taken from it the second does; and
//! both keep what the guest says in one log.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write,
    path::PathBuf,
};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    process::Ckvmm,
};
use nix::sys::signal::Signal;

use crate::guest::{self, PROTOCOLS};

/// Checkpoints made.
const CHECKPOINTS: u32 = 24;
/// One in so many stops the VM, which is then restored.
const STOP: u32 = 6;
/// Lines typed before each, of 20 bytes or so each: many times what the port's FIFO holds.
const LINES: u32 = 25;

#[test]
fn what_is_typed_during_checkpoints_is_neither_lost_nor_doubled() {
    if guest::skipped() {
        return;
    }
    guest::keep_early_signals();
    for protocol in PROTOCOLS {
        let home = Home::in_memory();
        let (reader, writer) = nix::unistd::pipe().expect("a pipe");
        let mut keyboard = File::from(writer);
        let config = guest::config(protocol, "16MiB", "job=echo");
        let file = ckvmm_tests::config::write(home.path(), &config);
        let start = |arguments: &[&str]| {
            Ckvmm::start_reading(home.path(), arguments, reader.try_clone().expect("a descriptor"))
        };
        let mut vm = start(&["boot", "--config", file.to_str().expect("UTF-8"), "--state", "state"]);
        vm.console.expect("ready job=echo", LIMIT);
        let mut typed = String::new();
        for number in 0..CHECKPOINTS {
            let lines = lines(number * LINES);
            keyboard.write_all(lines.as_bytes()).expect("it is read");
            typed += &lines;
            if number % STOP == STOP - 1 {
                let image = stop(&mut vm);
                vm = start(&["restore", image.to_str().expect("UTF-8"), "--work", "state"]);
            } else {
                bare_metal::checkpoint(&vm);
            }
        }
        keyboard.write_all(b"the end\n").expect("it is read");
        typed += "the end\n";
        vm.console.expect("the end", LIMIT);
        let log = fs::read_to_string(home.join("state/console.log")).expect("the console is logged");
        let (_, echoed) = log.split_once("\r\n").expect("the guest said that it is ready");
        let differs = typed.lines().zip(echoed.lines()).find(|(typed, echoed)| typed != echoed);
        assert_eq!((differs, echoed.len()), (None, typed.len()), "typed, and what came back");
    }
}

/// Lines that differ from all others, from number `first` on.
fn lines(first: u32) -> String {
    (first..first + LINES).fold(String::new(), |mut text, line| {
        writeln!(text, "{line:06} {:x}", u64::from(line).wrapping_mul(0x9e37_79b9)).expect("a string takes it");
        text
    })
}

fn stop(vm: &mut Ckvmm) -> PathBuf {
    vm.signal(Signal::SIGUSR2);
    let image = bare_metal::committed(vm);
    assert_eq!(vm.wait(LIMIT), 85);
    image
}
