//! What a checkpoint of a network says of itself.

use std::{fs, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sample::median;

/// Seconds and bytes, from the request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cut {
    /// Until it is on the disk.
    pub(crate) durable: f64,
    /// Until every guest runs again.
    pub(crate) all_run: f64,
    /// From the first guest's cut to the last's: no frame is held for longer.
    pub(crate) apart: f64,
    /// For how long each guest stood still.
    pub(crate) pauses: Vec<f64>,
    /// What of that its VMM was at work.
    pub(crate) at_work: Vec<f64>,
    /// Packets that were held.
    pub(crate) held: u64,
    /// Frames that were under way, and the files that they are in.
    pub(crate) logged: u64,
    pub(crate) log_bytes: u64,
}

impl Cut {
    /// That of the checkpoint `dir`; `held` counts what was held so far.
    pub(crate) fn read(dir: &Path, asked: Timestamp, durable: f64, held: &mut u64) -> Cut {
        let manifest = json(&dir.join("manifest.json"));
        let nodes = || manifest["nodes"].as_array().expect("a manifest lists nodes").iter();
        let sum = |field: &str| nodes().filter_map(|node| node["part"][field].as_u64()).sum::<u64>();
        let seconds = |field: &str| -> Vec<f64> {
            nodes().filter_map(|node| Some(node["part"][field].as_f64()? / 1e6)).collect()
        };
        let created = nodes().filter_map(|node| node["part"]["created"].as_str()?.parse::<Timestamp>().ok());
        let cuts: Vec<f64> = created.map(|at| asked.duration_until(at).as_secs_f64()).collect();
        let pauses = seconds("pause_us");
        let first = cuts.iter().copied().fold(f64::MAX, f64::min);
        let last = cuts.iter().copied().fold(0.0, f64::max);
        let log = |node: &Value| {
            let manifest = json(&dir.join(node["name"].as_str()?).join("manifest.json"));
            let files = manifest["files"].as_object()?;
            let logs = files.iter().filter(|(name, _)| name.starts_with("network/"));
            Some(logs.filter_map(|(_, file)| file["bytes"].as_u64()).sum::<u64>())
        };
        let before = std::mem::replace(held, sum("held_packets"));
        Cut {
            durable,
            // A guest runs again before its pause has passed once more since its cut, which is in the middle of it.
            all_run: cuts.iter().zip(&pauses).map(|(cut, pause)| cut + pause).fold(0.0, f64::max),
            apart: last - first,
            pauses,
            at_work: seconds("pause_cpu_us"),
            held: *held - before,
            logged: sum("logged_frames"),
            log_bytes: nodes().filter_map(log).sum(),
        }
    }
}

/// The median over cuts.
pub(crate) fn of_cuts(cuts: &[Cut], figure: impl Fn(&Cut) -> f64) -> f64 {
    median(cuts.iter().map(figure))
}

/// The median over all VMs of all cuts.
pub(crate) fn of_vms(cuts: &[Cut], figure: impl Fn(&Cut) -> &Vec<f64>) -> f64 {
    median(cuts.iter().flat_map(|cut| figure(cut).iter().copied()))
}

fn json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
