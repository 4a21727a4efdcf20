//! `ckvmm list`: the checkpoints in a store.

use std::path::{Path, PathBuf};

use ckvmm_snapshot::{Entry, Manifest, Store};
use serde_json::{Value, json};

use super::{ExitStatus, UsageError, output};
use crate::network::manifest;
use crate::network::whole::{Whole, WholePart};

/// Name of what makes a directory a checkpoint.
const MANIFEST: &str = "manifest.json";

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
            output::print_json(
                &entries.iter().map(|entry| network_json(entry).unwrap_or_else(|| as_json(entry))).collect::<Vec<_>>(),
            )?;
        } else {
            let header =
                ["CHECKPOINT", "AGE", "VM", "MEMORY", "OWN", "SHARED", "PAUSE", "DURATION", "MODE", "PARENT", "ID"];
            output::print(&output::table(
                &header,
                entries.iter().map(|entry| network_row(entry).unwrap_or_else(|| row(entry))),
            ))?;
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

/// A network's checkpoint, if the entry is one, or why it cannot be restored.
fn whole(entry: &Entry) -> Option<anyhow::Result<Whole>> {
    manifest::is_one(&entry.path).then(|| Whole::open(&entry.path))
}

fn network_json(entry: &Entry) -> Option<Value> {
    Some(match whole(entry)? {
        Ok(whole) => super::inspect::network_json(&whole),
        Err(error) => json!({ "path": entry.path, "error": format!("{error:#}") }),
    })
}

/// Of all its VMs: what they have in all, and the longest pause.
fn network_row(entry: &Entry) -> Option<Vec<String>> {
    let name = entry.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Whole { manifest, parts, .. } = match whole(entry)? {
        Ok(whole) => whole,
        Err(error) => return Some(vec![name, super::exit::one_line(&format!("{error:#}"))]),
    };
    let of_all = |each: fn(&WholePart) -> u64| parts.iter().map(each);
    Some(vec![
        name,
        output::age(manifest.created),
        format!("{} ({} VMs)", manifest.name, parts.len()),
        output::bytes(of_all(|part| part.manifest.memory_bytes).sum()),
        output::bytes(of_all(|part| output::on_disk(&part.path, &part.manifest).0).sum()),
        output::bytes(of_all(|part| output::on_disk(&part.path, &part.manifest).1).sum()),
        output::time(of_all(|part| part.manifest.pause_us).max().unwrap_or(0)),
        output::time(of_all(|part| part.manifest.duration_us).max().unwrap_or(0)),
        parts.iter().map(|part| part.manifest.mode.as_str()).max().unwrap_or("-").to_owned(),
        "-".to_owned(),
        format!("{}:{}", manifest.lineage, manifest.cut),
    ])
}
