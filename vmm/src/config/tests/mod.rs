//! Every field of `vm.json` bad in every way that we could think of; each is one line that names it and the mend.

mod files;
mod rules;
mod set;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

/// A valid configuration with every field.
fn full() -> Value {
    json!({
        "$schema": "vm.schema.json",
        "version": 1,
        "name": "node0",
        "vcpus": 2,
        "memory": "1GiB",
        "cpu": "host",
        "kernel": { "image": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0", "protocol": "pvh" },
        "disks": [
            { "id": "root", "path": "root.raw", "format": "raw", "mode": "private", "capture": true },
            { "id": "data", "path": "/dev/sdb", "mode": "direct" }
        ],
        "nics": [ { "id": "eth0", "mac": "02:00:00:00:00:01", "uplink": { "tap": "tap0" } } ],
        "serial": "stdio",
        "stop_timeout": "1m",
        "checkpoint": { "dir": "checkpoints", "mode": "auto", "every": "60s", "keep": 3, "stop_deadline": "25s" }
    })
}

fn parse(value: Value) -> Result<VmConfig, ConfigError> {
    VmConfig::from_value(value, Path::new("/vms"))
}

/// The error's line after `pointer` was set to `value` in a valid configuration.
fn error_with(pointer: &str, value: Value) -> String {
    let mut config = full();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Object(object) => drop(object.insert(name.into(), value)),
        Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
        _ => unreachable!(),
    }
    parse(config).expect_err("it should be refused").to_string()
}

#[track_caller]
fn refused(pointer: &str, value: Value, line: &str) {
    let error = error_with(pointer, value);
    assert_eq!(error, line);
    assert!(!error.contains('\n'));
}

#[test]
fn a_full_configuration_is_read() {
    let config = parse(full()).unwrap();
    assert_eq!(config.name.to_string(), "node0");
    assert_eq!(config.memory, Bytes(1 << 30));
    assert_eq!(config.kernel.image, PathBuf::from("/vms/vmlinuz"));
    assert_eq!(config.kernel.protocol, Protocol::Pvh);
    assert_eq!(config.disks[1].path, PathBuf::from("/dev/sdb"));
    assert_eq!(config.disks[1].mode, DiskMode::Direct);
    assert!(config.disks[1].is_captured());
    assert_eq!(config.nics[0].mac, Some(MacAddr([2, 0, 0, 0, 0, 1])));
    assert_eq!(config.stop_timeout.as_secs(), 60);
    assert_eq!(config.checkpoint.dir, Some(PathBuf::from("/vms/checkpoints")));
    assert_eq!(config.checkpoint.every.unwrap().as_secs(), 60);
    assert_eq!(VmConfig::from_value(config.to_value(), Path::new("/elsewhere")).unwrap(), config);
}

#[test]
fn the_least_configuration_has_defaults() {
    let config = parse(json!({ "version": 1, "name": "a", "kernel": { "image": "k" } })).unwrap();
    assert_eq!((config.vcpus, config.memory), (1, Bytes(512 << 20)));
    assert_eq!((config.serial, config.stop_timeout.as_secs()), (Serial::Stdio, 30));
    assert_eq!(config.checkpoint, CheckpointConfig::default());
    assert_eq!(config.kernel.protocol, Protocol::Auto);
}

#[test]
fn every_field_refuses_what_it_does_not_take() {
    // of any type, what is not this field's type; the table of fields says what it takes
    let wrong = [json!(null), json!(true), json!(-1), json!(0.5), json!("\u{0}?"), json!([[]]), json!({ "?": 1 })];
    for (pattern, takes) in fields::FIELDS.iter().filter(|(pattern, _)| !pattern.is_empty()) {
        let pointer = format!("/{}", pattern.replace("[]", "/0").replace('.', "/"));
        for value in &wrong {
            let mut config = full();
            make_room(&mut config, pattern);
            let place = config.pointer_mut(&pointer).unwrap_or_else(|| panic!("{pattern} is not in the full config"));
            *place = value.clone();
            let nothing = value.is_null()
                && matches!(
                    *pattern,
                    "kernel.initrd"
                        | "kernel.cmdline"
                        | "disks[].format"
                        | "disks[].capture"
                        | "nics[].mac"
                        | "checkpoint.dir"
                        | "checkpoint.every"
                        | "checkpoint.keep"
                );
            let fits = nothing || (*pattern == "disks[].capture" && value.is_boolean());
            match parse(config) {
                Ok(_) => assert!(fits, "{pattern} takes {value}"),
                Err(e) => {
                    let line = e.to_string();
                    let name = pattern.split(['.', '[']).next().unwrap();
                    assert!(!fits, "{line}");
                    assert!(line.starts_with(name), "{line:?} does not name {pattern}");
                    assert!(!line.contains('\n') && line.contains("; "), "{line:?}");
                    let unknown = line.contains("no such field") || line.contains("missing");
                    let not_yet = line.contains("passt");
                    let inside = takes.starts_with("a list"); // the error is an element's
                    assert!(unknown || not_yet || inside || line.contains(takes), "{line:?} does not say {takes:?}");
                }
            }
        }
    }
}

/// Puts a value where the full configuration has another variant.
fn make_room(config: &mut Value, pattern: &str) {
    if pattern.starts_with("serial.") {
        config["serial"] = json!({ pattern.strip_prefix("serial.").unwrap(): "x" });
    }
    if pattern.starts_with("nics[].uplink.passt") {
        config["nics"][0]["uplink"] = json!({ "passt": { "forward": ["1:1"] } });
    }
}

#[test]
fn every_field_has_words() {
    fn walk(value: &Value, pattern: &str) {
        assert!(fields::FIELDS.iter().any(|(name, _)| *name == pattern), "{pattern:?} is not in fields.rs");
        match value {
            Value::Object(o) => o.iter().for_each(|(name, value)| {
                walk(value, &if pattern.is_empty() { name.clone() } else { format!("{pattern}.{name}") });
            }),
            Value::Array(list) => list.iter().for_each(|value| walk(value, &format!("{pattern}[]"))),
            _ => {}
        }
    }
    walk(&parse(full()).unwrap().to_value(), "");
}

#[test]
fn numbers_have_ranges() {
    let vcpus = "give a whole number from 1 to 254";
    refused("/vcpus", json!(0), &format!("vcpus: 0 does not fit; {vcpus}"));
    refused("/vcpus", json!(1000), &format!("vcpus: 1000 does not fit; {vcpus}"));
    refused("/vcpus", json!("two"), &format!("vcpus: \"two\" does not fit; {vcpus}"));
    refused("/vcpus", json!(1u64 << 40), &format!("vcpus: 1099511627776 does not fit; {vcpus}"));
    let memory = "give a size from \"16MiB\" to \"1024GiB\", a multiple of 4KiB";
    refused("/memory", json!(0), &format!("memory: 0 bytes does not fit; {memory}"));
    refused("/memory", json!(1), &format!("memory: 1 bytes does not fit; {memory}"));
    refused("/memory", json!("1B"), &format!("memory: 1 bytes does not fit; {memory}"));
    refused("/memory", json!((1u64 << 30) + 1), &format!("memory: 1073741825 bytes does not fit; {memory}"));
    refused("/memory", json!("1048576GiB"), &format!("memory: 1024TiB does not fit; {memory}"));
    refused("/memory", json!(1u64 << 50), &format!("memory: 1024TiB does not fit; {memory}"));
    refused("/memory", json!("1GB"), &format!("memory: \"1GB\" is not a whole number of KiB, MiB or GiB; {memory}"));
    refused("/memory", json!("99999999999GiB"), &format!("memory: \"99999999999GiB\" is more than 16 EiB; {memory}"));
    refused("/memory", json!(-1), &format!("memory: -1 does not fit; {memory}"));
    refused("/checkpoint/keep", json!(0), "checkpoint.keep: 0 does not fit; give a whole number from 1 up");
    let deadline = "checkpoint.stop_deadline: longer than a day; give a time like \"30s\" or \"2m\", at most \"24h\"";
    refused("/checkpoint/stop_deadline", json!("25h"), deadline);
    for ok in ["16MiB", "1TiB", "3GiB", "16388KiB", "1024 MiB"] {
        let mut config = full();
        config["memory"] = json!(ok);
        parse(config).unwrap();
    }
}

#[test]
fn unknown_names_have_a_nearest() {
    refused("/vcpu", json!(1), "vcpu: no such field; did you mean \"vcpus\"?");
    refused("/kernel/cmd", json!("x"), "kernel.cmd: no such field; did you mean \"cmdline\"?");
    refused(
        "/disks/0/readonly",
        json!(true),
        "disks.root.readonly: no such field; take it out, or use one of id, path, format, mode, capture",
    );
    refused("/disks/0/Path", json!("x"), "disks.root.Path: no such field; did you mean \"path\"?");
    refused("/checkpoint/evry", json!("x"), "checkpoint.evry: no such field; did you mean \"every\"?");
    let modes = "give \"private\", \"direct\" or \"read-only\"";
    refused(
        "/disks/0/mode",
        json!("readonly"),
        &format!("disks.root.mode: \"readonly\" does not fit; did you mean \"read-only\"? {modes}"),
    );
    refused("/disks/0/mode", json!("rw"), &format!("disks.root.mode: \"rw\" does not fit; {modes}"));
    refused(
        "/serial",
        json!("stdoi"),
        "serial: \"stdoi\" does not fit; did you mean \"stdio\"? give \"stdio\", \"none\", { \"file\": PATH } or { \"socket\": PATH }",
    );
    // names that look like serde's own words
    refused(
        "/a` b, expected `c",
        json!(1),
        "a` b, expected `c: no such field; take it out, or use one of version, name, vcpus, memory, cpu, kernel, disks, nics, serial, stop_timeout, checkpoint",
    );
}

#[test]
fn version_comes_first() {
    let two = json!({ "version": 2, "cluster": {} });
    assert_eq!(
        parse(two).unwrap_err().to_string(),
        "version: 2 is not a version that this ckvmm reads; give 1, or use a newer ckvmm"
    );
    assert_eq!(parse(json!({ "name": "a" })).unwrap_err().to_string(), "version: missing; give 1");
    assert_eq!(parse(json!({ "version": "1" })).unwrap_err().to_string(), "version: \"1\" does not fit; give 1");
}

#[test]
fn derived_addresses_are_stable_and_local() {
    let mac = MacAddr::derived("node0", "eth0");
    assert_eq!(mac.to_string(), MacAddr::derived("node0", "eth0").to_string());
    assert_ne!(mac, MacAddr::derived("node1", "eth0"));
    assert_ne!(mac, MacAddr::derived("node0", "eth1"));
    assert_eq!(mac.0[0], 2);
    assert_eq!(mac.to_string().parse(), Ok(mac));
}
