//! A network goes on elsewhere: in a mount and a network namespace of its own, where nothing is left of the original but a
//! copy of the checkpoint, in another directory, and where TAPs have other names.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, path::Path, process::Command, thread};

use ckvmm_tests::{bare_metal::Home, mount, network as tap, paths, process::Ckvmm};
use serde_json::{Value, json};

use crate::{cluster::Network, guest};

const NODES: usize = 2;
/// A TAP where the network goes on.
const OTHER_TAP: &str = "elsewhere7";

/// Writes `net.json` and what it names to the directory, all of it: a node with a TAP, one without, a disk each.
fn describe(home: &Home) {
    fs::copy(paths::guest("bare-metal.elf"), home.join("kernel")).unwrap();
    fs::write(home.join("disk.raw"), [7; 1 << 20]).unwrap();
    let node = |nics: Value| {
        json!({
            "version": 1, "name": "node", "memory": "32MiB", "nics": nics,
            "kernel": { "image": "kernel", "cmdline": "job=net peers={nodes} me={index}" },
            "disks": [{ "id": "root", "path": "disk.raw" }],
        })
    };
    let with_tap = json!([{ "id": "eth0" }, { "id": "wan", "uplink": { "tap": tap::TAP } }]);
    let net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24", "checkpoint": { "dir": "checkpoints" },
        "nodes": [{ "name": "n-0", "config": "first.json" }, { "name": "n-1", "config": "second.json" }],
    });
    for (name, value) in [("first.json", node(with_tap)), ("second.json", node(json!([]))), ("net.json", net)] {
        fs::write(home.join(name), value.to_string()).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Runs `work` in a mount and a network namespace of its own, in which there is the TAP `tap`.
fn apart(tap: &'static str, work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let apart = || {
            assert!(mount::enter_namespace());
            tap::enter_namespace_with(tap);
            work();
        };
        scope.spawn(apart).join().unwrap();
    });
}

#[test]
fn a_network_is_restored_where_nothing_of_the_original_is() {
    if guest::skipped() || !mount::possible() {
        return;
    }
    let (home, elsewhere) = (Home::new(), Home::new());
    describe(&home);
    apart(tap::TAP, || {
        let supervisor = Ckvmm::start(home.path(), ["network", "up", "net.json"]);
        let mut network = Network::running(&home, supervisor, home.join("c.ckvmm"), NODES);
        network.goes_on();
        copy(&home.join(network.checkpoint()), &elsewhere.join("copy"));
        network.kill9();
    });
    apart(OTHER_TAP, || {
        mount::small(home.path(), 1 << 20);
        let copy = elsewhere.join("copy");
        let store = ["--set", "checkpoint.dir=store"];
        let refused = ["network", "restore", copy.to_str().unwrap(), "--state", "refused"];
        let output = elsewhere.run(refused.iter().chain(&store));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("nics.wan.uplink.tap"), "{error}");

        let tap = format!("n-0.nics.wan.uplink.tap={OTHER_TAP}");
        let changes = [&store[..], &["--set", &tap]].concat();
        let mut network = Network::restore_with(&elsewhere, &copy, NODES, "state", &changes);
        network.goes_on();
        let checkpoint = network.checkpoint();
        assert_eq!(checkpoint, elsewhere.join("store/000001").canonicalize().unwrap());
        network.ends_whole();
        network.kill9();
        assert_eq!(home.names("."), Vec::<String>::new(), "nothing was made where the original was");
    });
}
