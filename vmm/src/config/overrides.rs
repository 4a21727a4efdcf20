//! `--set PATH=VALUE`: one field of a configuration changed from the command line.

use serde_json::{Map, Value};

use super::error::{ConfigError, nearest};
use super::spec::VmConfig;

/// Deepest path that `--set` follows.
const DEPTH_MAX: usize = 16;

impl VmConfig {
    /// Changes one field: `disks.root.path=/x`, `vcpus=2`, `nics.0.uplink.tap=tap7`.
    ///
    /// A list's element is named by its `id`, else by its index from 0. The value is JSON if it is valid JSON, else a
    /// string. Whether the field exists and takes the value is judged by [`VmConfig::from_value`].
    ///
    /// # Errors
    /// No `=`, an empty part, an element that is not there, a path through something that has no fields.
    pub fn set(root: &mut Value, assignment: &str) -> Result<(), ConfigError> {
        let bad = |what: &str| {
            let shown: String = assignment.chars().take(80).collect();
            ConfigError::field(format!("--set {shown}"), what, "write --set PATH=VALUE, like --set disks.root.path=/x")
        };
        let (path, text) = assignment.split_once('=').ok_or_else(|| bad("has no ="))?;
        let parts: Vec<&str> = path.split('.').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(bad("has an empty part in its path"));
        }
        if parts.len() > DEPTH_MAX {
            return Err(bad("is too deep"));
        }
        let mut place = root;
        for (depth, part) in parts.iter().enumerate() {
            place = step(place, part, &parts[..depth].join("."))?;
        }
        *place = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.into()));
        Ok(())
    }
}

/// The field `name` of `place`, made if it is absent; `path` is where `place` is, for errors.
fn step<'a>(place: &'a mut Value, name: &str, path: &str) -> Result<&'a mut Value, ConfigError> {
    if place.is_null() {
        *place = Value::Object(Map::new());
    }
    match place {
        Value::Object(fields) => Ok(fields.entry(name).or_insert(Value::Null)),
        Value::Array(list) => {
            let ids: Vec<&str> = list.iter().filter_map(|e| e.get("id")?.as_str()).collect();
            let by_id = list.iter().position(|e| e.get("id").and_then(Value::as_str) == Some(name));
            let by_index = || name.parse().ok().filter(|&i: &usize| i < list.len());
            let Some(index) = by_id.or_else(by_index) else {
                let mend = match (nearest(name, &ids), ids.is_empty()) {
                    (Some(near), _) => format!("did you mean {near:?}?"),
                    (None, true) => "it is empty".into(),
                    (None, false) => format!("use one of {}", ids.join(", ")),
                };
                return Err(ConfigError::field(format!("--set {path}.{name}"), "no such element", mend));
            };
            Ok(&mut list[index])
        }
        // "serial": "stdio" becomes { "file": .. }
        _ if path == "serial" => {
            *place = Value::Object(Map::new());
            step(place, name, path)
        }
        _ => {
            let what = format!("{path} is a plain value and has no field {name:?}");
            Err(ConfigError::field(format!("--set {path}.{name}"), what, format!("set {path} itself")))
        }
    }
}
