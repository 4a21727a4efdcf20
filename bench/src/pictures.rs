//! Which figures of a run become pictures.

use std::{fs, path::Path};

use crate::{
    case::{Method, Place, Sweep, size},
    plot::{Bars, Drawn, Lines},
    report::{Checkpoints, Report},
    sample::medians,
};

/// Draws what the report has figures for, as files in `dir`.
pub(crate) fn draw(report: &Report, dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let gap = |c: &Checkpoints| medians(&c.samples).gap;
    let lost = |c: &Checkpoints| medians(&c.samples).lost;
    let drawn = [
        by_size(report, "Longest gap that the guest sees, median", gap, |c| c.noise.gap, &dir.join("gap.svg")),
        by_size(report, "Work that the guest loses, median", lost, |c| c.noise.lost, &dir.join("lost.svg")),
        one_after_the_other(report, &dir.join("ten.svg")),
        restores(report, &dir.join("restore.svg")),
    ];
    drawn.into_iter().for_each(|drawn| drawn.unwrap_or_else(|error| panic!("{}: {error}", dir.display())));
}

/// The plain cases, a group each; the noise is that of the first method's guest.
fn by_size(
    report: &Report,
    title: &'static str,
    figure: fn(&Checkpoints) -> f64,
    noise: fn(&Checkpoints) -> f64,
    file: &Path,
) -> Drawn {
    const METHODS: [Method; 5] =
        [Method::Ckvmm, Method::CkvmmFork, Method::CkvmmStop, Method::QemuBackground, Method::QemuStop];
    let mut groups: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for checkpoints in plain(report) {
        let name = checkpoints.case.to_string();
        if groups.last().is_none_or(|(last, _)| *last != name) {
            groups.push((name, vec![None; METHODS.len() + 1]));
        }
        let Some((_, bars)) = groups.last_mut() else { continue };
        let place = METHODS.iter().position(|method| *method == checkpoints.method);
        place.into_iter().for_each(|place| bars[place] = Some(figure(checkpoints) * 1e3));
        bars[METHODS.len()].get_or_insert(noise(checkpoints) * 1e3);
    }
    if groups.is_empty() {
        return Ok(());
    }
    let series = METHODS.iter().map(|method| method.name()).chain(["no checkpoint"]).collect();
    Bars { title, series, groups }.draw(file)
}

fn one_after_the_other(report: &Report, file: &Path) -> Drawn {
    let ours = plain(report).filter(|checkpoints| checkpoints.method == Method::Ckvmm);
    let gaps = |c: &Checkpoints| (1..).map(f64::from).zip(c.samples.iter().map(|sample| sample.gap * 1e3)).collect();
    let lines: Vec<_> = ours.map(|checkpoints| (checkpoints.case.to_string(), gaps(checkpoints))).collect();
    if lines.is_empty() {
        return Ok(());
    }
    Lines { title: "Longest gap, ckvmm, one checkpoint after the other", below: "checkpoint", unit: "ms", lines }
        .draw(file)
}

fn restores(report: &Report, file: &Path) -> Drawn {
    let mut groups: Vec<(String, Vec<Option<f64>>)> = Vec::new();
    for restores in &report.restores {
        let name = format!("{}, {}", size(restores.touched_mib), if restores.warm { "warm" } else { "cold" });
        let group = groups.iter().position(|(other, _)| *other == name).unwrap_or_else(|| {
            groups.push((name, vec![None; 4]));
            groups.len() - 1
        });
        let first = if restores.method.is_qemu() { 2 } else { 0 };
        groups[group].1[first] = Some(restores.first_unit * 1e3);
        groups[group].1[first + 1] = Some(restores.all_read * 1e3);
    }
    if groups.is_empty() {
        return Ok(());
    }
    let series = vec!["ckvmm, first unit", "ckvmm, all RAM read", "QEMU, first unit", "QEMU, all RAM read"];
    Bars { title: "Restore, from exec", series, groups }.draw(file)
}

/// Checkpoints of cases that differ in their sizes only.
fn plain(report: &Report) -> impl Iterator<Item = &Checkpoints> {
    report.checkpoints.iter().filter(|Checkpoints { case, .. }| {
        case.vcpus == 1 && case.sweep == Sweep::Write && case.place == Place::Tmpfs && !case.busy
    })
}
