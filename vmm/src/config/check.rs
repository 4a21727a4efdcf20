//! What types cannot say: ranges, and relations between fields. Pure, except that nothing here opens anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::error::{ConfigError, shown};
use super::fields::expected;
use super::spec::{CheckpointConfig, DiskFormat, DiskMode, NicConfig, Serial, Uplink, VmConfig};
use super::units::Bytes;

/// The only version of `vm.json` so far.
const VERSION: u64 = 1;
/// Most vCPUs: xAPIC ids are 8 bits wide, 255 is the broadcast.
pub const MAX_VCPUS: u32 = 254;
/// Least guest RAM.
pub const MEMORY_MIN: Bytes = Bytes(16 << 20);
/// Most guest RAM.
pub const MEMORY_MAX: Bytes = Bytes(1 << 40);
/// Guest RAM is a multiple of this.
const MEMORY_UNIT: u64 = 4096;
/// Most disks and network cards together: the transports that the machine has room for, less the entropy device's.
pub const VIRTIO_DEVICES: usize = 16;
/// Longest kernel command line in bytes (Linux's COMMAND_LINE_SIZE on x86, less the closing NUL).
pub const MAX_CMDLINE: usize = 2047;
/// Longest path of a unix socket in bytes (sockaddr_un's 108, less the closing NUL).
pub const SOCKET_PATH_MAX: usize = 107;
/// Longest interface name in bytes (IFNAMSIZ, less the closing NUL).
const INTERFACE_MAX: usize = 15;
/// Longest path, in bytes (PATH_MAX, less the closing NUL).
const PATH_MAX: usize = 4095;
/// Longest time that a field may hold.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Shortest time between two checkpoints.
const EVERY_MIN: Duration = Duration::from_secs(1);

type Checked = Result<(), ConfigError>;

/// `pattern` is the field's name in the table of expectations.
fn wrong(field: &str, pattern: &str, what: impl Into<String>) -> ConfigError {
    ConfigError::field(field, what, format!("give {}", expected(pattern)))
}

/// Refuses another version before its fields are looked at.
pub(crate) fn version(version: Option<&Value>) -> Checked {
    match version {
        Some(Value::Number(n)) if n.as_u64() != Some(VERSION) => {
            let what = format!("{n} is not a version that this ckvmm reads");
            Err(ConfigError::field("version", what, format!("give {VERSION}, or use a newer ckvmm")))
        }
        _ => Ok(()), // absent or ill-typed: serde says so
    }
}

/// Refuses what is no object at all, and lists where objects belong: serde takes a list for a struct, field by field in
/// their order.
pub(crate) fn shapes(root: &Value) -> Checked {
    if !root.is_object() {
        return Err(wrong("configuration", "", format!("{} does not fit", shown(root))));
    }
    let object = |field: &str, pattern: &str, value: &Value| match value {
        Value::Array(_) => Err(wrong(field, pattern, format!("{} does not fit", shown(value)))),
        _ => Ok(()),
    };
    for field in ["kernel", "checkpoint"] {
        object(field, field, &root[field])?;
    }
    for list in ["disks", "nics"] {
        for (i, element) in root[list].as_array().into_iter().flatten().enumerate() {
            object(&format!("{list}.{i}"), &format!("{list}[]"), element)?;
            let passt = &element["uplink"]["passt"];
            object(&format!("{list}.{i}.uplink.passt"), "nics[].uplink.passt", passt)?;
        }
    }
    Ok(())
}

/// All checks that need no absolute path.
pub(super) fn check(config: &VmConfig) -> Checked {
    if !(1..=MAX_VCPUS).contains(&config.vcpus) {
        return Err(wrong("vcpus", "vcpus", format!("{} does not fit", config.vcpus)));
    }
    memory(config.memory)?;
    kernel(config)?;
    let devices = config.disks.len() + config.nics.len();
    if devices > VIRTIO_DEVICES {
        let what = format!("{} disks and {} nics", config.disks.len(), config.nics.len());
        let mend = format!("a VM has room for {VIRTIO_DEVICES} together");
        return Err(ConfigError::field(if config.disks.len() > 1 { "disks" } else { "nics" }, what, mend));
    }
    disks(config)?;
    unique("nics", "id", config.nics.iter().enumerate().map(|(i, n)| (i, n.id.to_string())))?;
    config.nics.iter().try_for_each(nic)?;
    let macs = config.nics.iter().enumerate().map(|(i, n)| (i, n.mac_in(&config.name).to_string()));
    unique("nics", "mac", macs)?;
    let taps = config.nics.iter().enumerate().filter_map(|(i, n)| match &n.uplink {
        Some(Uplink::Tap(name)) => Some((i, name.clone())),
        _ => None,
    });
    unique("nics", "uplink.tap", taps)?;
    if let Serial::File(p) = &config.serial {
        path("serial.file", "serial.file", p)?;
    } else if let Serial::Socket(p) = &config.serial {
        path("serial.socket", "serial.socket", p)?;
    }
    if config.stop_timeout > LONGEST {
        return Err(wrong("stop_timeout", "stop_timeout", "longer than a day"));
    }
    checkpoint(&config.checkpoint)
}

/// Checks of paths after they became absolute.
pub(super) fn absolute_paths(config: &VmConfig) -> Checked {
    if let Serial::Socket(path) = &config.serial {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            let what = format!("{} is {length} bytes long", path.display());
            return Err(wrong("serial.socket", "serial.socket", what));
        }
    }
    // one file under two disks, one of which writes to it, ends in a broken file system
    for (i, a) in config.disks.iter().enumerate() {
        for b in &config.disks[..i] {
            if a.path == b.path && (a.mode == DiskMode::Direct || b.mode == DiskMode::Direct) {
                let what = format!("{} is also the disk {}, and one of them writes to it", a.path.display(), b.id);
                return Err(ConfigError::field(
                    format!("disks.{}.path", a.id),
                    what,
                    "give each disk a file of its own",
                ));
            }
        }
    }
    Ok(())
}

fn memory(memory: Bytes) -> Checked {
    if memory < MEMORY_MIN || memory > MEMORY_MAX || !memory.0.is_multiple_of(MEMORY_UNIT) {
        return Err(wrong("memory", "memory", format!("{memory} does not fit")));
    }
    Ok(())
}

fn kernel(config: &VmConfig) -> Checked {
    path("kernel.image", "kernel.image", &config.kernel.image)?;
    if let Some(initrd) = &config.kernel.initrd {
        path("kernel.initrd", "kernel.initrd", initrd)?;
    }
    let Some(cmdline) = &config.kernel.cmdline else { return Ok(()) };
    if cmdline.len() > MAX_CMDLINE {
        return Err(wrong("kernel.cmdline", "kernel.cmdline", format!("it is {} bytes long", cmdline.len())));
    }
    match cmdline.chars().find(|c| c.is_control()) {
        Some(c) => Err(wrong("kernel.cmdline", "kernel.cmdline", format!("it holds {c:?}"))),
        None => Ok(()),
    }
}

fn disks(config: &VmConfig) -> Checked {
    unique("disks", "id", config.disks.iter().enumerate().map(|(i, d)| (i, d.id.to_string())))?;
    config.disks.iter().try_for_each(|disk| {
        path(&format!("disks.{}.path", disk.id), "disks[].path", &disk.path)?;
        if (disk.mode, disk.format) == (DiskMode::Direct, Some(DiskFormat::Qcow2)) {
            let mend = format!("use \"private\", or a raw image: qemu-img convert -O raw {} FILE", disk.path.display());
            let what = "\"direct\" does not fit a qcow2 file, which is not written in place";
            return Err(ConfigError::field(format!("disks.{}.mode", disk.id), what, mend));
        }
        Ok(())
    })
}

/// No two elements of `list` have the same value of `field`.
fn unique(list: &str, field: &str, values: impl Iterator<Item = (usize, String)>) -> Checked {
    let mut seen = BTreeMap::new();
    for (index, value) in values {
        if let Some(first) = seen.insert(value.clone(), index) {
            let what = format!("{value:?} is also that of {list}.{first}");
            let mend = format!("give each of {list} its own {field}");
            return Err(ConfigError::field(format!("{list}.{index}.{field}"), what, mend));
        }
    }
    Ok(())
}

fn nic(nic: &NicConfig) -> Checked {
    let field = format!("nics.{}.uplink", nic.id);
    match &nic.uplink {
        Some(Uplink::Tap(name)) => {
            let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
            if name.is_empty() || name.len() > INTERFACE_MAX || name == "." || name == ".." || name.contains(bad) {
                let what = format!("{} is no name of an interface", shown(&Value::from(name.as_str())));
                return Err(wrong(&format!("{field}.tap"), "nics[].uplink.tap", what));
            }
            Ok(())
        }
        Some(Uplink::Network) => Ok(()),
        Some(Uplink::Passt(passt)) => {
            for (i, forward) in passt.forward.iter().enumerate() {
                if !is_forward(forward) {
                    let what = format!("{} does not fit", shown(&Value::from(forward.as_str())));
                    return Err(wrong(&format!("{field}.passt.forward.{i}"), "nics[].uplink.passt.forward[]", what));
                }
            }
            Err(wrong(&format!("{field}.passt"), "nics[].uplink", "passt is not there yet"))
        }
        None => Err(wrong(&field, "nics[].uplink", "missing, and this VM is in no network")),
    }
}

fn is_forward(text: &str) -> bool {
    let port = |p: &str| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p != 0);
    text.split_once(':').is_some_and(|(host, guest)| port(host) && port(guest))
}

/// Where checkpoints go and when they are made, of a VM or a network.
pub(crate) fn checkpoint(checkpoint: &CheckpointConfig) -> Checked {
    if let Some(dir) = &checkpoint.dir {
        path("checkpoint.dir", "checkpoint.dir", dir)?;
    }
    if checkpoint.every.is_some_and(|every| !(EVERY_MIN..=LONGEST).contains(&every)) {
        return Err(wrong("checkpoint.every", "checkpoint.every", "out of range"));
    }
    if checkpoint.stop_deadline > LONGEST {
        return Err(wrong("checkpoint.stop_deadline", "checkpoint.stop_deadline", "longer than a day"));
    }
    if checkpoint.keep == Some(0) {
        return Err(wrong("checkpoint.keep", "checkpoint.keep", "0 does not fit"));
    }
    Ok(())
}

fn path(field: &str, pattern: &str, path: &Path) -> Checked {
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.is_empty() {
        return Err(wrong(field, pattern, "\"\" is no path"));
    }
    if bytes.len() > PATH_MAX {
        return Err(wrong(field, pattern, format!("it is {} bytes long", bytes.len())));
    }
    if bytes.iter().any(u8::is_ascii_control) {
        return Err(wrong(field, pattern, "it holds a control character"));
    }
    Ok(())
}
