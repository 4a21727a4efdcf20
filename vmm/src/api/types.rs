//! What goes over the API besides [`crate::operations::Operation`].

use std::collections::BTreeMap;
use std::path::PathBuf;

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
            checkpoint_running: shared.operations().is_running(),
            last_checkpoint: shared.operations().counts().last,
            config: config.to_value(),
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
