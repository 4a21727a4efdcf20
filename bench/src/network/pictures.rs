//! Which figures of a network become pictures.

use std::{fs, path::Path};

use super::{
    Figures,
    cut::{Cut, of_cuts, of_vms},
    pauses::Pauses,
    traffic::{BEFORE, BIN, Traffic},
};
use crate::plot::{Drawn, Lines};

/// Draws all as files in `dir`.
pub(super) fn draw(figures: &Figures, dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let drawn = [
        by_guests(&figures.pauses, &dir.join("network-pauses.svg")),
        throughput(figures, &dir.join("network-throughput.svg")),
        held(&figures.traffic, &dir.join("network-held.svg")),
        logs(&figures.traffic, &dir.join("network-logs.svg")),
    ];
    drawn.into_iter().for_each(|drawn| drawn.unwrap_or_else(|error| panic!("{}: {error}", dir.display())));
}

fn by_guests(pauses: &[Pauses], file: &Path) -> Drawn {
    let line = |name: &str, all: bool, figure: &dyn Fn(&[Cut]) -> f64| {
        let points = pauses.iter().filter(|pauses| pauses.all == all);
        (name.to_owned(), points.map(|pauses| (pauses.running as f64, figure(&pauses.cuts) * 1e3)).collect())
    };
    let lines = vec![
        line("all are cut: durable", true, &|cuts| of_cuts(cuts, |cut| cut.durable)),
        line("all run again", true, &|cuts| of_cuts(cuts, |cut| cut.all_run)),
        line("a guest's pause", true, &|cuts| of_vms(cuts, |cut| &cut.pauses)),
        line("its VMM at work", true, &|cuts| of_vms(cuts, |cut| &cut.at_work)),
        line("one is cut: its pause", false, &|cuts| of_vms(cuts, |cut| &cut.pauses)),
        line("its VMM at work", false, &|cuts| of_vms(cuts, |cut| &cut.at_work)),
    ];
    Lines { title: "Checkpoints by the number of guests, medians", below: "guests that run", unit: "ms", lines }
        .draw(file)
}

fn throughput(figures: &Figures, file: &Path) -> Drawn {
    let at = |bin: usize| (bin as f64 + 0.5 - BEFORE as f64) * BIN.as_secs_f64() * 1e3;
    let lines = figures.traffic.iter().map(|traffic| {
        let points = traffic.bins.iter().enumerate().map(|(bin, frames)| (at(bin), *frames));
        (format!("{} guests", traffic.guests), points.collect())
    });
    let lines = lines.collect();
    let below = "ms after a checkpoint was asked for";
    Lines { title: "Frames that all guests send, in 10 ms", below, unit: "frames", lines }.draw(file)
}

fn held(traffic: &[Traffic], file: &Path) -> Drawn {
    let lines = vec![
        line(traffic, "the longest of all cuts", |cuts| cuts.iter().map(|cut| cut.apart).fold(0.0, f64::max) * 1e3),
        line(traffic, "median", |cuts| of_cuts(cuts, |cut| cut.apart) * 1e3),
    ];
    let title = "For how long a frame can be held, at full load";
    Lines { title, below: "guests that send", unit: "ms", lines }.draw(file)
}

fn logs(traffic: &[Traffic], file: &Path) -> Drawn {
    let kib = |cut: &Cut| cut.log_bytes as f64 / 1024.0;
    let lines = vec![
        line(traffic, "the most of all cuts", |cuts| cuts.iter().map(kib).fold(0.0, f64::max)),
        line(traffic, "median", |cuts| of_cuts(cuts, kib)),
    ];
    let title = "Logs of frames under way, of all guests, at full load";
    Lines { title, below: "guests that send", unit: "KiB", lines }.draw(file)
}

/// A figure of each number of guests.
fn line(traffic: &[Traffic], name: &str, figure: impl Fn(&[Cut]) -> f64) -> (String, Vec<(f64, f64)>) {
    (name.to_owned(), traffic.iter().map(|traffic| (traffic.guests as f64, figure(&traffic.cuts))).collect())
}
