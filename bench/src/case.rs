//! What is measured: what a guest does, where its image goes, and who takes it.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// What a guest does, and what is around it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Case {
    /// RAM that holds data.
    pub(crate) touched_mib: u64,
    /// RAM that the guest visits all the time, a page after the other.
    pub(crate) hot_mib: u64,
    /// CPUs that do so.
    pub(crate) vcpus: u32,
    /// How it is visited.
    pub(crate) sweep: Sweep,
    /// Where the image goes.
    pub(crate) place: Place,
    /// Whether somebody else writes to that file system meanwhile.
    pub(crate) busy: bool,
}

/// What a guest does with its hot set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sweep {
    Read,
    Write,
}

/// Where images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// Nothing waits for a disk there.
    Tmpfs,
    /// The file system that the project is on.
    Disk,
}

/// Who takes a checkpoint, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// As it does it by itself.
    Ckvmm,
    CkvmmFork,
    CkvmmStop,
    /// `stop`, `migrate` to a file, `cont`.
    QemuStop,
    /// `migrate` to a file with the capability `background-snapshot`: pages are write-protected and saved before the
    /// guest's first write to them.
    QemuBackground,
}

impl Case {
    /// What others differ from: one vCPU writes, the image goes to memory.
    pub(crate) const fn new(touched_mib: u64, hot_mib: u64) -> Self {
        Case { touched_mib, hot_mib, vcpus: 1, sweep: Sweep::Write, place: Place::Tmpfs, busy: false }
    }

    /// RAM of its VM: what it fills, and some for the guest's own code and page tables.
    pub(crate) fn ram_mib(&self) -> u64 {
        self.touched_mib + 64
    }

    /// The guest's command line. It looks for questions every 0.8 ms, so that the answer tells when it runs.
    pub(crate) fn command_line(&self) -> String {
        /// What fits into RAM below the gap under 4 GiB: more is filled in two pieces.
        const LOW_MIB: u64 = 3048;
        let Case { touched_mib, hot_mib, .. } = self;
        let how = if self.sweep == Sweep::Read { "read" } else { "write" };
        let arena = if *touched_mib <= LOW_MIB {
            format!("mib={touched_mib}")
        } else {
            format!("mib={} at=high more={LOW_MIB}", touched_mib - LOW_MIB)
        };
        format!("job=sweep how={how} {arena} hot={hot_mib} cpus={} poll=2097152", self.vcpus)
    }

    /// What it differs in from [`Case::new`].
    pub(crate) fn differs_in(&self) -> Vec<&'static str> {
        [
            (self.vcpus > 1, "2 vCPUs"),
            (self.sweep == Sweep::Read, "reads"),
            (self.place == Place::Disk, "image on the disk"),
            (self.busy, "which is busy"),
        ]
        .into_iter()
        .filter_map(|(differs, how)| differs.then_some(how))
        .collect()
    }
}

impl Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} MiB", size(self.touched_mib), self.hot_mib)?;
        self.differs_in().iter().try_for_each(|how| write!(f, ", {how}"))
    }
}

/// A size in MiB, or GiB where that is shorter.
pub(crate) fn size(mib: u64) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

impl Method {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Method::Ckvmm => "ckvmm",
            Method::CkvmmFork => "ckvmm fork",
            Method::CkvmmStop => "ckvmm stop",
            Method::QemuStop => "QEMU stop",
            Method::QemuBackground => "QEMU background",
        }
    }

    /// Whether the guest goes on while its image is written.
    pub(crate) fn goes_on(self) -> bool {
        matches!(self, Method::Ckvmm | Method::CkvmmFork | Method::QemuBackground)
    }

    pub(crate) fn is_qemu(self) -> bool {
        matches!(self, Method::QemuStop | Method::QemuBackground)
    }
}
