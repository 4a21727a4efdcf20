//! A VM whose output nobody reads, or whose reader has gone: `ckvmm boot 2>&1 | less`, `| tee log` whose tee has died, a
//! terminal that was closed.

use std::{
    ffi::OsStr,
    fs,
    io::{self, PipeReader, PipeWriter},
};

use ckvmm_tests::{LIMIT, api::wait_until, bare_metal::Home, config, process::Ckvmm};
use nix::fcntl::{FcntlArg, fcntl};

use crate::guest;

/// A pipe has room for so much; a guest that is asked for its status so often says more.
const ROOM: i32 = 4096;
const QUESTIONS: usize = 60;

/// The guest says a lot, is checkpointed, and powers off.
fn lives_with(output: &PipeWriter) {
    let home = Home::in_memory();
    let file = config::write(home.path(), &guest::config("pvh", "16MiB", "job=write mib=1"));
    let boot = [OsStr::new("boot"), OsStr::new("--config"), file.as_os_str()];
    let mut vm = Ckvmm::start_saying(home.path(), boot, output);
    vm.type_bytes(&[b's'; QUESTIONS]);
    let state = || Some(home.api().try_ask("GET", "/v1/vm", "")?.json()["state"].clone());
    wait_until("it runs", || state().filter(|state| state == "running"));
    let operation = home.api().begin_checkpoint("{}");
    assert_eq!(home.api().ended(&operation)["state"], "done");
    vm.type_bytes(b"q");
    assert_eq!(vm.wait(LIMIT), 0);

    let console = fs::read_to_string(home.join("t.ckvmm/console.log")).expect("it is kept");
    assert_eq!(console.matches("CKVMM status").count(), QUESTIONS, "all that the guest said is kept");
    assert!(console.len() > ROOM as usize, "{}", console.len());
    let log = fs::read_to_string(home.join("t.ckvmm/log")).expect("it is kept");
    assert!(log.contains("durable"), "{log}");
}

fn small_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = io::pipe().expect("descriptors are left");
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(ROOM)).expect("a pipe may be small");
    (reader, writer)
}

#[test]
fn a_vm_whose_reader_has_gone_goes_on() {
    if guest::skipped() {
        return;
    }
    let (reader, writer) = small_pipe();
    drop(reader);
    lives_with(&writer);
}

#[test]
fn a_vm_whose_reader_does_not_read_goes_on() {
    if guest::skipped() {
        return;
    }
    let (_reader, writer) = small_pipe();
    lives_with(&writer);
}
