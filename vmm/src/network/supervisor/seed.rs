//! The nodes' seeds, made when a network is booted: `STATE/NODE/seed.img`.
//!
//! Invariant: a seed has keys, so only its owner may read it, and a VM that still runs with an older one keeps that.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context as _;
use ckvmm_devices::entropy;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::network::config::Node;
use crate::network::job::Job;
use crate::network::seed::keys::{KEY_BYTES, Key, Keys};
use crate::network::seed::{self, disk};

const FILE: &str = "seed.img";

/// The bytes of each node's seed, for those that get one. All keys are new.
pub(super) fn all(nodes: &[Node], job: Option<&Job>) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
    let login = key("ckvmm")?;
    let hosts = nodes.iter().map(|node| key(&node.name)).collect::<Result<_>>()?;
    let (keys, id) = (Keys { login, hosts }, Uuid::new_v4().to_string());
    let seed = |(index, node): (usize, &Node)| {
        let command = job.map_or(&[][..], |job| job.command_on(&node.name));
        let files = seed::of(nodes, index, command, &id, &keys);
        let made =
            || disk::image(&files).with_context(|| format!("{}: its seed has no room; give shorter names", node.name));
        node.seed.then(made).transpose()
    };
    nodes.iter().enumerate().map(seed).collect()
}

fn key(comment: &str) -> Result<Key> {
    let mut bytes = [0; KEY_BYTES];
    entropy::fill(&mut bytes).map_err(Error::os("drawing an ssh key"))?;
    Ok(Key::from_random(&bytes, comment))
}

/// The node with its seed, which is written to its state directory `dir`.
pub(super) fn plant(node: Node, seed: Option<Vec<u8>>, dir: &Path) -> Result<Node> {
    let Some(seed) = seed else { return Ok(node) };
    let path = dir.join(FILE);
    write(&path, &seed).map_err(|source| Error::Io {
        path: path.clone(),
        what: "cannot be written; make room",
        source,
    })?;
    Ok(node.with_seed(&path)?)
}

fn write(path: &Path, seed: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(seed)
}
