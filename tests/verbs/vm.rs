//! `status`, `ps`, `pause`, `resume`, `stop`, `kill`, `console`.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
};

use ckvmm_tests::{
    LIMIT,
    api::wait_until,
    bare_metal::{self, Home},
    console::Lines,
    lines::{FAILED, refused},
    pidfd::Pidfd,
    process::{self, Ckvmm},
};
use serde_json::json;

#[test]
fn status_by_name_and_by_socket() {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 1 << 20);
    let vm = home.boot(&config);
    let status = home.json(["status", "t", "--json"]);
    assert_eq!(status["name"], "t");
    assert_eq!(status["state"], "running");
    assert_eq!(status["pid"], vm.pid());
    assert_eq!(status["vcpus"], 1);
    assert_eq!(status["memory_bytes"], 32 << 20);
    assert_eq!(status["checkpoint_running"], false);
    assert_eq!(status["disks"]["root"], home.join("t.ckvmm/disks/root.raw").to_str().unwrap());
    assert_eq!(status["config"]["kernel"]["cmdline"], "job=write");
    let socket = home.socket();
    let by_socket = home.json(["status", "--api-socket", socket.to_str().unwrap(), "--json"]);
    assert_eq!(by_socket["pid"], vm.pid());
    let text = home.ok(["status", "t"]);
    for word in ["t", "running", &vm.pid().to_string(), "32MiB", "disk root", "last checkpoint  none"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    drop(vm);
    refused(&home.run(["status", "t"]), FAILED, &["t.sock", "no VM runs there", "ckvmm ps"]);
    refused(&home.run(["status", "other"]), FAILED, &["other.sock", "there is no such socket"]);
}

#[test]
fn ps_lists_those_that_run() {
    let home = Home::new();
    assert_eq!(home.json(["ps", "--json"]), json!([]));
    let first = home.boot(&bare_metal::config("job=write"));
    let mut config = bare_metal::config("job=echo");
    config["name"] = "second".into();
    let second = home.boot(&config);
    let list = home.json(["ps", "--json"]);
    let found: Vec<_> = list.as_array().unwrap().iter().map(|vm| (&vm["vm"]["name"], &vm["vm"]["pid"])).collect();
    assert_eq!(found, [(&json!("second"), &json!(second.pid())), (&json!("t"), &json!(first.pid()))]);
    let table = home.ok(["ps"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.starts_with("NAME") && table.contains(&second.pid().to_string()), "{table}");
    first.kill9();
    let list = home.json(["ps", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 1, "the one that was killed is not listed: {list}");
}

#[test]
fn a_paused_guest_stands_still() {
    let home = Home::new();
    let mut vm = home.boot(&bare_metal::config("job=write"));
    bare_metal::goes_on(&mut vm);
    for _ in 0..2 {
        assert_eq!(home.ok(["pause", "t"]), "", "twice is no error");
        assert_eq!(home.json(["status", "t", "--json"])["state"], "paused");
    }
    // two pictures of RAM are the same
    let (first, second) = (home.ok(["checkpoint", "t"]), home.ok(["checkpoint", "t"]));
    assert_eq!(memory_digest(&home, &first), memory_digest(&home, &second));
    for _ in 0..2 {
        assert_eq!(home.ok(["resume", "t"]), "", "twice is no error");
        assert_eq!(home.json(["status", "t", "--json"])["state"], "running");
    }
    bare_metal::goes_on(&mut vm);
    let third = home.ok(["checkpoint", "t"]);
    assert_ne!(memory_digest(&home, &first), memory_digest(&home, &third));
}

fn memory_digest(home: &Home, checkpoint: &str) -> String {
    let files = &home.json(["inspect", checkpoint, "--json"])["manifest"]["files"];
    files["memory"]["digest"].to_string()
}

#[test]
fn stop_waits_for_the_end() {
    let home = Home::new();
    let mut config = bare_metal::config("job=write");
    config["stop_timeout"] = "100ms".into();
    let mut vm = home.boot(&config);
    assert_eq!(home.ok(["stop", "t"]), "");
    assert!(!home.socket().exists(), "the VM has ended, and taken its socket with it");
    assert_eq!(vm.wait(LIMIT), FAILED, "this guest does not heed the power button");
}

#[test]
fn stop_without_waiting_and_a_guest_that_powers_off() {
    let home = Home::new();
    let mut config = bare_metal::config("job=write");
    config["stop_timeout"] = "24h".into();
    let mut vm = home.boot(&config);
    assert_eq!(home.ok(["stop", "t", "--no-wait"]), "");
    assert_eq!(home.json(["status", "t", "--json"])["state"], "stopping");
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
}

#[test]
fn kill_asks_nobody() {
    let home = Home::new();
    let mut config = bare_metal::config("job=write");
    config["stop_timeout"] = "24h".into();
    let mut vm = home.boot(&config);
    assert_eq!(home.ok(["kill", "t"]), "");
    assert!(!home.socket().exists());
    assert_eq!(vm.wait(LIMIT), FAILED);
    let mut vm = home.boot(&config);
    home.ok(["pause", "t"]);
    home.ok(["kill", "t"]);
    assert_eq!(vm.wait(LIMIT), FAILED, "also one that stands still");
}

#[test]
fn kill_does_not_wait_for_a_checkpoint() {
    let home = Home::new();
    let mut config = bare_metal::config("job=write mib=320 hot=1");
    config["memory"] = "352MiB".into();
    let mut vm = home.boot(&config);
    home.api().begin_checkpoint("");
    home.ok(["kill", "t"]);
    assert_eq!(vm.wait(LIMIT), FAILED);
    assert_eq!(home.names("checkpoints"), [""; 0], "what there was of it is gone");
}

#[test]
fn a_console_over_a_socket() {
    let home = Home::new();
    let mut config = bare_metal::config("job=echo");
    config["serial"] = json!({ "socket": "console.sock" });
    let mut vm = home.start(&config, &[]);
    wait_until("the VM runs", || (home.api().try_ask("GET", "/v1/vm", "")?.json()["state"] == "running").then_some(()));
    let mut console = Ckvmm::start(home.path(), ["console", "t"]);
    // until the connection is taken, what the guest sends back is lost
    wait_until("the guest answers", || {
        console.type_line("ping");
        console.console.all().iter().any(|line| line.contains("ping")).then_some(())
    });
    console.type_line("the guest sends this back");
    console.console.expect("the guest sends this back", LIMIT);
    drop(console);
    let log = std::fs::read_to_string(home.join("t.ckvmm/console.log")).unwrap();
    assert!(log.contains("CKVMM ready job=echo") && log.contains("the guest sends this back"), "{log}");
    // somebody else attaches, until the VM ends
    let mut console = Ckvmm::start(home.path(), ["console", "t"]);
    wait_until("the guest answers", || {
        console.type_line("pong");
        console.console.all().iter().any(|line| line.contains("pong")).then_some(())
    });
    home.ok(["kill", "t"]);
    assert_eq!(console.wait(LIMIT), 0);
    assert_eq!(vm.wait(LIMIT), FAILED);
    assert!(!home.join("console.sock").exists(), "the socket goes with the VM");
}

#[test]
fn a_console_that_is_elsewhere() {
    let home = Home::new();
    let mut config = bare_metal::config("job=echo");
    let vm = home.boot(&config);
    let output = process::run(home.path(), ["console", "t"]);
    refused(&output, FAILED, &["console: ", "on the terminal that started the VM", "\"serial\""]);
    drop(vm);
    config["serial"] = json!({ "file": "serial.log" });
    let _vm = home.start(&config, &[]);
    wait_until("the guest has spoken", || {
        std::fs::read_to_string(home.join("serial.log")).ok()?.contains("CKVMM ready").then_some(())
    });
    refused(&home.run(["console", "t"]), FAILED, &["console: ", "serial.log", "tail -f"]);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = Home::new();
    let _vm = home.boot(&bare_metal::config("job=write"));
    let mut command = process::command(home.path());
    let mut child =
        command.args(["status", "t", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn help_and_version() {
    let home = Home::new();
    assert!(home.ok(["--version"]).starts_with("ckvmm "));
    let help = home.ok(["--help"]);
    for verb in [
        "boot",
        "restore",
        "ps",
        "status",
        "checkpoint",
        "pause",
        "resume",
        "stop",
        "kill",
        "console",
        "list",
        "inspect",
        "verify",
        "doctor",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}: {help}");
        assert!(home.ok([verb, "--help"]).contains("Example"), "{verb}");
    }
    // a program that is not there is no verb either
    assert!(!Command::new(ckvmm_tests::paths::ckvmm()).arg("frobnicate").output().unwrap().status.success());
}

/// Set for the process of a test that is to be killed.
const VICTIM: &str = "CKVMM_TEST_VICTIM";

#[test]
fn a_vm_goes_with_the_test_that_started_it() {
    let this = "vm::a_vm_goes_with_the_test_that_started_it";
    if let Ok(dir) = std::env::var(VICTIM) {
        let home = Home::within(Path::new(&dir));
        let vm = home.boot(&bare_metal::config("job=write"));
        println!("\nVM {}", vm.pid());
        loop {
            thread::park();
        }
    }
    let home = Home::new();
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", this, "--nocapture"]).env(VICTIM, home.path()).stdout(Stdio::piped());
    let mut test = test.spawn().unwrap();
    let output = Lines::read("the test", test.stdout.take().unwrap());
    let vm = output.next("its VM", LIMIT, |line| line.strip_prefix("VM ")?.parse().ok());
    let vm = Pidfd::open(vm).expect("it runs");
    test.kill().unwrap();
    test.wait().unwrap();
    vm.wait(LIMIT);
}
