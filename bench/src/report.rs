//! What was measured: said row by row while it is, and kept as JSON.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    case::{Case, Method},
    clones::Clones,
    restores::Restores,
    sample::{Noise, Sample},
    throughput::Throughput,
};

/// Where, when and by whom it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    /// Absent: none.
    pub(crate) qemu: Option<String>,
}

/// All figures of a run, in seconds and bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) checkpoints: Vec<Checkpoints>,
    pub(crate) throughput: Vec<Throughput>,
    pub(crate) restores: Vec<Restores>,
    pub(crate) clones: Vec<Clones>,
}

/// Checkpoints of one guest.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Checkpoints {
    pub(crate) case: Case,
    pub(crate) method: Method,
    pub(crate) noise: Noise,
    /// One after the other.
    pub(crate) samples: Vec<Sample>,
    /// The same of a guest that was restored from the last of them.
    pub(crate) restored: Vec<Sample>,
    /// The most memory during a checkpoint, beside what there was before. Absent: there was one checkpoint only.
    pub(crate) peak_memory: Option<u64>,
    /// The VMM's own memory: before the first checkpoint, or after the last one if that is more.
    pub(crate) resident: u64,
}

impl Machine {
    pub(crate) fn this(qemu: Option<String>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: cpu.map_or_else(String::new, |(_, name)| name.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            qemu,
        }
    }
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Report { machine, checkpoints: vec![], throughput: vec![], restores: vec![], clones: vec![] }
    }
}

/// The figures of an earlier run.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Keeps figures for another one.
pub(crate) fn write(figures: &impl Serialize, path: &Path) {
    let mut text = serde_json::to_string_pretty(figures).expect("figures can be written down");
    text.push('\n');
    fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Begins a table.
pub(crate) fn heading(title: &str, columns: &[&str]) {
    println!("\n{title}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
}

/// A row of it.
pub(crate) fn row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

/// Milliseconds with so many decimals.
pub(crate) fn ms(seconds: f64, decimals: usize) -> String {
    format!("{:.decimals$}", seconds * 1e3)
}

/// Bytes in MiB with so many decimals.
pub(crate) fn mib(bytes: f64, decimals: usize) -> String {
    format!("{:.decimals$}", bytes / f64::from(1 << 20))
}
