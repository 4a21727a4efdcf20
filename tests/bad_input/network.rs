//! TAPs that cannot be had.

use std::process::Command;

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    lines::{USAGE, refused},
    network,
};
use nix::unistd::Uid;
use serde_json::{Value, json};

fn with_tap(name: &str) -> Value {
    let mut config = bare_metal::config("job=echo");
    config["nics"] = json!([{ "id": "eth0", "uplink": { "tap": name } }]);
    config
}

fn has_own_network() -> bool {
    if Uid::effective().is_root() {
        network::enter_namespace_with_tap();
        return true;
    }
    println!("skipped: a network namespace takes root");
    false
}

#[test]
fn a_tap_that_does_not_exist() {
    let output = Home::new().boot_to_its_end(&with_tap("nosuchtap"), &[]);
    refused(
        &output,
        USAGE,
        &["nics.eth0.uplink.tap: ", "TAP nosuchtap: no such interface", "ip tuntap add dev nosuchtap"],
    );
}

#[test]
fn a_tap_that_is_in_use() {
    if !has_own_network() {
        return;
    }
    let (first, second) = (Home::new(), Home::new());
    let vm = first.start(&with_tap(network::TAP), &[]);
    vm.console.expect("CKVMM ready", LIMIT);
    let output = second.boot_to_its_end(&with_tap(network::TAP), &[]);
    refused(&output, USAGE, &["nics.eth0.uplink.tap: ", "TAP tap0: in use by another process", "name another TAP"]);
    assert_eq!(first.api().vm()["state"], "running");
    drop(vm);
    let vm = second.start(&with_tap(network::TAP), &[]);
    vm.console.expect("CKVMM ready", LIMIT);
}

#[test]
fn an_interface_that_is_no_tap() {
    if !has_own_network() {
        return;
    }
    let output = Home::new().boot_to_its_end(&with_tap("lo"), &[]);
    refused(&output, USAGE, &["nics.eth0.uplink.tap: ", "TAP lo: ", "not a TAP"]);
}

#[test]
fn a_restore_without_its_tap() {
    if !has_own_network() {
        return;
    }
    let home = Home::new();
    let vm = home.start(&with_tap(network::TAP), &[]);
    vm.console.expect("CKVMM ready", LIMIT);
    let image = bare_metal::checkpoint(&vm);
    drop(vm);
    let gone = Command::new("ip").args(["link", "delete", network::TAP]).status().unwrap();
    assert!(gone.success());
    let output = home.run(["restore", image.to_str().unwrap(), "--work", "w"]);
    refused(&output, USAGE, &["nics.eth0.uplink.tap: ", "TAP tap0: no such interface"]);
    let other = Command::new("ip").args(["tuntap", "add", "dev", "other", "mode", "tap", "vnet_hdr"]).status().unwrap();
    assert!(other.success());
    let set = ["--work", "w", "--set", "nics.eth0.uplink.tap=other"];
    let mut vm = home.restore(&image, &set);
    vm.type_line("hello");
    vm.console.expect("hello", LIMIT);
}
