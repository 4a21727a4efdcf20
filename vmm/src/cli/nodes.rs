//! `ckvmm network status`: how a network and its nodes are, and what goes over its links.
//!
//! What the network decides is asked of its supervisor, what a VM counts of that VM.

use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::network::State;
use super::{ExitStatus, output};
use crate::api::types::{LinkInfo, NetworkInfo, VmInfo};
use crate::client::Client;
use crate::network::control::{Verb, ask, find_state};

/// Show the network's nodes
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm network status

COLOUR is the last cut that a VM has taken. RECEIVED and SENT are frames over its links, DROPPED those that found its
guest's queue full and, since its guest was started, those that it could not take, HELD those that waited for a cut, WAITS
how often the guest waited for a full link. PAUSE and LOGGED are of the last checkpoint.")]
pub(super) struct Status {
    #[command(flatten)]
    state: State,
    /// Show what has gone over each link, instead
    #[arg(long, conflicts_with = "json")]
    links: bool,
    /// Print JSON, links included
    #[arg(long)]
    json: bool,
}

/// How long a VM may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// A node as its supervisor sees it, and its VM, if that answers.
type Node = (Value, Option<VmInfo>);

impl Status {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let mut status = ask(&find_state(self.state.dir)?, Verb::Status)?;
        let nodes = with_vms(status["nodes"].as_array().cloned().unwrap_or_default());
        if self.json {
            status["nodes"] = nodes.into_iter().map(in_json).collect();
            output::print_json(&status)?;
        } else if self.links {
            output::print(&links(&nodes))?;
        } else {
            output::print(&format!("{}\n\n{}", headline(&status), table(&nodes)))?;
        }
        Ok(ExitStatus::Success)
    }
}

/// Asks all VMs at once: one that stands still holds up nobody.
fn with_vms(nodes: Vec<Value>) -> Vec<Node> {
    let vms: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = nodes.iter().map(|node| scope.spawn(|| vm_of(node))).collect();
        asked.into_iter().map(|vm| vm.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    nodes.into_iter().zip(vms).collect()
}

/// The VM of a node that runs, and no other that has its name.
fn vm_of(node: &Value) -> Option<VmInfo> {
    let socket = node["api_socket"].as_str().filter(|_| node["state"] == "on")?;
    let vm: VmInfo = Client::new(socket.into()).ok()?.within(PATIENCE).get("/v1/vm").ok()?;
    (node["pid"] == vm.pid).then_some(vm)
}

fn in_json((mut node, vm): Node) -> Value {
    if let Some(VmInfo { state, nics, network, .. }) = vm {
        node["vm"] = json!({ "state": state, "nics": nics, "network": network });
    }
    node
}

fn headline(status: &Value) -> String {
    let last = status["last_checkpoint"]
        .as_str()
        .map_or_else(|| "no checkpoint yet".into(), |dir| format!("last checkpoint {dir}"));
    let restores = status["restores"].as_u64().filter(|restores| *restores > 0);
    let restores = restores.map(|times| format!(", went back {times} times")).unwrap_or_default();
    format!("network {}, process {}: {last}{restores}", text(&status["name"]), text(&status["pid"]))
}

fn table(nodes: &[Node]) -> String {
    let header =
        ["NODE", "STATE", "PID", "COLOUR", "LINKS", "RECEIVED", "SENT", "DROPPED", "HELD", "WAITS", "PAUSE", "LOGGED"];
    output::table(&header, nodes.iter().map(row))
}

fn row((node, vm): &Node) -> Vec<String> {
    let network = vm.as_ref().and_then(|vm| vm.network.as_ref());
    let now = |figure: fn(&NetworkInfo) -> u64| network.map_or_else(none, |network| figure(network).to_string());
    let drops = |network: &NetworkInfo| {
        let card = vm.as_ref().and_then(|vm| vm.nics.get(&network.nic));
        (network.dropped_frames + card.map_or(0, |card| card.receive_drops)).to_string()
    };
    let up = |network: &NetworkInfo| network.links.iter().filter(|link| link.is_up).count();
    vec![
        text(&node["name"]),
        state(node, vm.as_ref()),
        node["pid"].as_u64().map_or_else(none, |pid| pid.to_string()),
        now(|network| network.colour),
        network.map_or_else(none, |network| format!("{} of {}", up(network), network.links.len())),
        now(|network| network.links.iter().map(|link| link.received_frames).sum()),
        now(|network| network.links.iter().map(|link| link.sent_frames).sum()),
        network.map_or_else(none, drops),
        now(|network| network.held_packets),
        now(|network| network.waits),
        node["last_part"]["pause_us"].as_u64().map_or_else(none, output::time),
        node["last_part"]["logged_frames"].as_u64().map_or_else(none, |frames| frames.to_string()),
    ]
}

/// `off` and `lost` are the supervisor's words, what a VM that runs does its own.
fn state(node: &Value, vm: Option<&VmInfo>) -> String {
    let state = match (vm, text(&node["state"])) {
        (Some(vm), _) => vm.state.name().into(),
        (None, on) if on == "on" => "no answer".into(),
        (None, state) => state,
    };
    let so_far = &node["cut_so_far"];
    match (so_far["done_bytes"].as_u64(), so_far["total_bytes"].as_u64()) {
        (Some(done), Some(total @ 1..)) => {
            format!("{state}, {} {} %", text(&so_far["phase"]), done.saturating_mul(100) / total)
        }
        _ => state,
    }
}

fn links(nodes: &[Node]) -> String {
    let name = |number: u16| nodes.get(usize::from(number)).map_or_else(none, |(node, _)| text(&node["name"]));
    let of = |network: &NetworkInfo| {
        let here = name(network.node);
        let row = move |link: &LinkInfo| {
            let up = if link.is_up { "up" } else { "down" };
            let (sent, received) = (output::bytes(link.sent_bytes), output::bytes(link.received_bytes));
            let frames = (link.sent_frames.to_string(), link.received_frames.to_string());
            vec![here.clone(), name(link.node), up.into(), frames.0, sent, frames.1, received]
        };
        network.links.iter().map(row).collect::<Vec<_>>()
    };
    let rows = nodes.iter().filter_map(|(_, vm)| vm.as_ref()?.network.as_ref()).flat_map(of);
    output::table(&["NODE", "PEER", "LINK", "SENT", "BYTES", "RECEIVED", "BYTES"], rows)
}

fn none() -> String {
    "-".into()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
