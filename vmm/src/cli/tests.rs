//! How the command line is read.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

use serde_json::json;

use super::*;
use crate::api::{BoundSocket, Server};
use crate::config::VmConfig;
use crate::control::{Command, Control, Request, Shared, VmState};
use crate::operations::CheckpointDone;

fn parse(line: &str) -> Result<Verb, clap::Error> {
    let args = line.split_ascii_whitespace();
    Cli::try_parse_from(std::iter::once("ckvmm").chain(args)).map(|cli| cli.verb)
}

fn status(line: &str) -> ExitStatus {
    run(std::iter::once("ckvmm").chain(line.split_ascii_whitespace()).map(OsString::from))
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_says_what_it_does_and_gives_an_example() {
    for verb in Cli::command().get_subcommands_mut() {
        let name = verb.get_name().to_owned();
        let about = verb.get_about().map(ToString::to_string);
        let help = verb.render_long_help().to_string();
        assert!(help.contains("Example"), "{name} has no example");
        assert!(help.contains(&format!("  ckvmm {name}")), "{name}'s example does not call it");
        assert!(about.is_some(), "{name} does not say what it does");
        assert_eq!(verb.get_about().map(ToString::to_string), about, "{name}'s own help says something else");
        for arg in verb.get_arguments() {
            assert!(arg.get_help().is_some() || arg.get_id() == "help", "{name}: {} has no help", arg.get_id());
        }
    }
}

#[test]
fn boot_and_restore_become_options() {
    let Ok(Verb::Boot(args)) = parse("boot --config a/vm.json --api-socket s --state d --fresh --no-reboot") else {
        panic!("boot is not read")
    };
    let expected = BootOptions {
        config: "a/vm.json".into(),
        api_socket: Some("s".into()),
        state_dir: Some("d".into()),
        fresh: true,
        no_reboot: true,
        member: false,
    };
    assert_eq!(BootOptions::from(args), expected);
    let line =
        "restore C --work w --set vcpus=2 --set name=b --paused --clock now --verify=full --api-socket s --no-reboot";
    let Ok(Verb::Restore(args)) = parse(line) else { panic!("restore is not read") };
    let expected = RestoreOptions {
        checkpoint: "C".into(),
        work: Some("w".into()),
        set: vec!["vcpus=2".into(), "name=b".into()],
        paused: true,
        clock: Clock::Now,
        verify_full: true,
        api_socket: Some("s".into()),
        no_reboot: true,
        member: false,
    };
    assert_eq!(RestoreOptions::from(args), expected);
    let Ok(Verb::Restore(args)) = parse("restore C") else { panic!("restore is not read") };
    let expected = RestoreOptions {
        checkpoint: PathBuf::from("C"),
        work: None,
        set: Vec::new(),
        paused: false,
        clock: Clock::Freeze,
        verify_full: false,
        api_socket: None,
        no_reboot: false,
        member: false,
    };
    assert_eq!(RestoreOptions::from(args), expected);
}

#[test]
fn wrong_usage_is_2() {
    for line in [
        "",
        "bot",
        "boot",
        "boot vm.json",
        "boot --config",
        "boot --config a --nonsense",
        "restore",
        "restore C D",
        "restore C --clock later",
        "restore C --verify=half",
        "status",
        "status a --api-socket b",
        "status NotAName",
        "checkpoint",
        "checkpoint a b c",
        "checkpoint a --mode quick",
        "checkpoint --api-socket s a b",
        "pause",
        "console",
        "list",
        "inspect",
        "verify",
        "doctor a b",
    ] {
        assert_eq!(status(line), ExitStatus::Usage, "ckvmm {line}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "--version", "boot --help", "checkpoint -h", "restore --help"] {
        assert_eq!(status(line), ExitStatus::Success, "ckvmm {line}");
    }
}

#[test]
fn what_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for line in [
        format!("status --api-socket {}", at("none.sock")),
        format!("checkpoint --api-socket {}", at("none.sock")),
        format!("checkpoint --api-socket {} {}", at("none.sock"), at("ckpt")),
        format!("kill --api-socket {}", at("none.sock")),
        format!("console --api-socket {}", at("none.sock")),
        format!("status --api-socket {}", at(&"x".repeat(200))),
        format!("list {}", at("none")),
        format!("inspect {}", at("none")),
        format!("verify {} --json", at("none")),
        "status no-vm-has-this-name".to_owned(),
    ] {
        assert_eq!(status(&line), ExitStatus::Failed, "ckvmm {line}");
    }
}

#[test]
fn help_is_named_for_the_verb() {
    let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
    assert_eq!(verb_named(&args("ckvmm boot --x")).as_deref(), Some("boot"));
    assert_eq!(verb_named(&args("ckvmm bot")), None);
    assert_eq!(verb_named(&args("ckvmm")), None);
}

/// Serves the API of a VM that does not exist, for as long as `test` takes. `main_loop` is its main loop; the VM ends
/// when that returns true.
fn with_vm(main_loop: impl Fn(Request, &Shared) -> bool + Send + 'static, test: impl FnOnce(&str)) {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({ "version": 1, "name": "stub", "kernel": { "image": "k" } });
    let shared = Shared::new(&VmConfig::from_value(config, dir.path()).unwrap());
    shared.set_state(VmState::Running);
    let (control, requests) = Control::channel(shared.clone());
    let path = dir.path().join("s");
    let server = Server::start(BoundSocket::bind(&path).unwrap(), control).unwrap();
    let vm = std::thread::spawn(move || {
        while !main_loop(requests.recv().unwrap(), &shared) {}
        server.shutdown();
    });
    test(&format!("--api-socket {}", path.display()));
    // a VM that was not ended by the test
    if path.exists() {
        status(&format!("kill --api-socket {}", path.display()));
    }
    vm.join().unwrap();
}

fn obey(request: Request, shared: &Shared) -> bool {
    let (ends, state) = match request.command {
        Command::Pause => (false, VmState::Paused),
        Command::Resume => (false, VmState::Running),
        Command::PowerOff { .. } => (true, VmState::Off),
        Command::Checkpoint { operation, dir, stop, .. } => {
            std::thread::sleep(Duration::from_millis(120));
            match dir {
                Some(dir) => operation.fail(format!("{}: exists already; give another", dir.display())),
                None => operation.done(CheckpointDone {
                    dir: "/store/000001".into(),
                    id: uuid::Uuid::new_v4(),
                    created: jiff::Timestamp::UNIX_EPOCH,
                    written_bytes: 1,
                    pause_us: 1,
                    pause_cpu_us: 1,
                    duration_us: 1,
                }),
            }
            (stop, if stop { VmState::Off } else { VmState::Running })
        }
    };
    shared.set_state(state);
    request.reply.send(Ok(()));
    ends
}

#[test]
fn verbs_speak_to_a_vm() {
    with_vm(obey, |socket| {
        for line in ["status", "status --json", "pause", "resume", "checkpoint", "checkpoint --no-wait"] {
            assert_eq!(status(&format!("{line} {socket}")), ExitStatus::Success, "{line}");
        }
        std::thread::sleep(Duration::from_millis(200)); // the last one waited for nothing
        assert_eq!(status(&format!("checkpoint {socket} /exists")), ExitStatus::Failed, "with CKPT");
        assert_eq!(status(&format!("console {socket}")), ExitStatus::Failed, "its serial port is stdio");
        assert_eq!(status(&format!("stop {socket}")), ExitStatus::Success);
        assert_eq!(status(&format!("status {socket}")), ExitStatus::Failed, "stop has waited for the end");
    });
}

#[test]
fn a_checkpoint_that_ends_the_vm_is_reported_nevertheless() {
    with_vm(obey, |socket| {
        assert_eq!(status(&format!("checkpoint --stop {socket}")), ExitStatus::Success);
    });
}

#[test]
fn a_vm_that_dies_in_its_checkpoint_is_no_success() {
    let die = |request: Request, _: &Shared| {
        drop(request);
        true
    };
    with_vm(die, |socket| assert_eq!(status(&format!("checkpoint {socket}")), ExitStatus::Failed));
}
