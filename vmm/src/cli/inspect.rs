//! `ckvmm inspect`: what one checkpoint holds.

use std::path::PathBuf;

use ckvmm_snapshot::{Image, Manifest};
use serde_json::json;

use super::{ExitStatus, output};

/// Show what a checkpoint holds; its manifest, state and maps are verified
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm inspect node0.ckvmm/checkpoints/latest --json | jq .manifest.config")]
pub(super) struct Args {
    /// The checkpoint's directory
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Print JSON: the whole manifest with the VM's configuration
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let image = Image::open(&self.checkpoint)?;
        if self.json {
            let (own, shared) = output::on_disk(image.path(), image.manifest());
            output::print_json(&json!({
                "path": image.path(),
                "on_disk_bytes": own,
                "shared_bytes": shared,
                "manifest": image.manifest(),
            }))?;
        } else {
            output::print(&output::table(&[], rows(&image)))?;
        }
        Ok(ExitStatus::Success)
    }
}

fn rows(image: &Image) -> Vec<Vec<String>> {
    let manifest = image.manifest();
    let Manifest { id, lineage, parent, name, created, mode, memory_bytes, pause_us, duration_us, .. } = manifest;
    let (own, shared) = output::on_disk(image.path(), manifest);
    let mut rows: Vec<Vec<String>> = [
        ("checkpoint", image.path().display().to_string()),
        ("VM", name.clone()),
        ("created", format!("{created} ({} ago)", output::age(*created))),
        ("id", id.to_string()),
        ("lineage", lineage.to_string()),
        ("parent", parent.map_or_else(|| "none".into(), |id| id.to_string())),
        ("made by", format!("ckvmm {}, format {}", manifest.ckvmm_version, manifest.format_version)),
        ("mode", mode.clone()),
        ("pause", output::time(*pause_us)),
        ("duration", output::time(*duration_us)),
        ("memory", output::bytes(*memory_bytes)),
        (
            "on disk",
            format!("{} of its own, {} shared with other checkpoints", output::bytes(own), output::bytes(shared)),
        ),
    ]
    .map(|(name, value)| vec![name.to_owned(), value])
    .into();
    for id in image.disk_ids() {
        rows.push(vec![format!("disk {id}"), output::bytes(image.disk_bytes(id).unwrap_or(0))]);
    }
    rows
}
