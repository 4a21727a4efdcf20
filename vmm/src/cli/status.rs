//! `ckvmm status`: how a VM is.

use super::target::Target;
use super::{ExitStatus, output};
use crate::api::types::VmInfo;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm status node0 --json")]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let vm: VmInfo = self.target.client()?.get("/v1/vm")?;
        if self.json {
            output::print_json(&vm)?;
        } else {
            output::print(&output::table(&[], rows(&vm)))?;
        }
        Ok(ExitStatus::Success)
    }
}

fn rows(vm: &VmInfo) -> Vec<Vec<String>> {
    let mut rows = vec![
        vec!["name".into(), vm.name.clone()],
        vec!["state".into(), vm.state.name().into()],
        vec!["process".into(), vm.pid.to_string()],
        vec!["running for".into(), output::time(vm.uptime_us)],
        vec!["vCPUs".into(), vm.vcpus.to_string()],
        vec!["memory".into(), output::bytes(vm.memory_bytes)],
    ];
    for (id, path) in &vm.disks {
        rows.push(vec![format!("disk {id}"), path.display().to_string()]);
    }
    let last = vm.last_checkpoint.as_ref().map(|done| done.dir.display().to_string());
    let now = if vm.checkpoint_running { " (one is being made)" } else { "" };
    rows.push(vec!["last checkpoint".into(), format!("{}{now}", last.unwrap_or_else(|| "none".into()))]);
    rows
}
