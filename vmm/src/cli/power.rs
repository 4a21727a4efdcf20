//! `ckvmm pause`, `resume`, `stop` and `kill`.

use std::time::Duration;

use serde_json::json;

use super::ExitStatus;
use super::target::Target;
use crate::api::types::VmInfo;
use crate::client::{Client, ClientError};

/// How often `stop` and `kill` look whether the VM has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm pause node0")]
pub(super) struct Pause {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm resume node0")]
pub(super) struct Resume {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm stop node0

A guest that does not power off within vm.json's stop_timeout is ended.")]
pub(super) struct Stop {
    #[command(flatten)]
    target: Target,
    /// Return as soon as the button is pressed
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm kill node0")]
pub(super) struct Kill {
    #[command(flatten)]
    target: Target,
}

impl Pause {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        power(&self.target.client()?, "paused", false)
    }
}

impl Resume {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        power(&self.target.client()?, "running", false)
    }
}

impl Stop {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let client = self.target.client()?;
        let pid = client.get::<VmInfo>("/v1/vm")?.pid;
        power(&client, "off", false)?;
        if self.no_wait { Ok(ExitStatus::Success) } else { wait_for_end(&client, pid) }
    }
}

impl Kill {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let client = self.target.client()?;
        let pid = client.get::<VmInfo>("/v1/vm")?.pid;
        power(&client, "off", true)?;
        wait_for_end(&client, pid)
    }
}

fn power(client: &Client, state: &str, force: bool) -> anyhow::Result<ExitStatus> {
    let _: VmInfo = client.put("/v1/vm/power", &json!({ "state": state, "force": force }))?;
    Ok(ExitStatus::Success)
}

/// Waits until nobody, or another process, answers at the socket. `stop_timeout` in the VM bounds it.
fn wait_for_end(client: &Client, pid: u32) -> anyhow::Result<ExitStatus> {
    loop {
        match client.get::<VmInfo>("/v1/vm") {
            Ok(vm) if vm.pid == pid => std::thread::sleep(LOOK_EVERY),
            Ok(_) | Err(ClientError::NotRunning { .. } | ClientError::Lost { .. }) => return Ok(ExitStatus::Success),
            Err(e) => return Err(e.into()),
        }
    }
}
