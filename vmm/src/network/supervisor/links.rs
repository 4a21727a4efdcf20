//! Links between VMs, and what is done to them from a command line: faults for tests, captures.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ckvmm_net::Node;
use ckvmm_net::coordinator::Member;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use super::Supervisor;
use crate::error::{Error, Result};
use crate::network::channel;
use crate::network::config::NODES_MAX;
use crate::network::control::{Answer, LinkName};
use crate::network::message::{Fault, ToMember};

/// Descriptors of a supervisor: two for each link of the largest network, and a few for each VM.
const DESCRIPTORS: u64 = 2 * (NODES_MAX * NODES_MAX) as u64;

impl Supervisor {
    /// Lets something go wrong with the links that are named, or with all, at both ends.
    pub(super) fn fault(&self, links: Option<&LinkName>, fault: Fault) -> Answer {
        let named = links.map(|links| self.find(links)).transpose()?;
        let is_named = |a: Node, b: Node| match named {
            None => true,
            Some((node, None)) => a == node || b == node,
            Some((node, Some(peer))) => (a, b) == (node, peer) || (b, a) == (node, peer),
        };
        for a in self.running() {
            for b in self.running().filter(|b| *b != a && is_named(a, *b)) {
                self.tell(a, &ToMember::Fault(b.0, of_link(fault, a, b)), &[]);
            }
        }
        Ok(Value::Null)
    }

    /// Captures at the node that is named, or ends that.
    pub(super) fn capture(&self, links: &LinkName, file: Option<&Path>) -> Answer {
        let (node, peer) = self.find(links)?;
        let message = ToMember::Capture(peer.map(|peer| peer.0));
        let Some(path) = file else {
            self.tell(node, &message, &[]);
            return Ok(Value::Null);
        };
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = opened.map_err(|error| {
            format!("{}: {error}; name a new file in a directory that can be written to", path.display())
        })?;
        self.tell(node, &message, &[file.as_fd()]);
        Ok(fs::canonicalize(path).unwrap_or_else(|_| path.into()).display().to_string().into())
    }

    fn find(&self, LinkName { node, peer }: &LinkName) -> Result<(Node, Option<Node>), String> {
        let find = |name: &String| {
            let running = self.running().find(|node| *self.seats[node.index()].name == **name);
            running.ok_or_else(|| format!("{name:?}: no node of that name runs; see `ckvmm network status`"))
        };
        let found = (find(node)?, peer.as_ref().map(find).transpose()?);
        match found {
            (node, Some(peer)) if node == peer => Err("a node has no link to itself; name two".into()),
            found => Ok(found),
        }
    }

    fn running(&self) -> impl Iterator<Item = Node> {
        let members = self.coordinator.members().iter().zip(0..);
        members.filter(|(member, _)| **member == Member::On).map(|(_, node)| Node(node))
    }
}

/// No two ends of links draw the same delays.
fn of_link(fault: Fault, here: Node, there: Node) -> Fault {
    match fault {
        Fault::Delay(least, most, seed) => {
            let end = u64::from(here.0) << 16 | u64::from(there.0);
            Fault::Delay(least, most, seed ^ end.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        }
        fault => fault,
    }
}

/// A pair of connected sockets for each two nodes that are on: who has which end. The usual limit of descriptors is for
/// fewer nodes, and is no wish of anybody's (getrlimit(2)): what may be had is taken.
pub(super) fn pairs(on: &[bool]) -> Result<Vec<Vec<(u16, OwnedFd)>>> {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // If it stays, links say so when there are too many.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(DESCRIPTORS)), hard);
    }
    let mut links: Vec<Vec<(u16, OwnedFd)>> = on.iter().map(|_| Vec::new()).collect();
    for a in (0..on.len()).filter(|a| on[*a]) {
        for b in (0..a).filter(|b| on[*b]) {
            let (one, other) = channel::pair().map_err(Error::os("connecting two VMs (ulimit -n)"))?;
            links[a].push((b as u16, one));
            links[b].push((a as u16, other));
        }
    }
    Ok(links)
}
