//! `manifest.json` of a network's checkpoint: which VMs it is of, and the digests of their manifests.
//!
//! Invariants: it is written once, and that is the commit. What it lists was whole and on the disk before. A changed byte in
//! it is seen by its seal; through its digests one in any node's manifest, and through that damage to any of its files.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use ckvmm_snapshot::{Digest, is_sealed, sealed};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::config::default_offloads;
use super::failure::{OnFailure, default_max_restores};
use super::job::Job;
use super::message::Part;
use crate::config::{CheckpointConfig, Id};

/// Its name.
pub const NAME: &str = "manifest.json";
/// Largest manifest, bytes, of a network or a node.
const BYTES_MAX: u64 = 4 << 20;
const FORMAT: &str = "ckvmm-network";
const VERSION: u32 = 1;
/// The content of a file of that name if the cut is no checkpoint: nothing, for which a full disk has room. A manifest has
/// all of its content from the moment it exists, so that none is empty by accident.
pub const ABORT: &[u8] = b"";

/// Read before all else, whatever the rest of the file looks like.
#[derive(Deserialize)]
struct Format {
    version: u32,
}

/// What a checkpoint of a network says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// That it is one.
    pub format: String,
    /// Version of this format.
    pub version: u32,
    /// The network's name.
    pub name: Id,
    /// Its life: a restore begins another.
    pub lineage: Uuid,
    /// The number of that life.
    pub incarnation: u64,
    /// The number of the cut in that life.
    pub cut: u64,
    /// When it was committed.
    pub created: Timestamp,
    /// Where and when checkpoints are made.
    pub checkpoint: CheckpointConfig,
    /// With whose end the network ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Job>,
    /// What is done when a VM is gone.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How often at most the network goes back by itself.
    #[serde(default = "default_max_restores")]
    pub max_restores: u32,
    /// Whether the network's cards offer offloads: a guest goes on with what it has agreed to.
    #[serde(default = "default_offloads")]
    pub offloads: bool,
    /// All nodes, in their order.
    pub nodes: Vec<NodeEntry>,
}

/// A node of a network's checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Its name, which its directory has too.
    pub name: Id,
    /// The card that is in the network.
    pub nic: Id,
    /// That card's address.
    pub mac: [u8; 6],
    /// What there is of it; absent: its guest was off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartEntry>,
}

/// A node's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartEntry {
    /// Digest of its manifest.
    pub digest: String,
    /// What it said of it.
    #[serde(flatten)]
    pub part: Part,
}

impl Manifest {
    /// A manifest of this version.
    pub fn format() -> (String, u32) {
        (FORMAT.to_owned(), VERSION)
    }

    /// The instant that all guests go on from: that of the last cut, so that for none time goes back.
    pub fn instant(&self) -> Option<Timestamp> {
        self.nodes.iter().filter_map(|node| Some(node.part.as_ref()?.part.created)).max()
    }

    /// The bytes of the file, seal included.
    pub fn encode(&self) -> String {
        sealed(&serde_json::to_string_pretty(self).expect("every path is UTF-8, and nothing else can fail"))
    }

    /// Reads the manifest of the checkpoint `dir`, and compares with it the manifests of its nodes.
    ///
    /// # Errors
    /// It is none, of another version, or something has changed; each names the file.
    pub fn load(dir: &Path) -> anyhow::Result<Manifest> {
        let path = dir.join(NAME);
        let shown = path.display();
        let bytes = read(&path)
            .with_context(|| format!("{}: no checkpoint of a network; name one like STORE/000001", dir.display()))?;
        ensure!(bytes != ABORT, "{shown}: of a cut that is no checkpoint; name another one");
        if !is_of_network(&bytes) {
            bail!("{shown}: not of a network, or damaged; `ckvmm restore` restores a single VM");
        }
        let damaged = || format!("{shown}: damaged; use a copy, or another checkpoint");
        let Format { version } = serde_json::from_slice(&bytes).with_context(damaged)?;
        ensure!(version == VERSION, "{shown}: version {version}, this ckvmm reads {VERSION}; use a newer ckvmm");
        ensure!(is_sealed(&bytes), "{shown}: changed after it was committed; use a copy, or another checkpoint");
        let manifest: Manifest = serde_json::from_slice(&bytes).with_context(damaged)?;
        for node in &manifest.nodes {
            let Some(part) = &node.part else { continue };
            let path = dir.join(&*node.name).join(NAME);
            let shown = path.display();
            let found =
                digest(&path).with_context(|| format!("{shown}: cannot be read; use a copy, or another checkpoint"))?;
            ensure!(found == part.digest, "{shown}: changed after it was committed; use a copy, or another checkpoint");
        }
        Ok(manifest)
    }
}

/// Whether `dir` is a checkpoint of a network and not of a single VM. Nothing else is looked at.
pub fn is_one(dir: &Path) -> bool {
    read(&dir.join(NAME)).is_ok_and(|bytes| is_of_network(&bytes))
}

/// Whether these are the first bytes of one, and not of a single VM's. Nothing else is looked at.
pub(super) fn is_of_network(bytes: &[u8]) -> bool {
    bytes.starts_with(format!("{{\n  \"format\": \"{FORMAT}\"").as_bytes())
}

/// The digest of a node's manifest.
///
/// # Errors
/// If it cannot be read.
pub fn digest(path: &Path) -> std::io::Result<String> {
    Ok(Digest::of(&read(path)?).to_string())
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    // A FIFO may have nobody at its other end.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
