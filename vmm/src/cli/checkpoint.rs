//! `ckvmm checkpoint`: asks for one, waits until it is durable, prints its directory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::target;
use super::{ExitStatus, UsageError, output, progress};
use crate::api::types::CheckpointRequest;
use crate::client::{Client, ClientError};
use crate::config::CheckpointMode;
use crate::operations::{Operation, OperationState};

/// How often the operation is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ckvmm checkpoint node0                     # the next one in the VM's store; prints its directory
  ckvmm checkpoint node0 /backup/before --stop")]
pub(super) struct Args {
    /// The VM's name (`ckvmm ps` lists them)
    #[arg(value_name = "VM", required_unless_present = "api_socket")]
    vm: Option<PathBuf>,
    /// The new checkpoint's directory; it must not exist [default: the next number in checkpoint.dir]
    #[arg(value_name = "CKPT")]
    checkpoint: Option<PathBuf>,
    /// The VM's API socket, instead of its name
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// How RAM is captured
    #[arg(long, value_enum, default_value_t)]
    mode: CheckpointMode,
    /// Write all RAM and disks, not only what changed since the last checkpoint
    #[arg(long)]
    full: bool,
    /// End the VM once the checkpoint is durable
    #[arg(long)]
    stop: bool,
    /// Return at once; prints the operation's id
    #[arg(long)]
    no_wait: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let (vm, dir) = match (&self.api_socket, self.vm, self.checkpoint) {
            // with --api-socket there is no VM to name, so that the only place is the directory's
            (Some(_), dir, None) => (None, dir),
            (Some(_), Some(_), Some(_)) => {
                return Err(UsageError("VM: not together with --api-socket; give one of them".into()).into());
            }
            (_, vm, dir) => (vm, dir),
        };
        let client = target::client(vm.as_deref().and_then(|vm| vm.to_str()), self.api_socket)?;
        let dir = dir.map(std::path::absolute).transpose().context("CKPT: no such path")?;
        let request = CheckpointRequest { dir, mode: self.mode, full: self.full, stop: self.stop };
        let location = client.post_for_location("/v1/checkpoints", &request)?;
        if self.no_wait {
            output::print(location.rsplit('/').next().unwrap_or_default())?;
            return Ok(ExitStatus::Success);
        }
        wait(&client, &location)
    }
}

fn wait(client: &Client, location: &str) -> anyhow::Result<ExitStatus> {
    let bar = progress::Bar::new();
    loop {
        let operation: Operation = match client.get(location) {
            Ok(operation) => operation,
            Err(e @ (ClientError::NotRunning { .. } | ClientError::Lost { .. })) => {
                let lost = "checkpoint: the VM ended while it was being made; `ckvmm list` shows whether it is whole";
                return Err(anyhow::Error::new(e).context(lost));
            }
            Err(e) => return Err(e.into()),
        };
        bar.show(&operation);
        match (operation.state, operation.result) {
            (OperationState::Running, _) => std::thread::sleep(LOOK_EVERY),
            (OperationState::Done, Some(done)) => {
                drop(bar);
                output::print(&done.dir.display().to_string())?;
                return Ok(ExitStatus::Success);
            }
            _ => anyhow::bail!(operation.error.unwrap_or_else(|| "checkpoint: it failed without a reason".into())),
        }
    }
}
