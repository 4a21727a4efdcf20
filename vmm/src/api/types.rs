//! What goes over the API besides [`crate::operations::Operation`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use ckvmm_devices::NetCounters;
use ckvmm_net::{Link as _, Port};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::CheckpointMode;
use crate::control::{Shared, VmState};
use crate::operations::CheckpointDone;

/// How a VM is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Its name.
    pub name: String,
    /// How it is.
    pub state: VmState,
    /// The process that runs it.
    pub pid: u32,
    /// Version of that ckvmm.
    pub ckvmm_version: String,
    /// When that process began.
    #[schema(value_type = String)]
    pub started: Timestamp,
    /// For how long it has run, in microseconds.
    pub uptime_us: u64,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// Where the guest's disks are, by id.
    #[schema(value_type = BTreeMap<String, String>)]
    pub disks: BTreeMap<String, PathBuf>,
    /// What has gone through its network cards, by id.
    #[serde(default)]
    pub nics: BTreeMap<String, NicInfo>,
    /// Its place in a network of VMs; absent: it is in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkInfo>,
    /// Whether a checkpoint is being made.
    pub checkpoint_running: bool,
    /// The last checkpoint that this process made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<CheckpointDone>,
    /// The VM's configuration, as in `vm.json`, with absolute paths.
    #[schema(value_type = Object)]
    pub config: serde_json::Value,
}

impl VmInfo {
    pub(super) fn of(shared: &Shared) -> Self {
        let config = shared.config();
        Self {
            name: shared.name().to_string(),
            state: shared.state(),
            pid: std::process::id(),
            ckvmm_version: env!("CARGO_PKG_VERSION").into(),
            started: shared.started(),
            uptime_us: shared.uptime_us(),
            vcpus: config.vcpus,
            memory_bytes: config.memory.0,
            disks: shared.disks(),
            nics: shared.cards().iter().map(|(id, counters)| (id.clone(), NicInfo::of(counters))).collect(),
            network: shared.port().map(NetworkInfo::of),
            checkpoint_running: shared.operations().is_running(),
            last_checkpoint: shared.operations().counts().last,
            config: config.to_value(),
        }
    }
}

/// What has gone through a network card since its machine was made: a restore or a reboot begins at 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NicInfo {
    /// Frames given to the guest.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that the guest could not be given.
    pub receive_drops: u64,
    /// Frames that the guest has sent.
    pub transmitted_frames: u64,
    /// Their bytes.
    pub transmitted_bytes: u64,
    /// Frames of the guest that could not be sent.
    pub transmit_drops: u64,
}

impl NicInfo {
    fn of(counters: &NetCounters) -> Self {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            received_frames: now(&counters.received_frames),
            received_bytes: now(&counters.received_bytes),
            receive_drops: now(&counters.receive_drops),
            transmitted_frames: now(&counters.transmitted_frames),
            transmitted_bytes: now(&counters.transmitted_bytes),
            transmit_drops: now(&counters.transmit_drops),
        }
    }
}

/// A VM's place in a network, with what was counted since its process began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkInfo {
    /// The number of its node.
    pub node: u16,
    /// The card that is in the network.
    pub nic: String,
    /// Its colour: the number of the last cut that is behind it.
    pub colour: u64,
    /// Frames that went into logs of cuts.
    pub logged_frames: u64,
    /// Packets that were held until a cut was taken.
    pub held_packets: u64,
    /// Frames that found the guest's queue full.
    pub dropped_frames: u64,
    /// Frames of the guest to nodes that are off or lost.
    pub unreachable_frames: u64,
    /// How often the guest had to wait, since a link was full.
    pub waits: u64,
    /// Its links.
    pub links: Vec<LinkInfo>,
}

/// A link to another node. Bytes are with virtio-net headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkInfo {
    /// The number of the node at the other end.
    pub node: u16,
    /// Whether frames go over it: not when that node is off or lost.
    pub is_up: bool,
    /// Frames that have gone out.
    pub sent_frames: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Frames that have come.
    pub received_frames: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

impl NetworkInfo {
    fn of(port: &Port) -> Self {
        let counters = port.counters();
        let links = port.links().into_iter().map(|(node, is_up, link)| LinkInfo {
            node: node.0,
            is_up,
            sent_frames: link.sent_frames,
            sent_bytes: link.sent_bytes,
            received_frames: link.received_frames,
            received_bytes: link.received_bytes,
        });
        Self {
            node: port.node().0,
            nic: port.name().into(),
            colour: port.colour().0,
            logged_frames: counters.logged,
            held_packets: counters.held,
            dropped_frames: counters.dropped,
            unreachable_frames: counters.unreachable,
            waits: port.waits(),
            links: links.collect(),
        }
    }
}

/// What the VM's power is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
    /// The power button is pressed; the VM ends after `stop_timeout` at the latest.
    Off,
}

/// Body of `PUT /v1/vm/power`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What it is to be.
    pub state: PowerState,
    /// With `off`: end the VM now, without asking the guest.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /v1/checkpoints`; everything may be left out, the body too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// The new checkpoint's directory, absolute; absent: the next name in the VM's store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub dir: Option<PathBuf>,
    /// How RAM is captured.
    #[serde(default)]
    pub mode: CheckpointMode,
    /// Write all RAM and disks, not only what has changed since the VM's last checkpoint.
    #[serde(default)]
    pub full: bool,
    /// End the VM once the checkpoint is durable.
    #[serde(default)]
    pub stop: bool,
}

/// An error (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Always `"about:blank"`: the status says which kind it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The line that the CLI prints.
    pub detail: String,
}
