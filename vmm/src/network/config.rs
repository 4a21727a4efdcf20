//! `net.json`: a network of VMs, and what follows from it for each.
//!
//! ```json
//! {
//!   "version": 1, "name": "c", "subnet": "10.77.0.0/24",
//!   "nodes": [ { "name": "n", "count": 4, "config": "node.json" } ],
//!   "job": { "on": "n-0", "command": ["mpirun", "--hostfile", "/etc/ckvmm/hostfile", "./a.out"] },
//!   "checkpoint": { "dir": "checkpoints", "every": "60s", "keep": 3 },
//!   "on_failure": "restore", "max_restores": 3
//! }
//! ```
//!
//! Each VM is called `NETWORK-NODE`, and `ckvmm console NETWORK-NODE` leads to its serial port.
//!
//! Invariants: node `i` has the `i+1`-th address of the subnet, and its MAC follows from that; no two nodes write to one
//! file; what a guest needs to know of the network reaches it by a seed ([`super::seed`]), or through `{network}`
//! ([`super::cmdline`]), `{index}`, `{nodes}`, `{name}` and `{ip}` in the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ckvmm_net::switch::{Mac, mac_of};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::channel::DESCRIPTORS_MAX;
use super::cmdline::{self, Place};
use super::failure::{OnFailure, default_max_restores};
use super::job::Job;
use super::seed;
use crate::api::socket::default_dir;
use crate::config::check;
use crate::config::{CheckpointConfig, ConfigError, DiskMode, Id, MacAddr, Uplink, VmConfig};

/// Most nodes: each has a link to each other.
pub const NODES_MAX: usize = 64;
const _: () = assert!(NODES_MAX <= DESCRIPTORS_MAX);

/// A network, as `net.json` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Version of this format: 1.
    pub version: u32,
    /// The network's name.
    pub name: Id,
    /// `A.B.C.D/LENGTH`: the nodes' addresses.
    pub subnet: String,
    /// The nodes, in their order.
    pub nodes: Vec<Group>,
    /// What is to be run in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// Whether nodes get a seed for cloud-init; absent: those that have a disk, since that may hold a stock guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<bool>,
    /// Whether guests may send TCP unsegmented and without checksums. All must take that; `false` for guests that do not.
    #[serde(default = "default_offloads")]
    pub offloads: bool,
    /// Where checkpoints go, and when they are made.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What is done when a VM is gone without a word.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How often at most the network goes back to its last checkpoint by itself.
    #[serde(default = "default_max_restores")]
    pub max_restores: u32,
}

/// What cards offer if `net.json` does not say.
pub fn default_offloads() -> bool {
    true
}

/// Nodes that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Their name; with `count`, a number follows it.
    pub name: Id,
    /// How many there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u16>,
    /// Their `vm.json`.
    pub config: PathBuf,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name in the network.
    pub name: Id,
    /// The card that is in the network.
    pub nic: Id,
    /// That card's address.
    pub mac: Mac,
    /// The guest's address on it.
    pub ip: Ipv4Addr,
    /// How many bits of it all nodes have in common.
    pub prefix: u32,
    /// Whether it gets a seed.
    pub seed: bool,
    /// Whether its kernel's command line has what [`cmdline`] says.
    pub is_told: bool,
    /// The VM.
    pub vm: VmConfig,
}

impl NetConfig {
    /// Reads `net.json` and all that it names. Relative paths are relative to the file that has them. The job reaches its
    /// node only if it is `to_run`, and is left away else.
    ///
    /// # Errors
    /// A file that cannot be read, a field that is missing, unknown or wrong.
    pub fn load(path: &Path, to_run: bool) -> Result<(NetConfig, Vec<Node>), ConfigError> {
        let value = VmConfig::load_value(path)?;
        let no_path = |error| ConfigError::file(path, format!("has no directory: {error}"), "give another path");
        let path = &std::path::absolute(path).map_err(no_path)?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let mut config = NetConfig::from_value(value, base).map_err(|error| error.in_file(path))?;
        let job = if to_run { config.job.clone() } else { config.job.take() };
        let nodes = config.all_nodes(path, base)?;
        job.iter().try_for_each(|job| job.check(&nodes)).map_err(|error| error.in_file(path))?;
        Ok((config, nodes))
    }

    fn from_value(mut value: Value, base: &Path) -> Result<NetConfig, ConfigError> {
        if let Some(object) = value.as_object_mut() {
            object.remove("$schema");
            // Before all else: the fields of another version are not ours to judge.
            check::version(object.get("version"))?;
        }
        if let Some(field) = ["mode", "stop_deadline"].iter().find(|field| !value["checkpoint"][field].is_null()) {
            let mend = "give it in the nodes' vm.json";
            return Err(ConfigError::field(format!("checkpoint.{field}"), "a matter of each node", mend));
        }
        let mut config: NetConfig = serde_path_to_error::deserialize(&value).map_err(|error| {
            let field = error.path().to_string();
            ConfigError::field(field, error.inner().to_string(), "docs/network.md has an example")
        })?;
        check::checkpoint(&config.checkpoint)?;
        if let Some(dir) = &mut config.checkpoint.dir {
            *dir = base.join(&*dir);
        }
        Ok(config)
    }

    fn all_nodes(&self, path: &Path, base: &Path) -> Result<Vec<Node>, ConfigError> {
        let mut names = Vec::new();
        for group in &self.nodes {
            let numbered = (0..group.count.unwrap_or(0)).map(|number| format!("{}-{number}", group.name));
            let all = if group.count.is_some() { numbered.collect() } else { vec![group.name.to_string()] };
            names.extend(all.into_iter().map(|name| (name, base.join(&group.config))));
        }
        if !(2..=NODES_MAX).contains(&names.len()) {
            let what = format!("{} of them make no network", names.len());
            return Err(ConfigError::field("nodes", what, format!("give from 2 to {NODES_MAX}")).in_file(path));
        }
        let mut seen = BTreeSet::new();
        if let Some((name, _)) = names.iter().find(|(name, _)| !seen.insert(name)) {
            let what = format!("more than one is called {name}");
            return Err(ConfigError::field("nodes", what, "give each a name of its own").in_file(path));
        }
        let (names, files): (Vec<String>, Vec<PathBuf>) = names.into_iter().unzip();
        let (first, prefix) = self.addresses(names.len()).map_err(|error| error.in_file(path))?;
        let hosts: Vec<_> = names.into_iter().zip((first..).map(Ipv4Addr::from)).collect();
        let nodes = files.iter().enumerate().map(|(index, file)| {
            let command = self.job.as_ref().map_or(&[][..], |job| job.command_on(&hosts[index].0));
            let place = Place { index, hosts: &hosts, prefix, command };
            self.node(place, VmConfig::load_value(file)?, file).map_err(|error| error.in_file(file))
        });
        let nodes: Vec<Node> = nodes.collect::<Result<_, _>>()?;
        no_shared_writes(&nodes)?;
        Ok(nodes)
    }

    /// The first of `count` addresses, none of them the network's own or the one for all, and the subnet's length.
    fn addresses(&self, count: usize) -> Result<(u32, u32), ConfigError> {
        let wrong = || {
            let what = format!("{:?} does not hold {count} nodes", self.subnet);
            ConfigError::field("subnet", what, "give an IPv4 subnet like \"10.77.0.0/24\"")
        };
        let (base, length) = self.subnet.split_once('/').ok_or_else(wrong)?;
        let base: Ipv4Addr = base.parse().map_err(|_| wrong())?;
        let length: u32 = length.parse().ok().filter(|length| (8..=30).contains(length)).ok_or_else(wrong)?;
        let hosts = (1_u32 << (32 - length)) - 1;
        if u32::from(base) & hosts != 0 || count as u32 >= hosts {
            return Err(wrong());
        }
        Ok((u32::from(base) + 1, length))
    }

    /// What the common configuration becomes for one node.
    fn node(&self, place: Place<'_>, mut value: Value, file: &Path) -> Result<Node, ConfigError> {
        let Place { index, hosts, prefix, .. } = place;
        let (name, ip) = &hosts[index];
        let mac = mac_of(*ip);
        // Before anything is changed in it: what is no object has no fields.
        check::version(value.get("version"))?;
        check::shapes(&value)?;
        let nic = plug(&mut value, mac)?;
        let vm = format!("{}-{name}", self.name);
        value["serial"] = json!({ "socket": console(&vm) });
        value["name"] = vm.into();
        // Where and when is the network's matter.
        if let Some(checkpoint) = value.get_mut("checkpoint").and_then(Value::as_object_mut) {
            checkpoint.retain(|field, _| !["dir", "every", "keep"].contains(&field.as_str()));
        }
        let line = value["kernel"]["cmdline"].as_str();
        let is_told = line.is_some_and(|line| line.contains(cmdline::PLACE));
        if let Some(line) = line {
            let line = line.replace("{index}", &index.to_string()).replace("{nodes}", &hosts.len().to_string());
            let line = line.replace("{name}", name).replace("{ip}", &ip.to_string());
            value["kernel"]["cmdline"] = line.replace(cmdline::PLACE, &place.words()).into();
        }
        let wrong = |what: String| ConfigError::field("name", what, "give the nodes shorter names");
        let name = name.parse().map_err(wrong)?;
        let vm = VmConfig::from_value(value, file.parent().unwrap_or(Path::new("")))?;
        let nic = nic.parse().map_err(wrong)?;
        let seed = self.seed.unwrap_or(!vm.disks.is_empty());
        Ok(Node { name, nic, mac, ip: *ip, prefix, seed, is_told, vm })
    }
}

impl Node {
    /// The same with its seed, the file `path`, as its last disk. A checkpoint holds it: a guest that is restored elsewhere
    /// and reads it again finds what it found before.
    ///
    /// # Errors
    /// There is no room for another disk, or one has that name.
    pub fn with_seed(self, path: &Path) -> Result<Node, ConfigError> {
        let no_text = || ConfigError::file(path, "is not UTF-8", "give another directory with --state");
        let mut value = self.vm.to_value();
        let disk = json!({
            "id": seed::DISK, "path": path.to_str().ok_or_else(no_text)?, "format": "raw", "mode": "read-only", "capture": true,
        });
        value["disks"].as_array_mut().expect("it was written as one").push(disk);
        Ok(Node { vm: VmConfig::from_value(value, Path::new(""))?, ..self })
    }
}

/// Where the console of the VM called `vm` is: a short path, whatever the state directory is.
pub fn console(vm: &str) -> PathBuf {
    default_dir().join(format!("{vm}.console"))
}

/// Plugs the one card that has no uplink into the network; a VM without cards gets one.
fn plug(value: &mut Value, mac: Mac) -> Result<String, ConfigError> {
    if value["nics"].is_null() || value["nics"] == json!([]) {
        value["nics"] = json!([{ "id": "eth0" }]);
    }
    let Some(nics) = value["nics"].as_array_mut() else {
        return Err(ConfigError::field("nics", "no list", "give a list of cards, or leave it away"));
    };
    let mut free = nics.iter_mut().filter(|nic| nic.is_object() && nic["uplink"].is_null());
    let (Some(nic), None) = (free.next(), free.next()) else {
        let what = "not exactly one card is without an uplink";
        return Err(ConfigError::field("nics", what, "leave the uplink of one card away: that one is in the network"));
    };
    nic["uplink"] = serde_json::to_value(Uplink::Network).expect("it is a name");
    nic["mac"] = MacAddr(mac).to_string().into();
    Ok(nic["id"].as_str().unwrap_or_default().to_owned())
}

/// A file that one node writes in place belongs to it alone.
fn no_shared_writes(nodes: &[Node]) -> Result<(), ConfigError> {
    let mut writers = BTreeMap::new();
    let disks = || nodes.iter().flat_map(|node| node.vm.disks.iter().map(move |disk| (node, disk)));
    for (node, disk) in disks().filter(|(_, disk)| disk.mode == DiskMode::Direct) {
        writers.insert(&disk.path, &node.name);
    }
    let shared = disks().find(|(node, disk)| writers.get(&disk.path).is_some_and(|writer| **writer != node.name));
    shared.map_or(Ok(()), |(node, disk)| {
        let what = format!("{} is written by more than one node, {} too", disk.path.display(), node.name);
        Err(ConfigError::field(format!("disks.{}.mode", disk.id), what, "use \"private\""))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::CheckpointMode;

    fn network(more: Value, node: Value) -> Result<(NetConfig, Vec<Node>), ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let mut net = json!({
            "version": 1, "name": "c", "subnet": "10.77.0.0/24",
            "nodes": [{ "name": "n", "count": 3, "config": "node.json" }],
        });
        net.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut vm =
            json!({ "version": 1, "name": "any", "kernel": { "image": "k", "cmdline": "me={index}/{nodes} {ip}" } });
        vm.as_object_mut().unwrap().extend(node.as_object().unwrap().clone());
        std::fs::write(dir.path().join("net.json"), net.to_string()).unwrap();
        std::fs::write(dir.path().join("node.json"), vm.to_string()).unwrap();
        NetConfig::load(&dir.path().join("net.json"), true)
    }

    fn refused(more: Value, node: Value, named: &str) {
        let error = network(more, node).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("; "), "{error}");
    }

    #[test]
    fn what_a_node_is_called_follows_from_its_place() {
        let checkpoint = json!({ "dir": "x", "every": "5s", "mode": "stop" });
        let (_, nodes) = network(json!({}), json!({ "checkpoint": checkpoint, "serial": "stdio" })).unwrap();
        assert_eq!(nodes.iter().map(|node| &*node.name).collect::<Vec<_>>(), ["n-0", "n-1", "n-2"]);
        let last = &nodes[2];
        assert_eq!((last.mac, &*last.nic, &*last.vm.name), ([2, 0, 10, 77, 0, 3], "eth0", "c-n-2"));
        assert_eq!(last.vm.nics[0].mac, Some(MacAddr(last.mac)));
        assert_eq!(last.vm.kernel.cmdline.as_deref(), Some("me=2/3 10.77.0.3"));
        assert_eq!((last.vm.checkpoint.every, &last.vm.checkpoint.dir), (None, &None));
    }

    #[test]
    fn of_its_checkpoints_a_node_keeps_what_is_its_own_matter() {
        let checkpoint = json!({ "dir": "x", "every": "5s", "keep": 2, "mode": "stop", "stop_deadline": "7s" });
        let (_, nodes) = network(json!({}), json!({ "checkpoint": checkpoint })).unwrap();
        let CheckpointConfig { dir, mode, every, keep, stop_deadline } = nodes[0].vm.checkpoint.clone();
        assert_eq!((mode, stop_deadline), (CheckpointMode::Stop, Duration::from_secs(7)));
        assert_eq!((dir, every, keep), (None, None, None));
        refused(json!({}), json!({ "checkpoint": { "stop_deadlin": "7s" } }), "checkpoint.stop_deadlin");
    }

    #[test]
    fn a_guest_is_told_its_place_where_its_command_line_says_so() {
        let job = json!({ "job": { "on": "n-1", "command": ["a b"] } });
        let kernel = json!({ "kernel": { "image": "k", "cmdline": "quiet {network}" } });
        let (config, nodes) = network(job, kernel).unwrap();
        assert_eq!(config.job.unwrap().command_on("n-1"), ["a b"]);
        let lines = nodes.iter().map(|node| node.vm.kernel.cmdline.clone().unwrap()).collect::<Vec<_>>();
        assert!(
            lines[1].starts_with("quiet ckvmm.name=n-1 ckvmm.node=1 ckvmm.nodes=3 ckvmm.ip=10.77.0.2/24 "),
            "{lines:?}"
        );
        assert!(lines[1].ends_with(" ckvmm.command=a%040b,") && lines[2].ends_with("n-2:10.77.0.3"), "{lines:?}");
        refused(json!({ "job": { "on": "n-1", "command": ["a"] } }), json!({}), "job.command");
        let long = json!({ "seed": true, "job": { "on": "n-1", "command": ["a".repeat(4000)] } });
        refused(long, json!({ "kernel": { "image": "k", "cmdline": "{network}" } }), "kernel.cmdline");
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        refused(json!({ "version": 2 }), json!({}), "version");
        refused(json!({ "colour": 1 }), json!({}), "colour");
        refused(json!({ "version": 2, "colour": 1 }), json!({}), "version");
        refused(json!({ "checkpoint": { "dir": "" } }), json!({}), "checkpoint.dir");
        refused(json!({ "checkpoint": { "keep": 0 } }), json!({}), "checkpoint.keep");
        refused(json!({ "checkpoint": { "every": "0s" } }), json!({}), "checkpoint.every");
        refused(json!({ "checkpoint": { "mode": "stop" } }), json!({}), "checkpoint.mode");
        network(json!({ "$schema": "https://example.org/net.json" }), json!({})).unwrap();
        refused(json!({ "job": { "on": "n-3" } }), json!({}), "job.on");
        refused(json!({ "job": { "of": "n-0" } }), json!({}), "job.of");
        refused(json!({ "on_failure": "panic" }), json!({}), "on_failure");
        refused(json!({ "offloads": "no" }), json!({}), "offloads");
        refused(json!({ "subnet": "10.77.0.0/30" }), json!({}), "subnet");
        refused(json!({ "subnet": "10.77.0.1/24" }), json!({}), "subnet");
        refused(json!({ "nodes": [{ "name": "n", "config": "node.json" }] }), json!({}), "nodes");
        refused(json!({}), json!({ "nics": [{ "id": "a" }, { "id": "b" }] }), "nics");
        refused(json!({}), json!({ "nics": [{ "id": "a", "uplink": { "tap": "t" } }] }), "nics");
        refused(json!({}), json!({ "nics": { "id": "a" } }), "nics: no list");
        refused(json!({}), json!({ "nics": [{ "mac": "02:00:00:00:00:01" }] }), "nics.0.id");
        let disks = json!([{ "id": "root", "path": "/d", "mode": "direct" }]);
        refused(json!({}), json!({ "disks": disks }), "disks.root.mode");
    }
}
