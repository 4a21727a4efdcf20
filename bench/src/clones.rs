//! Many VMs from one checkpoint, all started at once.

use std::{
    path::Path,
    sync::{Mutex, mpsc},
    thread,
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::{
    case::{Case, Method, Place, size},
    guest::{Guest, first_unit},
    memory,
    report::{heading, mib, ms, row},
    sample::median,
    scratch::Scratch,
};

/// Seconds and bytes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Clones {
    touched_mib: u64,
    hot_mib: u64,
    count: usize,
    /// From the start of a clone's process to its guest's first unit of work.
    median: f64,
    slowest: f64,
    /// From the start of the first one until all guests work.
    all: f64,
    /// Of all of them, after that.
    memory: u64,
}

/// Clones one checkpoint, so many times.
pub(crate) fn measure(counts: &[usize], scratch: &mut Scratch) -> Vec<Clones> {
    heading(
        "Clones of one checkpoint, image on tmpfs, from exec to the first unit",
        &["RAM touched, hot set", "clones", "median ms", "slowest ms", "all ms", "memory of each MiB"],
    );
    let case = Case::new(512, 16);
    let mut guest = Guest::boot(Method::Ckvmm, case, scratch);
    guest.vm.checkpoint();
    guest.vm.end();
    let image = guest.vm.image();
    counts.iter().map(|&count| measure_count(case, &image, count, scratch)).collect()
}

fn measure_count(case: Case, image: &Path, count: usize, scratch: &mut Scratch) -> Clones {
    let dirs: Vec<_> = (0..count).map(|_| scratch.dir(Place::Tmpfs)).collect();
    let scratch = &*scratch;
    let begun = Instant::now();
    let measured = Mutex::new(());
    // A thread each, so that the time of one is not that of those before it. A clone stays with the thread that started it.
    let (times, all, memory) = thread::scope(|scope| {
        let not_yet = measured.lock();
        let (tell, told) = mpsc::channel();
        for dir in &dirs {
            let (tell, measured) = (tell.clone(), &measured);
            scope.spawn(move || {
                let begun = Instant::now();
                let mut command = scratch.ckvmm(dir);
                command.arg("restore").arg(image).arg("--work").arg(dir.join("work"));
                let mut clone = scratch.start(command);
                first_unit(&mut clone);
                tell.send((clone.pid(), begun.elapsed().as_secs_f64())).expect("somebody measures");
                drop(tell);
                drop(measured.lock());
            });
        }
        drop(tell);
        let (pids, times): (Vec<u32>, Vec<f64>) = told.iter().unzip();
        let all = begun.elapsed().as_secs_f64();
        assert_eq!(pids.len(), count, "all clones work");
        let memory = memory::proportional(&pids);
        drop(not_yet);
        (times, all, memory)
    });
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let median = median(times);
    row(&[
        format!("{}, {} MiB", size(case.touched_mib), case.hot_mib),
        count.to_string(),
        ms(median, 1),
        ms(slowest, 1),
        ms(all, 1),
        mib(memory as f64 / count as f64, 1),
    ]);
    Clones { touched_mib: case.touched_mib, hot_mib: case.hot_mib, count, median, slowest, all, memory }
}
