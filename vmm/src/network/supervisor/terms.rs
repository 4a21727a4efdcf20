//! What a network is, in each of its lives: from `net.json`, then from the manifests of its checkpoints.

use serde::{Deserialize, Serialize};

use crate::cli::Clock;
use crate::config::{CheckpointConfig, Id};
use crate::network::config::{NetConfig, default_offloads};
use crate::network::failure::OnFailure;
use crate::network::job::Job;
use crate::network::manifest::Manifest;

/// What a network is, in each of its lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Terms {
    pub(super) name: Id,
    pub(super) checkpoint: CheckpointConfig,
    pub(super) on_failure: OnFailure,
    pub(super) max_restores: u32,
    /// With whose end the network ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) job: Option<Job>,
    /// Whether its cards offer offloads.
    #[serde(default = "default_offloads")]
    pub(super) offloads: bool,
    /// What was to be other than in the checkpoint that it began from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) set: Vec<String>,
    /// What guests' clocks say after a restore.
    #[serde(default)]
    pub(super) clock: Clock,
}

impl Terms {
    /// Of a network that boots.
    pub(super) fn of_config(config: NetConfig) -> Terms {
        let NetConfig { name, checkpoint, on_failure, max_restores, job, offloads, .. } = config;
        Terms { name, checkpoint, on_failure, max_restores, job, offloads, set: Vec::new(), clock: Clock::Freeze }
    }

    /// Of one that goes on from a checkpoint.
    pub(super) fn of_manifest(manifest: Manifest, set: Vec<String>, clock: Clock) -> Terms {
        let Manifest { name, checkpoint, on_failure, max_restores, job, offloads, .. } = manifest;
        Terms { name, checkpoint, on_failure, max_restores, job, offloads, set, clock }
    }
}
