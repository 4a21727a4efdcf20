//! `vm.json` for tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{network, paths};

/// A VM called `t` that runs the Debian guest's `jobs` from its initramfs: no disk, no network.
pub fn linux(jobs: &str) -> Value {
    json!({
        "version": 1,
        "name": "t",
        "vcpus": 1,
        "memory": "128MiB",
        "kernel": {
            "image": paths::guest("vmlinuz"),
            "initrd": paths::guest("initrd.img"),
            "cmdline": format!("console=ttyS0 quiet panic=-1 ckvmm.job={jobs}"),
        },
        "checkpoint": { "dir": "checkpoints" },
    })
}

/// Adds the Debian guest's disk, and boots from it.
pub fn with_disk(mut config: Value) -> Value {
    config["disks"] = json!([{ "id": "root", "path": paths::guest("root.raw") }]);
    add_to_cmdline(config, "root=/dev/vda rw")
}

/// Adds a network card on the TAP of [`network`].
pub fn with_network(mut config: Value) -> Value {
    config["nics"] = json!([{ "id": "eth0", "mac": "02:00:00:00:00:01", "uplink": { "tap": network::TAP } }]);
    add_to_cmdline(config, &format!("ckvmm.ip={}/24", network::GUEST))
}

/// Adds words to the kernel's command line.
pub fn add_to_cmdline(mut config: Value, words: &str) -> Value {
    let cmdline = format!("{} {words}", config["kernel"]["cmdline"].as_str().unwrap_or_default());
    config["kernel"]["cmdline"] = cmdline.into();
    config
}

/// Writes `vm.json` into `dir` and returns its path.
///
/// # Panics
/// If it cannot be written.
pub fn write(dir: &Path, config: &Value) -> PathBuf {
    let path = dir.join("vm.json");
    fs::write(&path, config.to_string()).expect("the test's directory can be written");
    path
}
