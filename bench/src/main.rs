//! What checkpoints and restores cost, as the guest sees it: `make bench`.
//!
//! The guest is our own (guest-images/bare-metal), on one vCPU that never idles: it writes the next eight bytes of its
//! hot set over and over, and keeps the longest gap between two looks at its TSC. A pause that it does not see is none;
//! what the VMM says of its pause stands beside it.
//!
//! Figures of one run are comparable with each other only: the noise of the machine stands above them.

mod guest;

use std::time::Duration;

use guest::{Case, Guest, Sample};

const CASES: [Case; 6] = [
    Case { touched_mib: 512, hot_mib: 16, mode: "fork" },
    Case { touched_mib: 512, hot_mib: 256, mode: "fork" },
    Case { touched_mib: 2048, hot_mib: 16, mode: "fork" },
    Case { touched_mib: 2048, hot_mib: 256, mode: "fork" },
    Case { touched_mib: 512, hot_mib: 16, mode: "stop" },
    Case { touched_mib: 2048, hot_mib: 256, mode: "stop" },
];
/// Checkpoints of one guest, one after the other.
const CHECKPOINTS: usize = 10;
/// Checkpoints of a restored guest.
const AFTER_RESTORE: usize = 3;
/// Restores of one checkpoint.
const RESTORES: usize = 9;

fn main() {
    println!("Checkpoints, image on {}\n", guest::place().display());
    println!(
        "| RAM touched, hot set | mode | checkpoint | longest gap ms | work lost ms | durable ms | pause ms as said |"
    );
    println!("|---|---|---|---|---|---|---|");
    for case in CASES {
        checkpoints(case);
    }
    println!("\nRestore, from exec to the guest's first unit of work\n");
    println!("| RAM touched | median ms | least ms |");
    println!("|---|---|---|");
    for touched_mib in [512, 1024] {
        restores(Case { touched_mib, hot_mib: 16, mode: "fork" });
    }
}

fn checkpoints(case: Case) {
    let mut guest = Guest::boot(case);
    let noise = guest.calibrate();
    let what = format!("{} MiB, {} MiB", case.touched_mib, case.hot_mib);
    let row = |which: &str, sample: &Sample| {
        let Sample { gap, lost, durable, said } = sample;
        let [gap, lost, durable, said] = [gap, lost, durable, said].map(|value| value * 1000.0);
        println!("| {what} | {} | {which} | {gap:.2} | {lost:.0} | {durable:.0} | {said:.2} |", case.mode);
    };
    println!("| {what} | {} | none: the noise | {:.2} | ± {:.0} | | |", case.mode, noise.gap * 1e3, noise.lost * 1e3);
    let samples: Vec<Sample> = (0..CHECKPOINTS).map(|_| guest.checkpoint()).collect();
    row("first", &samples[0]);
    row("median", &median(&samples));
    row("tenth", &samples[CHECKPOINTS - 1]);
    guest.restart_from_checkpoint();
    let samples: Vec<Sample> = (0..AFTER_RESTORE).map(|_| guest.checkpoint()).collect();
    row("first of the restored", &samples[0]);
    row("third of the restored", &samples[AFTER_RESTORE - 1]);
}

fn restores(case: Case) {
    let mut guest = Guest::boot(case);
    guest.calibrate();
    guest.checkpoint();
    let mut times: Vec<Duration> = (0..RESTORES).map(|_| guest.restart_from_checkpoint()).collect();
    times.sort();
    let [median, least] = [times[RESTORES / 2], times[0]].map(|time| time.as_secs_f64() * 1000.0);
    println!("| {} MiB | {median:.1} | {least:.1} |", case.touched_mib);
}

/// Of each figure its own median.
fn median(samples: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| {
        let mut figures: Vec<f64> = samples.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Sample { gap: of(|s| s.gap), lost: of(|s| s.lost), durable: of(|s| s.durable), said: of(|s| s.said) }
}
