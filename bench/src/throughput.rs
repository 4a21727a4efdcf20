//! How fast an image is written, and how fast `dd` writes as much to the same file system, in turns.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{
    case::{Case, Method, Place},
    guest::{Guest, SETTLE},
    report::{heading, mib, row},
    sample::median,
    scratch::Scratch,
};

/// How often each of them.
const ROUNDS: usize = 5;

/// Bytes in a second, to the disk and not only to its cache.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Throughput {
    place: Place,
    dd: f64,
    ckvmm: f64,
}

/// Measures each place; the guest works while `dd` writes, as it does while its image is written.
pub(crate) fn measure(touched_mib: u64, scratch: &mut Scratch) -> Vec<Throughput> {
    heading(
        &format!("Writing {touched_mib} MiB, from the request until it is on the disk"),
        &["file system", "dd with fsync MiB/s", "ckvmm MiB/s", "of dd's"],
    );
    [Place::Tmpfs, Place::Disk].map(|place| measure_in(place, touched_mib, scratch)).into()
}

fn measure_in(place: Place, touched_mib: u64, scratch: &mut Scratch) -> Throughput {
    let case = Case { place, ..Case::new(touched_mib, 16) };
    let mut guest = Guest::boot(Method::CkvmmFork, case, scratch);
    let file = scratch.dir(place).join("dd");
    let (dd, ckvmm): (Vec<f64>, Vec<f64>) = (0..ROUNDS)
        .map(|_| {
            // As long as before a checkpoint: pages that were free for a while cost more where the host is a guest itself.
            thread::sleep(SETTLE);
            let dd = dd(&file, touched_mib);
            let sample = guest.checkpoint();
            // Without it the next one is a full one, too.
            fs::remove_dir_all(guest.vm.image()).expect("it was just made");
            (dd, sample.written / sample.durable)
        })
        .unzip();
    let [dd, ckvmm] = [dd, ckvmm].map(median);
    let name = if place == Place::Tmpfs { "tmpfs" } else { "the disk's" };
    row(&[name.to_owned(), mib(dd, 0), mib(ckvmm, 0), format!("{:.0} %", ckvmm / dd * 100.0)]);
    Throughput { place, dd, ckvmm }
}

fn dd(file: &Path, mib: u64) -> f64 {
    let mut command = Command::new("dd");
    command.args(["if=/dev/zero", "bs=1M", "conv=fsync", "status=none", &format!("count={mib}")]);
    command.arg(format!("of={}", file.display())).stdin(Stdio::null());
    let begun = Instant::now();
    let status = command.status().expect("there is dd");
    let taken = begun.elapsed();
    assert!(status.success(), "dd: {status}");
    fs::remove_file(file).expect("dd has written it");
    (mib << 20) as f64 / taken.as_secs_f64()
}
