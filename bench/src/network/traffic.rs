//! Guests that send each other frames at full speed: what a cut finds under way, and what it costs them.
//!
//! How many frames each has sent is read in its memory from outside, so nobody has to answer meanwhile.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    cut::{Cut, of_cuts},
    net::{Net, SETTLE},
};
use crate::{
    report::{heading, mib, ms, row},
    scratch::Scratch,
};

#[allow(dead_code, unreachable_pub, reason = "the guest uses the rest")]
#[path = "../../../guest-images/bare-metal/model.rs"]
mod model;

const CUTS: usize = 10;
/// A figure of throughput.
pub(crate) const BIN: Duration = Duration::from_millis(10);
/// Bins before the request of a checkpoint, and all of them.
pub(crate) const BEFORE: usize = 20;
const BINS: usize = 70;

/// Checkpoints of guests that send.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) guests: usize,
    pub(crate) cuts: Vec<Cut>,
    /// Of one of them: frames that all have sent in each bin of time.
    pub(crate) bins: Vec<f64>,
}

pub(crate) fn measure(quick: bool, scratch: &mut Scratch) -> Vec<Traffic> {
    heading(
        &format!("{CUTS} cuts under full load, frames of 1514 bytes to all others"),
        &[
            "guests",
            "frames a second",
            "in the slowest 10 ms",
            "logged, all cuts",
            "logs MiB",
            "held, all cuts",
            "held at most ms",
            "durable ms",
        ],
    );
    let counts: &[usize] = if quick { &[2, 4] } else { &[2, 4, 6, 8, 10, 12] };
    counts.iter().map(|&guests| measure_one(guests, scratch)).collect()
}

fn measure_one(guests: usize, scratch: &mut Scratch) -> Traffic {
    let mut net = Net::up(guests, 32, "job=net peers={nodes} me={index}", scratch);
    let meters: Vec<Meter> = net.members.iter().map(|member| Meter::of(member.pid())).collect();
    let mut cuts: Vec<Cut> = (1..CUTS).map(|_| net.checkpoint().1).collect();
    thread::sleep(SETTLE);
    let (bins, cut) = around(&meters, || net.checkpoint().1);
    cuts.push(cut);
    let traffic = Traffic { guests, cuts, bins };
    say(&traffic);
    traffic
}

fn say(Traffic { guests, cuts, bins }: &Traffic) {
    let sum = |figure: fn(&Cut) -> u64| cuts.iter().map(figure).sum::<u64>();
    let quiet = bins.iter().take(BEFORE).sum::<f64>() / (BEFORE as f64 * BIN.as_secs_f64());
    row(&[
        guests.to_string(),
        format!("{quiet:.0}"),
        format!("{:.0}", bins.iter().copied().fold(f64::MAX, f64::min)),
        sum(|cut| cut.logged).to_string(),
        mib(sum(|cut| cut.log_bytes) as f64, 2),
        sum(|cut| cut.held).to_string(),
        ms(cuts.iter().map(|cut| cut.apart).fold(0.0, f64::max), 1),
        ms(of_cuts(cuts, |cut| cut.durable), 0),
    ]);
}

/// What a guest says in its memory of the frames that it has sent.
struct Meter {
    memory: File,
    header: u64,
}

impl Meter {
    /// That of the guest of this VMM. Its RAM is the mapping that has the guest's header where it belongs.
    fn of(pid: i32) -> Meter {
        let memory = File::open(format!("/proc/{pid}/mem")).expect("a child's memory can be read");
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a child's mappings can be read");
        let starts = maps.lines().filter_map(|line| u64::from_str_radix(line.split_once('-')?.0, 16).ok());
        let mut headers = starts.filter_map(|start| start.checked_add(model::HEADER_ADDRESS));
        let header = headers.find(|header| {
            let mut magic = [0; 8];
            memory.read_exact_at(&mut magic, *header).is_ok() && magic == model::MAGIC
        });
        Meter { memory, header: header.expect("a guest runs its job") }
    }

    fn sent(&self) -> u64 {
        let mut bytes = [0; 8];
        let at = self.header + std::mem::offset_of!(model::Header, steps) as u64;
        self.memory.read_exact_at(&mut bytes, at).expect("RAM stays where it is");
        u64::from_le_bytes(bytes)
    }
}

/// Does `work` when all bins before it are full; returns the frames of each bin.
fn around<T>(meters: &[Meter], work: impl FnOnce() -> T) -> (Vec<f64>, T) {
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    let (looks, result) = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = Vec::new();
            while !done.load(Ordering::Relaxed) {
                looks.push((begun.elapsed().as_secs_f64(), meters.iter().map(Meter::sent).sum::<u64>() as f64));
                thread::sleep(BIN / 2);
            }
            looks
        });
        // A checkpoint begins only when things have settled.
        thread::sleep((BIN * BEFORE as u32).saturating_sub(SETTLE));
        let result = work();
        thread::sleep((BIN * BINS as u32 + SETTLE).saturating_sub(begun.elapsed()));
        done.store(true, Ordering::Relaxed);
        (watcher.join().expect("looking does not fail"), result)
    });
    let first = SETTLE.saturating_sub(BIN * BEFORE as u32).as_secs_f64();
    let at = |bin: usize| interpolated(&looks, first + bin as f64 * BIN.as_secs_f64());
    ((0..BINS).map(|bin| at(bin + 1) - at(bin)).collect(), result)
}

/// The count at a time between two looks.
fn interpolated(looks: &[(f64, f64)], time: f64) -> f64 {
    let after = looks.partition_point(|(at, _)| *at < time).clamp(1, looks.len() - 1);
    let ((t0, n0), (t1, n1)) = (looks[after - 1], looks[after]);
    n0 + (n1 - n0) * (time - t0) / (t1 - t0)
}
