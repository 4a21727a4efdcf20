//! What stands in a seed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use super::keys::{KEY_BYTES, Key};
use super::*;
use crate::network::config::NetConfig;

fn keys(nodes: usize) -> Keys {
    let key = |byte: usize| Key::from_random(&[byte as u8; KEY_BYTES], "test");
    Keys { login: key(100), hosts: (0..nodes).map(key).collect() }
}

fn nodes(dir: &Path) -> Vec<Node> {
    let wan = json!({ "id": "wan", "uplink": { "tap": "tap0" } });
    let vm = json!({
        "version": 1, "name": "any", "vcpus": 2, "kernel": { "image": "k" }, "nics": [wan, { "id": "eth0" }],
        "disks": [{ "id": "root", "path": "root.raw" }],
    });
    let net = json!({
        "version": 1, "name": "c", "subnet": "10.77.4.0/22", "nodes": [{ "name": "n", "count": 2, "config": "node.json" }],
    });
    std::fs::write(dir.join("net.json"), net.to_string()).unwrap();
    std::fs::write(dir.join("node.json"), vm.to_string()).unwrap();
    NetConfig::load(&dir.join("net.json"), true).unwrap().1
}

/// meta-data, user-data and network-config of the second of two nodes.
fn seed(command: &[&str]) -> [Value; 3] {
    let dir = tempfile::tempdir().unwrap();
    let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    let [meta, user, network] = of(&nodes(dir.path()), 1, &command, "id", &keys(2)).map(|(_, text)| text);
    let user = user.strip_prefix("#cloud-config\n").unwrap();
    [&*meta, user, &*network].map(|text| serde_json::from_str(text).unwrap())
}

fn file<'a>(user: &'a Value, path: &str) -> &'a Value {
    user["write_files"].as_array().unwrap().iter().find(|file| file["path"] == path).unwrap()
}

#[test]
fn a_node_knows_itself_and_all_others() {
    let [meta, user, network] = seed(&[]);
    assert_eq!(meta, json!({ "instance-id": "id", "local-hostname": "n-1" }));
    assert_eq!(user["hostname"], "n-1");
    let hosts = file(&user, "/etc/hosts")["content"].as_str().unwrap();
    assert!(hosts.ends_with("\n10.77.4.1 n-0\n10.77.4.2 n-1\n"), "{hosts}");
    assert_eq!(file(&user, HOSTFILE)["content"], "n-0 slots=2\nn-1 slots=2\n");
    assert_eq!(network["version"], 2);
    let ours =
        json!({ "match": { "macaddress": "02:00:0a:4d:04:02" }, "set-name": CARD, "addresses": ["10.77.4.2/22"] });
    assert_eq!(network["ethernets"]["eth0"], ours);
    assert_eq!(network["ethernets"]["wan"]["dhcp4"], true);
}

#[test]
fn nodes_reach_one_another_and_know_whom_they_reach() {
    let [_, user, _] = seed(&[]);
    let keys = keys(2);
    let own = file(&user, "/root/.ssh/id_ed25519");
    assert_eq!((&own["permissions"], &own["content"]), (&json!("0600"), &json!(keys.login.private)));
    assert_eq!(user["ssh_authorized_keys"], json!([keys.login.public]));
    assert_eq!(user["ssh_keys"]["ed25519_private"], keys.hosts[1].private);
    let known = format!("n-0,10.77.4.1 {}\nn-1,10.77.4.2 {}\n", keys.hosts[0].public, keys.hosts[1].public);
    assert_eq!(file(&user, "/etc/ssh/ssh_known_hosts")["content"], known);
    assert_ne!(keys.hosts[0], keys.hosts[1]);
}

#[test]
fn a_command_is_run_word_by_word_and_without_one_nothing_is() {
    let [_, user, _] = seed(&["sh", "-c", "echo \"$HOME: 'é'\"\n"]);
    assert_eq!(user["runcmd"], json!([[RUN_JOB, "sh", "-c", "echo \"$HOME: 'é'\"\n"]]));
    assert_eq!(file(&user, RUN_JOB)["permissions"], "0755");
    let [_, user, _] = seed(&[]);
    assert_eq!(user["runcmd"], Value::Null);
}

#[test]
fn how_a_job_ends_is_said_until_nobody_listens_any_more() {
    let [_, user, _] = seed(&["true"]);
    let script = file(&user, RUN_JOB)["content"].as_str().unwrap();
    let script = script.replace("/dev/ttyS0", "/dev/stdout").replace(HOSTFILE, "/dev/null");
    let mut job = Command::new("sh");
    job.args(["-c", &script, "run-job", "sh", "-c", "echo it works; exit 3"]);
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(job.stdout.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<String> = lines.filter(|line| !line.is_empty()).take(4).collect();
    assert_eq!(said, ["ckvmm: begin", "it works", "ckvmm: exit 3", "ckvmm: exit 3"]);
    assert!(job.wait().unwrap().success(), "what runs it is not held up");
}

#[test]
fn a_seed_is_a_disk_that_checkpoints_hold() {
    let dir = tempfile::tempdir().unwrap();
    let node = nodes(dir.path()).remove(0).with_seed(Path::new("/s/seed.img")).unwrap();
    let disk = node.vm.disks.last().unwrap();
    assert_eq!((&*disk.id, &*disk.path, disk.is_captured()), (DISK, Path::new("/s/seed.img"), true));
    let error = node.with_seed(Path::new("/s/seed.img")).unwrap_err().to_string();
    assert!(error.contains("disks.2.id") && error.contains("; "), "{error}");
}
