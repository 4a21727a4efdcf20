//! Seeds: what a stock guest finds on its disk, here and where the network is restored, as other programs read it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use ckvmm_tests::bare_metal::Home;
use serde_json::{Value, json};

use crate::{cluster::Network, guest};

const NODES: usize = 2;

/// What is on the disk, read by others than who wrote it: meta-data, user-data, network-config.
fn read(disk: &Path) -> [String; 3] {
    assert_eq!(told("/sbin/blkid", &["-p", "-o", "value", "-s", "LABEL"], disk, &[]).trim_end(), "cidata");
    ["meta-data", "user-data", "network-config"].map(|name| told("mtype", &["-i"], disk, &[&format!("::{name}")]))
}

/// What a program says that is given `disk` between other arguments.
fn told(program: &str, before: &[&str], disk: &Path, after: &[&str]) -> String {
    let output = Command::new(program).args(before).arg(disk).args(after).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap_or(text)).unwrap()
}

#[test]
fn nodes_find_their_seeds_also_where_nothing_else_of_the_original_is() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let job = json!({ "on": "n-1", "command": ["./a.out", "a b"] });
    let fields = json!({ "seed": true, "job": job });
    let mut network = Network::up_with(&home, NODES, "", &fields);
    network.goes_on();
    let seeds = [0, 1].map(|node| home.join(format!("c.ckvmm/n-{node}/seed.img")));
    for (node, seed) in seeds.iter().enumerate() {
        assert_eq!(fs::metadata(seed).unwrap().permissions().mode() & 0o777, 0o600);
        let [meta, user, config] = read(seed);
        assert_eq!(parsed(&meta)["local-hostname"], format!("n-{node}"));
        assert!(user.starts_with("#cloud-config\n"));
        assert_eq!(parsed(&user)["runcmd"], Value::Null, "`up` runs no job");
        let card = &parsed(&config)["ethernets"]["eth0"];
        assert_eq!(card["addresses"], json!([format!("10.77.0.{}/24", node + 1)]));
    }
    let before = seeds.each_ref().map(|seed| fs::read(seed).unwrap());
    let image = home.join(network.checkpoint());
    network.kill9();
    fs::remove_dir_all(home.join("c.ckvmm")).unwrap();

    let mut network = Network::restore(&home, &image, NODES, "again.ckvmm");
    network.goes_on();
    let after = [0, 1].map(|node| fs::read(home.join(format!("again.ckvmm/n-{node}/disks/cidata.raw"))).unwrap());
    assert!(after == before, "the seeds have changed");
    assert_eq!(network.api(0).vm()["disks"]["cidata"], home.join("again.ckvmm/n-0/disks/cidata.raw").to_str().unwrap());
    network.checkpoint();
    network.ends_whole();
}
