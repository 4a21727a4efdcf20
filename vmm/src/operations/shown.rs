//! An operation as the API shows it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Names an operation; unique for ever, so that nobody mistakes one VM's for its successor's on the same socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(Uuid);

impl OperationId {
    pub(super) fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OperationId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// At work.
    Running,
    /// Finished; a checkpoint is durable.
    Done,
    /// It did not succeed; the VM went on as before.
    Failed,
}

/// What a finished checkpoint was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckpointDone {
    /// Its directory.
    #[schema(value_type = String)]
    pub dir: PathBuf,
    /// Its id, as in its manifest.
    #[schema(value_type = String)]
    pub id: Uuid,
    /// The instant that it is of, as in its manifest.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// Bytes of RAM that were written.
    pub written_bytes: u64,
    /// How long the guest stood still, in microseconds.
    pub pause_us: u64,
    /// What of that the VMM was at work, in microseconds; it may have waited for a CPU besides.
    pub pause_cpu_us: u64,
    /// From the request until it was durable, in microseconds.
    pub duration_us: u64,
}

/// An operation as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    #[schema(value_type = String)]
    pub id: OperationId,
    /// `"checkpoint"`.
    pub kind: String,
    /// How far it is.
    pub state: OperationState,
    /// What it does just now, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Bytes done in this phase.
    pub done_bytes: u64,
    /// Bytes to do in this phase; 0: not known.
    pub total_bytes: u64,
    /// When it began.
    #[schema(value_type = String)]
    pub started: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub finished: Option<Timestamp>,
    /// What came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<CheckpointDone>,
    /// Why it failed: one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
