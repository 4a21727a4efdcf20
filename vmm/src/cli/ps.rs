//! `ckvmm ps`: the VMs of this user that run.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{ExitStatus, output};
use crate::api::socket;
use crate::api::types::VmInfo;
use crate::client::{Client, ClientError};
use crate::host::terminal::say;

/// Most sockets that are looked at.
const SOCKETS_MAX: usize = 10_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm ps

VMs started with --api-socket PATH are found by that path only: ckvmm status --api-socket PATH")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let mut found = Vec::new();
        for path in sockets()? {
            match Client::new(path.clone())?.get::<VmInfo>("/v1/vm") {
                Ok(vm) => found.push((path, vm)),
                Err(ClientError::NotRunning { .. } | ClientError::Lost { .. }) => {} // left by a dead one
                Err(e) => say(&super::exit::one_line(&e.to_string())),
            }
        }
        if self.json {
            let list: Vec<Value> = found.iter().map(|(path, vm)| json!({ "socket": path, "vm": vm })).collect();
            output::print_json(&list)?;
        } else {
            let header = ["NAME", "STATE", "PID", "VCPUS", "MEMORY", "RUNNING FOR", "SOCKET"];
            output::print(&output::table(&header, found.iter().map(row)))?;
        }
        Ok(ExitStatus::Success)
    }
}

fn row((path, vm): &(PathBuf, VmInfo)) -> Vec<String> {
    vec![
        vm.name.clone(),
        vm.state.name().into(),
        vm.pid.to_string(),
        vm.vcpus.to_string(),
        output::bytes(vm.memory_bytes),
        output::time(vm.uptime_us),
        path.display().to_string(),
    ]
}

/// The sockets in the default directory, by name.
fn sockets() -> anyhow::Result<Vec<PathBuf>> {
    socket::check_default_dir()?;
    let dir = socket::default_dir();
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("{}: cannot be read", dir.display())),
    };
    let paths = entries.take(SOCKETS_MAX).filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension() == Some(OsStr::new("sock"))).collect();
    paths.sort();
    Ok(paths)
}
