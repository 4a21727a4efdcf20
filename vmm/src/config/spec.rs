//! The types that *are* `vm.json`. Ranges and relations between fields are in `check.rs`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::names::{Id, MacAddr};
use super::units::{self, Bytes};

/// One VM, as `vm.json` describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Version of this format: 1.
    pub version: u32,
    /// The VM's name; its API socket and its state directory are called so.
    pub name: Id,
    /// Number of virtual CPUs, 1 to 254.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Guest RAM, a multiple of 4 KiB.
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// What the guest's CPUs look like.
    #[serde(default)]
    pub cpu: CpuModel,
    /// What is loaded into the guest's RAM at boot.
    pub kernel: KernelConfig,
    /// Disks in the order in which the guest numbers them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network cards in the order in which the guest numbers them.
    #[serde(default)]
    pub nics: Vec<NicConfig>,
    /// Where the first serial port goes.
    #[serde(default)]
    pub serial: Serial,
    /// How long the guest has to power off after the power button, before it is ended.
    #[serde(default = "default_stop_timeout", with = "units::duration")]
    pub stop_timeout: Duration,
    /// Where checkpoints go, and how they are made.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
}

fn one() -> u32 {
    1
}

fn default_memory() -> Bytes {
    Bytes(512 << 20)
}

fn default_stop_timeout() -> Duration {
    Duration::from_secs(30)
}

/// The CPU that the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// Everything that KVM offers of the host's CPU.
    #[default]
    Host,
}

/// What is loaded into the guest's RAM at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelConfig {
    /// bzImage, ELF vmlinux or PVH ELF.
    pub image: PathBuf,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// How an ELF kernel is entered.
    #[serde(default)]
    pub protocol: Protocol,
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// PVH if the image is an ELF with a PVH note, else the Linux 64-bit protocol.
    #[default]
    Auto,
    /// The Linux 64-bit boot protocol (kernel `Documentation/arch/x86/boot.rst`).
    Linux,
    /// The PVH entry point of the image's ELF note.
    Pvh,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its name here, in a checkpoint and as the virtio serial number.
    pub id: Id,
    /// A raw image, a block device or a qcow2 file.
    pub path: PathBuf,
    /// What the file is; absent: raw, and a file that looks like a qcow2 file is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Who sees what the guest writes.
    #[serde(default)]
    pub mode: DiskMode,
    /// Whether a checkpoint holds its contents; absent: if the guest can write. Without, a restore opens `path` as it
    /// then is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<bool>,
}

impl DiskConfig {
    /// Whether a checkpoint holds its contents.
    #[must_use]
    pub fn is_captured(&self) -> bool {
        self.capture.unwrap_or(self.mode != DiskMode::ReadOnly)
    }
}

/// What the file of a disk is. Only somebody who knows can say: what a guest has written looks like anything it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Sector after sector.
    Raw,
    /// QEMU's, perhaps with backing files.
    Qcow2,
}

/// Who sees what the guest writes to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMode {
    /// The file is never written; the guest writes to a working copy in the state directory.
    #[default]
    Private,
    /// The file is written in place, under a lock.
    Direct,
    /// The guest cannot write.
    ReadOnly,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// Its name here and in a checkpoint.
    pub id: Id,
    /// Its MAC address; absent: derived from the names of VM and card, see [`NicConfig::mac_in`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// What it is plugged into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<Uplink>,
}

impl VmConfig {
    /// The same with every MAC address written down: a restored VM that is given another name keeps its cards.
    #[must_use]
    pub fn with_mac_addresses(mut self) -> Self {
        for nic in &mut self.nics {
            nic.mac = Some(nic.mac_in(&self.name));
        }
        self
    }
}

impl NicConfig {
    /// The card's MAC address in the VM `vm`: the one given, else one that depends on nothing but the two names.
    #[must_use]
    pub fn mac_in(&self, vm: &Id) -> MacAddr {
        self.mac.unwrap_or_else(|| MacAddr::derived(vm, &self.id))
    }
}

/// What a network card is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Uplink {
    /// A TAP interface of the host, which exists already.
    Tap(String),
    /// The network of VMs that its supervisor has made.
    Network,
    /// The host's network through passt, without root.
    Passt(Passt),
}

/// Settings of a passt uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passt {
    /// `"HOST-PORT:GUEST-PORT"`, TCP.
    #[serde(default)]
    pub forward: Vec<String>,
}

/// Where the first serial port goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Serial {
    /// The terminal or the pipes that ckvmm was started with.
    #[default]
    Stdio,
    /// Nowhere.
    None,
    /// Appended to a file.
    File(PathBuf),
    /// A unix socket that ckvmm listens on.
    Socket(PathBuf),
}

/// Where checkpoints go, and how they are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// The store; absent: `checkpoints/` in the VM's state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// How the guest's RAM is captured.
    #[serde(default)]
    pub mode: CheckpointMode,
    /// How often one is made without being asked for.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "units::optional_duration")]
    pub every: Option<Duration>,
    /// How many are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// How long whoever asks for a checkpoint and the end waits for it.
    #[serde(default = "default_stop_deadline", with = "units::duration")]
    pub stop_deadline: Duration,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        let (dir, mode, every, keep) = Default::default();
        CheckpointConfig { dir, mode, every, keep, stop_deadline: default_stop_deadline() }
    }
}

/// As long as batch schedulers wait after their first signal, unless told otherwise.
fn default_stop_deadline() -> Duration {
    Duration::from_secs(30)
}

/// How the guest's RAM is captured.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointMode {
    /// The best that this host can do.
    #[default]
    Auto,
    /// The guest goes on, its RAM is protected, and what it is about to change is copied first.
    Protect,
    /// The guest goes on while a forked copy of the process writes.
    Fork,
    /// The guest stands still until all is written.
    Stop,
}
