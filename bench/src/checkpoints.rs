//! Checkpoints: what they cost the guest that goes on.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::sys::statvfs::statvfs;

use crate::{
    busy::Busy,
    case::{Case, Method},
    guest::{Guest, SETTLE},
    memory,
    plan::MANY,
    report::{Checkpoints, heading, mib, ms, row},
    sample::{Noise, Sample, medians},
    scratch::Scratch,
};

/// Checkpoints of a restored guest.
const AFTER_RESTORE: usize = 2;
/// How long one guest has checkpoints: on a slow machine it has fewer.
const LONGEST: Duration = Duration::from_secs(45);
/// Room beside guest and images, in MiB: the host's own, and pages that are copied.
const SPARE_MIB: u64 = 1536;

pub(crate) fn begin_table(title: &str) {
    heading(
        title,
        &[
            "RAM touched, hot set",
            "VMM",
            "checkpoint",
            "longest gap ms",
            "work lost ms",
            "durable ms",
            "pause ms as said",
            "written MiB",
        ],
    );
}

/// Takes `count` checkpoints of a guest, and if they are many, some of a restored one. None, and a line that says so, if
/// there is no room for them.
pub(crate) fn measure(case: Case, method: Method, count: usize, scratch: &mut Scratch) -> Option<Checkpoints> {
    if let Some(what) = no_room(case, count.min(2), scratch) {
        row(&[case.to_string(), method.name().to_owned(), format!("skipped: {what}")]);
        return None;
    }
    let _busy = case.busy.then(|| Busy::start(scratch.place(case.place)));
    let mut guest = Guest::boot(method, case, scratch);
    let noise = guest.noise;
    say_noise(case, method, noise);
    let resident_before = guest.resident();
    let begun = Instant::now();
    let in_time = || begun.elapsed() < LONGEST;
    let samples: Vec<Sample> =
        (0..count).take_while(|&number| number == 0 || in_time()).map(|_| guest.checkpoint()).collect();
    say(case, method, "first", &samples[0]);
    if samples.len() > 1 {
        say(case, method, "median", &medians(&samples));
    }
    if samples.len() == MANY {
        say(case, method, "tenth", &samples[MANY - 1]);
    }
    // It may still have something to do for the last one.
    thread::sleep(SETTLE);
    let resident = guest.resident().max(resident_before);
    let peak_memory = (count > 1).then(|| guest.peak_memory());
    let mut restored = Vec::new();
    if count == MANY && in_time() {
        guest.restart(scratch);
        restored = (0..AFTER_RESTORE).map(|_| guest.checkpoint()).collect();
        say(case, method, "first of the restored", &restored[0]);
        say(case, method, "second of the restored", &restored[AFTER_RESTORE - 1]);
    }
    Some(Checkpoints { case, method, noise, samples, restored, peak_memory, resident })
}

/// The memory that all these checkpoints took.
pub(crate) fn memory(all: &[Checkpoints]) {
    if all.is_empty() {
        return;
    }
    heading(
        "Memory",
        &[
            "RAM touched, hot set",
            "VMM",
            "beside the guest's, outside a checkpoint MiB",
            "more at a checkpoint's peak MiB",
        ],
    );
    for Checkpoints { case, method, resident, peak_memory, .. } in all {
        let [resident, peak] =
            [Some(*resident), *peak_memory].map(|bytes| bytes.map_or_else(String::new, |bytes| mib(bytes as f64, 1)));
        row(&[case.to_string(), method.name().to_owned(), resident, peak]);
    }
}

/// What there is too little of for a guest and so many images: the last one goes when the next is there.
fn no_room(case: Case, images: usize, scratch: &Scratch) -> Option<String> {
    let guest = case.ram_mib() + SPARE_MIB;
    let images = images as u64 * case.touched_mib;
    let is_memory = scratch.is_memory(case.place);
    let memory_needed = if is_memory { guest + images } else { guest };
    let memory = memory::available() >> 20;
    if memory < memory_needed {
        return Some(format!("{memory} MiB of memory are free, {memory_needed} are needed"));
    }
    let free = statvfs(scratch.place(case.place)).map_or(0, |fs| fs.blocks_available() * fs.fragment_size()) >> 20;
    (free < images).then(|| format!("{free} MiB are free for images, {images} are needed"))
}

fn say_noise(case: Case, method: Method, noise: Noise) {
    let lost = format!("± {}", ms(noise.lost, 0));
    let cells = [method.name(), "none: the noise", &ms(noise.gap, 2), &lost, "", "", ""].map(str::to_owned);
    row(&[&[case.to_string()], &cells[..]].concat());
}

fn say(case: Case, method: Method, which: &str, sample: &Sample) {
    row(&[
        case.to_string(),
        method.name().to_owned(),
        which.to_owned(),
        ms(sample.gap, 2),
        ms(sample.lost, 0),
        ms(sample.durable, 0),
        sample.said.map_or_else(String::new, |said| ms(said, 2)),
        mib(sample.written, 0),
    ]);
}
