//! `vm.json`: what a VM is made of.
//!
//! ```json
//! {
//!   "version": 1,
//!   "name": "node0",
//!   "vcpus": 2,
//!   "memory": "1GiB",
//!   "kernel": { "image": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 root=/dev/vda rw" },
//!   "disks": [ { "id": "root", "path": "root.raw", "mode": "private" } ],
//!   "nics":  [ { "id": "eth0", "uplink": { "tap": "tap0" } } ],
//!   "serial": "stdio",
//!   "checkpoint": { "dir": "checkpoints" }
//! }
//! ```
//!
//! Invariants:
//! - a [`VmConfig`] has passed every check that needs no file, socket or TAP to be opened (`check.rs`);
//!   those are made by [`InputFile`] and by whoever opens the thing;
//! - every path in it is absolute and valid UTF-8, so `to_value` cannot fail and a manifest can be read anywhere;
//! - `from_value(to_value(c)) == c`;
//! - each field is described once, in `fields.rs`: the mend in an error comes from there.

pub(crate) mod check;
mod error;
mod fields;
mod files;
mod jsonc;
mod load;
mod names;
mod overrides;
mod spec;
mod units;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use check::{MAX_CMDLINE, MAX_VCPUS, MEMORY_MAX, MEMORY_MIN, SOCKET_PATH_MAX, VIRTIO_DEVICES};
pub use error::ConfigError;
pub use files::{INITRD_MAX, InputFile, KERNEL_MAX};
pub use load::CONFIG_MAX;
pub use names::{Id, MacAddr};
pub use spec::{
    CheckpointConfig, CheckpointMode, CpuModel, DiskConfig, DiskFormat, DiskMode, KernelConfig, NicConfig, Passt,
    Protocol, Serial, Uplink, VmConfig,
};
pub use units::Bytes;
pub(crate) use units::parse_duration;
