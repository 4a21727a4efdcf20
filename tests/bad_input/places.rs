//! Places that somebody else has: API sockets, state directories, disks; and those that a dead VM left.

use std::{fs, os::unix::net::UnixListener};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    lines::{FAILED, USAGE, refused},
};
use serde_json::json;

#[test]
fn a_socket_in_use_by_a_live_vm() {
    let home = Home::new();
    let config = bare_metal::config("job=write");
    let mut first = home.boot(&config);
    let socket = home.socket();
    let socket = socket.to_str().unwrap();
    let output = home.boot_to_its_end(&config, &["--state", "other"]);
    refused(&output, FAILED, &[socket, "in use by a running VM", "--api-socket"]);
    let output = home.boot_to_its_end(&config, &["--state", "other", "--api-socket", socket]);
    refused(&output, FAILED, &[socket, "in use by a running VM", "--api-socket"]);
    bare_metal::goes_on(&mut first);
    assert_eq!(home.api().vm()["pid"], first.pid(), "the socket is still the first one's");
    let second = home.start(&config, &["--state", "other", "--api-socket", "other.sock"]);
    second.console.expect("CKVMM ready", LIMIT);
}

#[test]
fn a_socket_left_by_a_dead_vm() {
    let home = Home::new();
    let config = bare_metal::config("job=write");
    let dead = home.boot(&config);
    dead.kill9();
    assert!(home.socket().exists(), "a crash leaves it");
    let output = home.run(["status", "t"]);
    refused(&output, FAILED, &["t.sock", "no VM runs there", "ckvmm ps"]);
    assert_eq!(home.json(["ps", "--json"]), json!([]));
    let second = home.boot(&config);
    assert_eq!(home.api().vm()["pid"], second.pid());
}

#[test]
fn a_socket_path_that_is_something_else() {
    let home = Home::new();
    let config = bare_metal::config("job=hello");
    fs::write(home.join("precious"), "mine").unwrap();
    let output = home.boot_to_its_end(&config, &["--api-socket", "precious"]);
    refused(&output, FAILED, &["precious", "is no socket", "--api-socket"]);
    assert_eq!(fs::read_to_string(home.join("precious")).unwrap(), "mine");
    // somebody else's server
    let _server = UnixListener::bind(home.join("server.sock")).unwrap();
    let output = home.boot_to_its_end(&config, &["--api-socket", "server.sock"]);
    refused(&output, FAILED, &["server.sock", "in use"]);
    let output = home.boot_to_its_end(&config, &["--api-socket", "no/such/dir.sock"]);
    refused(&output, FAILED, &["no/such/dir.sock", "--api-socket"]);
    let output = home.boot_to_its_end(&config, &["--api-socket", &"x".repeat(200)]);
    refused(&output, FAILED, &["200 bytes long", "shorter --api-socket"]);
}

#[test]
fn a_state_directory_in_use() {
    let home = Home::new();
    let config = bare_metal::config("job=write");
    let mut first = home.boot(&config);
    let output = home.boot_to_its_end(&config, &["--api-socket", "other.sock"]);
    let pid = format!("pid {}", first.pid());
    refused(&output, FAILED, &["t.ckvmm", "a VM runs on this state directory", &pid, "--state"]);
    bare_metal::goes_on(&mut first);
    first.kill9();
    home.boot(&config);
}

#[test]
fn a_state_directory_that_cannot_be_one() {
    let home = Home::new();
    fs::write(home.join("file"), "").unwrap();
    for state in ["file", "no/such/place"] {
        let output = home.boot_to_its_end(&bare_metal::config("job=hello"), &["--state", state]);
        let named = format!("{state}: the state directory cannot be made there");
        refused(&output, FAILED, &[&named, "--state"]);
    }
}

#[test]
fn a_disk_that_another_vm_writes_to() {
    let (home, other) = (Home::new(), Home::new());
    let mut config = bare_metal::with_disk(bare_metal::config("job=echo"), home.path(), 1 << 20);
    config["disks"][0]["mode"] = "direct".into();
    let first = home.boot(&config);
    for mode in ["direct", "read-only", "private"] {
        config["disks"][0]["mode"] = mode.into();
        let output = other.boot_to_its_end(&config, &[]);
        refused(&output, USAGE, &["disks.root.path", "disk.raw", "in use by another VM"]);
    }
    drop(first);
    other.boot(&config);
}

#[test]
fn a_disk_that_changed_under_its_working_copy() {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=hello"), home.path(), 1 << 20);
    assert!(home.boot_to_its_end(&config, &[]).status.success());
    let copy = home.join("t.ckvmm/disks/root.raw");
    fs::write(&copy, vec![9; 1 << 20]).unwrap();
    assert!(home.boot_to_its_end(&config, &[]).status.success(), "what the guest wrote is there at the next boot");
    fs::write(home.join("disk.raw"), vec![8; 2 << 20]).unwrap();
    let output = home.boot_to_its_end(&config, &[]);
    refused(&output, USAGE, &["disks.root.path", "has changed since", "--fresh"]);
    assert_eq!(fs::read(&copy).unwrap(), vec![9; 1 << 20], "nothing of the guest's is lost");
    assert!(home.boot_to_its_end(&config, &["--fresh"]).status.success());
    assert_eq!(fs::read(&copy).unwrap(), vec![8; 2 << 20]);
}

#[test]
fn serial_places_that_cannot_be_used() {
    let home = Home::new();
    let mut config = bare_metal::config("job=hello");
    fs::create_dir(home.join("taken")).unwrap();
    for (kind, path, what) in [
        ("file", "no/such/dir/serial.log", "No such file"),
        ("file", "taken", "Is a directory"),
        ("socket", "no/such/dir/serial.sock", "No such file"),
        ("socket", "taken", "is no socket"),
    ] {
        config["serial"] = json!({ kind: path });
        let field = format!("serial.{kind}: ");
        refused(&home.boot_to_its_end(&config, &[]), USAGE, &[&field, path, what, "give another path"]);
    }
}
