//! `ckvmm network restore --set`: what is to be other than it was when the network was saved.
//!
//! ```text
//! NODE.PATH=VALUE          of the node's vm.json, as `ckvmm restore --set PATH=VALUE`
//! checkpoint.FIELD=VALUE   of net.json
//! ```

use serde_json::json;

use super::manifest::Manifest;
use crate::config::{ConfigError, VmConfig, check};

/// Changes in `manifest` what is of the network; returns what is of each node, in their order.
///
/// # Errors
/// No such node, a field that is not there or does not take the value. What is of a node is judged when it is restored.
pub fn apply(set: &[String], manifest: &mut Manifest) -> Result<Vec<Vec<String>>, ConfigError> {
    let mut network = json!({ "checkpoint": manifest.checkpoint });
    let mut of_nodes = vec![Vec::new(); manifest.nodes.len()];
    for assignment in set {
        let (first, rest) = assignment.split_once('.').unwrap_or((assignment, ""));
        match manifest.nodes.iter().position(|node| *node.name == *first) {
            Some(node) => of_nodes[node].push(rest.to_owned()),
            None if first == "checkpoint" => VmConfig::set(&mut network, assignment)?,
            None => {
                let names: Vec<&str> = manifest.nodes.iter().map(|node| &*node.name).collect();
                let mend = format!("begin with one of {}, or with checkpoint", names.join(", "));
                return Err(ConfigError::field(format!("--set {assignment}"), "no such node", mend));
            }
        }
    }
    manifest.checkpoint = serde_path_to_error::deserialize(&network["checkpoint"]).map_err(|error| {
        let field = format!("checkpoint.{}", error.path());
        ConfigError::field(field, error.inner().to_string(), "docs/network.md has an example")
    })?;
    check::checkpoint(&manifest.checkpoint)?;
    Ok(of_nodes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn manifest() -> Manifest {
        let node = |name| json!({ "name": name, "nic": "eth0", "mac": [2, 0, 10, 77, 0, 1] });
        let manifest = json!({
            "format": "ckvmm-network", "version": 1, "name": "c", "lineage": uuid::Uuid::nil(), "incarnation": 0, "cut": 1,
            "created": "2026-11-22T10:24:41Z", "checkpoint": { "dir": "/old", "keep": 3 }, "nodes": [node("n-0"), node("n-1")],
        });
        serde_json::from_value(manifest).unwrap()
    }

    fn apply(set: &[&str], manifest: &mut Manifest) -> Result<Vec<Vec<String>>, String> {
        let set: Vec<String> = set.iter().map(|text| (*text).to_owned()).collect();
        super::apply(&set, manifest).map_err(|error| error.to_string())
    }

    #[test]
    fn each_change_goes_where_it_belongs() {
        let mut manifest = manifest();
        let of_nodes = apply(&["n-1.nics.wan.uplink.tap=tap7", "checkpoint.dir=/new"], &mut manifest).unwrap();
        assert_eq!(of_nodes, [vec![], vec!["nics.wan.uplink.tap=tap7".to_owned()]]);
        assert_eq!(manifest.checkpoint.dir.as_deref(), Some(Path::new("/new")));
        assert_eq!(manifest.checkpoint.keep, Some(3));
    }

    #[test]
    fn what_belongs_nowhere_is_refused_by_name() {
        for (wrong, named) in [
            ("n-2.name=x", "--set n-2.name=x: no such node; begin with one of n-0, n-1"),
            ("vcpus=1", "--set vcpus=1"),
            ("checkpoint.keep=few", "checkpoint.keep"),
            ("checkpoint.keep=0", "checkpoint.keep"),
            ("checkpoint.colour=1", "colour"),
            ("checkpoint.dir", "has no ="),
        ] {
            let error = apply(&[wrong], &mut manifest()).unwrap_err();
            assert!(error.contains(named) && error.contains("; "), "{error}");
        }
    }
}
