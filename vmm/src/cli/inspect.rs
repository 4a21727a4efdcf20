//! `ckvmm inspect`: what one checkpoint holds.

use std::path::PathBuf;

use ckvmm_snapshot::{Image, Manifest};
use serde_json::{Value, json};

use super::{ExitStatus, output};
use crate::network::manifest::{self, NodeEntry, PartEntry};
use crate::network::whole::Whole;

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
        if manifest::is_one(&self.checkpoint) {
            let whole = Whole::open(&self.checkpoint)?;
            if self.json {
                output::print_json(&network_json(&whole))?;
            } else {
                output::print(&output::table(&[], network_rows(&whole)))?;
                let header = ["NODE", "MEMORY", "OWN", "SHARED", "PAUSE", "DURATION", "LOGGED", "HELD", "DROPPED"];
                output::print(&output::table(&header, node_rows(&whole)))?;
            }
            return Ok(ExitStatus::Success);
        }
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

/// A network's checkpoint with those of its VMs.
pub(super) fn network_json(whole: &Whole) -> Value {
    let nodes = whole.parts.iter().map(|part| {
        let (own, shared) = output::on_disk(&part.path, &part.manifest);
        json!({
            "name": whole.manifest.nodes[part.node].name,
            "path": part.path,
            "on_disk_bytes": own,
            "shared_bytes": shared,
            "manifest": part.manifest,
        })
    });
    json!({ "path": whole.path, "network": whole.manifest, "nodes": nodes.collect::<Vec<_>>() })
}

fn network_rows(whole: &Whole) -> Vec<Vec<String>> {
    let manifest = &whole.manifest;
    [
        ("checkpoint", whole.path.display().to_string()),
        ("network", manifest.name.to_string()),
        ("created", format!("{} ({} ago)", manifest.created, output::age(manifest.created))),
        ("lineage", manifest.lineage.to_string()),
        ("cut", manifest.cut.to_string()),
        ("life", manifest.incarnation.to_string()),
    ]
    .map(|(name, value)| vec![name.to_owned(), value])
    .into()
}

fn node_rows(whole: &Whole) -> Vec<Vec<String>> {
    let row = |(index, node): (usize, &NodeEntry)| {
        let part = whole.parts.iter().find(|part| part.node == index);
        let (Some(part), Some(PartEntry { part: said, .. })) = (part, &node.part) else {
            return vec![node.name.to_string(), "off".into()];
        };
        let (own, shared) = output::on_disk(&part.path, &part.manifest);
        vec![
            node.name.to_string(),
            output::bytes(part.manifest.memory_bytes),
            output::bytes(own),
            output::bytes(shared),
            output::time(part.manifest.pause_us),
            output::time(part.manifest.duration_us),
            said.logged_frames.to_string(),
            said.held_packets.to_string(),
            said.dropped_frames.to_string(),
        ]
    };
    whole.manifest.nodes.iter().enumerate().map(row).collect()
}
