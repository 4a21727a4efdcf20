//! A network's checkpoint with those of its VMs: what one lists, compares with its digests and copies.
//!
//! Invariant: the network's manifest has been compared with its seal, and each VM's with the digest that stands in it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ckvmm_snapshot::{Image, Progress, make_dir, write_once};

use super::manifest::{self, Manifest, NAME};

/// A checkpoint of a network.
#[derive(Debug)]
pub struct Whole {
    /// Its directory.
    pub path: PathBuf,
    /// What it says about itself.
    pub manifest: Manifest,
    /// Those of its VMs whose guests were on, in their order.
    pub parts: Vec<WholePart>,
}

/// A VM of it.
#[derive(Debug)]
pub struct WholePart {
    /// The number of the node.
    pub node: usize,
    /// The VM's checkpoint.
    pub path: PathBuf,
    /// What that says about itself.
    pub manifest: ckvmm_snapshot::Manifest,
}

impl Whole {
    /// Reads the manifests of the checkpoint `path`, which may be a symbolic link.
    ///
    /// # Errors
    /// It is none, or one of them is damaged or gone; each names the file.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let manifest = Manifest::load(&path)?;
        let nodes = manifest.nodes.iter().enumerate().filter(|(_, node)| node.part.is_some());
        let parts = nodes.map(|(node, entry)| {
            let path = path.join(&*entry.name);
            Ok(WholePart { node, manifest: ckvmm_snapshot::Manifest::load(&path)?, path })
        });
        let parts = parts.collect::<anyhow::Result<_>>()?;
        Ok(Whole { path, manifest, parts })
    }

    /// Compares every byte with its digest; returns how many of RAM and disks.
    ///
    /// # Errors
    /// The first that differs: file and chunk.
    pub fn verify(&self, progress: &Progress) -> anyhow::Result<u64> {
        let mut checked = 0;
        for part in &self.parts {
            let image = Image::open(&part.path)?;
            self.read_log(part, &image)?;
            image.verify(progress)?;
            checked += progress.bytes_done();
        }
        Ok(checked)
    }

    /// What was under way to a node must be frames, and not only the bytes that were written.
    fn read_log(&self, part: &WholePart, image: &Image) -> anyhow::Result<()> {
        let nic = &self.manifest.nodes[part.node].nic;
        let path = part.path.join("network").join(&**nic);
        let log = image.network(nic)?.with_context(|| format!("{}: missing; use a copy", path.display()))?;
        ckvmm_net::log::decode(&log, self.manifest.nodes.len() as u16)
            .with_context(|| format!("{}: damaged; use a copy", path.display()))?;
        Ok(())
    }

    /// Copies it to the new directory `to`, with files that no other checkpoint has. All is compared with its digests on
    /// the way.
    ///
    /// # Errors
    /// It is damaged, or there is no room; then there is no manifest there, and so no checkpoint.
    pub fn flatten(&self, to: &Path, progress: &Progress) -> anyhow::Result<PathBuf> {
        let cannot = || format!("{}: cannot be made; name a directory that does not exist", to.display());
        make_dir(to).with_context(cannot)?;
        let to = to.canonicalize().with_context(cannot)?;
        let mut manifest = self.manifest.clone();
        for part in &self.parts {
            let entry = &mut manifest.nodes[part.node];
            let made = Image::open(&part.path)?.flatten(&to.join(&*entry.name), progress)?.join(NAME);
            if let Some(part) = &mut entry.part {
                let lost = || format!("{}: cannot be read; mend the file system", made.display());
                part.digest = manifest::digest(&made).with_context(lost)?;
            }
        }
        write_once(&to.join(NAME), manifest.encode().as_bytes())?;
        Ok(to)
    }
}
