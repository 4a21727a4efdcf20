//! `ckvmm list`: the checkpoints in a store.

use std::path::{Path, PathBuf};

use ckvmm_snapshot::{Entry, Manifest, Store};
use serde_json::{Value, json};

use super::{ExitStatus, UsageError, output};

/// Name of what makes a directory a checkpoint.
const MANIFEST: &str = "manifest.json";

/// List the checkpoints in a directory, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm list node0.ckvmm/checkpoints")]
pub(super) struct Args {
    /// A directory of checkpoints
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let entries = open(&self.store)?.list()?;
        if self.json {
            output::print_json(&entries.iter().map(as_json).collect::<Vec<_>>())?;
        } else {
            let header =
                ["CHECKPOINT", "AGE", "VM", "MEMORY", "OWN", "SHARED", "PAUSE", "DURATION", "MODE", "PARENT", "ID"];
            output::print(&output::table(&header, entries.iter().map(row)))?;
        }
        Ok(ExitStatus::Success)
    }
}

/// The store at `path`, if it is a directory of checkpoints.
pub(super) fn open(path: &Path) -> anyhow::Result<Store> {
    let shown = path.display();
    if path.join(MANIFEST).exists() {
        let line = format!("{shown}: is one checkpoint, not a directory of them; use ckvmm inspect {shown}");
        return Err(UsageError(line).into());
    }
    if !path.is_dir() {
        anyhow::bail!("{shown}: no such directory; name one that holds checkpoints");
    }
    Ok(Store::new(path))
}

fn as_json(entry: &Entry) -> Value {
    match &entry.manifest {
        Ok(manifest) => json!({
            "path": entry.path,
            "on_disk_bytes": output::on_disk(&entry.path, manifest).0,
            "shared_bytes": output::on_disk(&entry.path, manifest).1,
            "manifest": manifest,
        }),
        Err(e) => json!({ "path": entry.path, "error": e.to_string() }),
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let name = entry.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match &entry.manifest {
        Ok(manifest) => {
            let Manifest { id, parent, name: vm, memory_bytes, pause_us, duration_us, mode, .. } = manifest;
            let (own, shared) = output::on_disk(&entry.path, manifest);
            vec![
                name,
                output::age(manifest.created),
                vm.clone(),
                output::bytes(*memory_bytes),
                output::bytes(own),
                output::bytes(shared),
                output::time(*pause_us),
                output::time(*duration_us),
                mode.clone(),
                parent.map_or_else(|| "-".into(), |parent| output::brief(&parent)),
                id.to_string(),
            ]
        }
        Err(e) => vec![name, super::exit::one_line(&e.to_string())],
    }
}
