//! What a stock guest learns of its network: a NoCloud seed, which cloud-init reads from a disk of the guest's own.
//!
//! ```text
//! meta-data        {"instance-id": …, "local-hostname": "n-0"}
//! user-data        #cloud-config: /etc/hosts, /etc/ckvmm/hostfile, ssh keys, on one node the job
//! network-config   version 2: the card in the network has its address; others ask for one
//! ```
//!
//! Invariants: it follows from `net.json`, the keys and the id, and from nothing else. cloud-init reads YAML, and JSON is
//! YAML, so no text of anybody's is ever quoted by hand. A seed with another id is of another instance for cloud-init, so a
//! guest whose disk has been in use before takes in the new keys.

pub mod disk;
pub mod keys;

use serde_json::{Map, Value, json};

use self::keys::Keys;
use super::config::Node;
use crate::config::MacAddr;

/// What the disk is called in the node's configuration.
pub const DISK: &str = "cidata";
/// What the guest calls its card in the network.
const CARD: &str = "ckvmm0";
const HOSTFILE: &str = "/etc/ckvmm/hostfile";
const RUN_JOB: &str = "/etc/ckvmm/run-job";

/// Names and contents of a seed's files.
pub type Files = [(&'static str, String); 3];

/// The seed of node `me`. It runs `command`, unless that is empty.
pub fn of(nodes: &[Node], me: usize, command: &[String], id: &str, keys: &Keys) -> Files {
    let meta = json!({ "instance-id": id, "local-hostname": &*nodes[me].name });
    let user = format!("#cloud-config\n{}", text(&user_data(nodes, me, command, keys)));
    [("meta-data", text(&meta)), ("user-data", user), ("network-config", text(&network_config(&nodes[me])))]
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn user_data(nodes: &[Node], me: usize, command: &[String], keys: &Keys) -> Value {
    let host = &keys.hosts[me];
    let file = |path: &str, mode: &str, content: &str| json!({ "path": path, "permissions": mode, "content": content });
    let mut files = vec![
        file("/etc/hosts", "0644", &hosts(nodes)),
        file(HOSTFILE, "0644", &lines(nodes, |_, node| format!("{} slots={}", node.name, node.vm.vcpus))),
        file("/etc/ssh/ssh_known_hosts", "0644", &known_hosts(nodes, keys)),
        file("/root/.ssh/id_ed25519", "0600", &keys.login.private),
    ];
    let mut data = json!({
        "hostname": &*nodes[me].name,
        // Images have templates of their own for it, in which a host's name is 127.0.1.1: no address for others.
        "manage_etc_hosts": false,
        "disable_root": false,
        "ssh_authorized_keys": [keys.login.public],
        "ssh_keys": { "ed25519_private": host.private, "ed25519_public": host.public },
    });
    if !command.is_empty() {
        files.push(file(RUN_JOB, "0755", include_str!("run-job")));
        let words: Vec<&str> = [RUN_JOB].into_iter().chain(command.iter().map(String::as_str)).collect();
        data["runcmd"] = json!([words]);
    }
    data["write_files"] = files.into();
    data
}

fn lines(nodes: &[Node], line: impl Fn(usize, &Node) -> String) -> String {
    nodes.iter().enumerate().map(|(index, node)| line(index, node) + "\n").collect()
}

fn hosts(nodes: &[Node]) -> String {
    let local = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
    local.to_owned() + &lines(nodes, |_, node| format!("{} {}", node.ip, node.name))
}

fn known_hosts(nodes: &[Node], keys: &Keys) -> String {
    lines(nodes, |index, node| format!("{},{} {}", node.name, node.ip, keys.hosts[index].public))
}

fn network_config(node: &Node) -> Value {
    let cards = node.vm.nics.iter().map(|nic| {
        let mac = nic.mac_in(&node.vm.name);
        let mut card = json!({ "match": { "macaddress": mac.to_string() } });
        if mac == MacAddr(node.mac) {
            card["set-name"] = CARD.into();
            card["addresses"] = json!([format!("{}/{}", node.ip, node.prefix)]);
        } else {
            // What it is plugged into may have nobody who answers: no boot waits for that.
            card["dhcp4"] = true.into();
            card["optional"] = true.into();
        }
        (nic.id.to_string(), card)
    });
    json!({ "version": 2, "ethernets": cards.collect::<Map<_, _>>() })
}

#[cfg(test)]
mod tests;
