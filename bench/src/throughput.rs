//! How fast an image is written, and how fast `dd` writes as much to the same file system, in turns.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    case::{Case, Method, Place},
    guest::{Guest, SETTLE},
    report::{heading, mib, row},
    sample::median,
    scratch::Scratch,
};

/// How often each of them; even, for each is the first one in half of them.
const ROUNDS: usize = 8;
const _: () = assert!(ROUNDS.is_multiple_of(2));
/// What a device may take to discard an image.
const DISCARD: Duration = Duration::from_secs(2);

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
    let mut guest = Guest::boot(Method::Ckvmm, case, scratch);
    let file = scratch.dir(place).join("dd");
    let by_dd = || {
        // As long as before a checkpoint: pages that were free for a while cost more where the host is a guest itself.
        thread::sleep(SETTLE);
        let rate = dd(&file, touched_mib);
        forget(place, scratch);
        rate
    };
    let mut by_ckvmm = || {
        let sample = guest.checkpoint();
        // Without it the next one is a full one, too.
        fs::remove_dir_all(guest.vm.image()).expect("it was just made");
        forget(place, scratch);
        sample.written / sample.durable
    };
    let (dd, ckvmm): (Vec<f64>, Vec<f64>) = (0..ROUNDS)
        .map(|round| {
            // Pages come back in the order in which they were given up: what suits one writer does not suit the next.
            match round % 2 {
                0 => (by_dd(), by_ckvmm()),
                _ => {
                    let ckvmm = by_ckvmm();
                    (by_dd(), ckvmm)
                }
            }
        })
        .unzip();
    let [dd, ckvmm] = [dd, ckvmm].map(median);
    let name = match place {
        Place::Tmpfs => "tmpfs",
        Place::Disk => "the disk's",
    };
    row(&[name.to_owned(), mib(dd, 0), mib(ckvmm, 0), format!("{:.0} %", ckvmm / dd * 100.0)]);
    Throughput { place, dd, ckvmm }
}

/// Has a file system do now what removing a file means for it, discarding blocks on the device for one: with its next
/// flush it would, and whoever asks for that would wait for it. The device has time to do it.
fn forget(place: Place, scratch: &Scratch) {
    let dir = File::open(scratch.place(place)).expect("it is the run's own");
    nix::unistd::syncfs(dir).expect("its file system can be flushed");
    if place == Place::Disk {
        thread::sleep(DISCARD);
    }
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
