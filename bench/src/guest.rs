//! A guest that works, and what it says of the time it had.

use std::{
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT,
    console::{Lines, value},
    process::Ckvmm,
};

use crate::{
    case::{Case, Method},
    memory,
    sample::{Noise, Sample},
    scratch::Scratch,
    vm::{self, Vm},
};

/// How long a checkpoint's consequences are watched, at least.
const WINDOW: Duration = Duration::from_millis(1500);
/// Time for what has just begun to settle: page faults after a restore, huge pages after a checkpoint.
pub(crate) const SETTLE: Duration = Duration::from_millis(700);
/// Between a question and what is measured: the guest takes no account of the time in which it answers.
const ANSWERED: Duration = Duration::from_millis(20);
/// Runs without a checkpoint.
const CALIBRATIONS: usize = 3;

/// A VM with its guest, of which is known how fast it is.
pub(crate) struct Guest {
    pub(crate) vm: Box<dyn Vm>,
    /// Steps in a second without a checkpoint.
    rate: f64,
    /// TSC ticks in a second.
    tsc_hz: f64,
    /// How much that varies.
    pub(crate) noise: Noise,
}

/// The guest's own account.
#[derive(Debug, Clone, Copy)]
struct Status {
    steps: f64,
    longest_gap: f64,
    tsc: f64,
}

impl Guest {
    /// Boots it, and learns how fast it is when nothing happens.
    pub(crate) fn boot(method: Method, case: Case, scratch: &mut Scratch) -> Self {
        let vm = vm::boot(method, case, scratch);
        let mut guest = Guest { vm, rate: 0.0, tsc_hz: 1.0, noise: Noise::default() };
        guest.calibrate();
        guest
    }

    fn calibrate(&mut self) {
        thread::sleep(SETTLE);
        self.vm.process().type_bytes(b"r");
        let (first, begun) = (status(self.vm.process()), Instant::now());
        let mut before = first;
        let mut rates: Vec<f64> = (0..CALIBRATIONS)
            .map(|_| {
                thread::sleep(WINDOW);
                let after = status(self.vm.process());
                let rate = (after.steps - before.steps) / (after.tsc - before.tsc);
                before = after;
                rate
            })
            .collect();
        self.tsc_hz = (before.tsc - first.tsc) / begun.elapsed().as_secs_f64();
        rates.sort_by(f64::total_cmp);
        let [least, median, most] = [rates[0], rates[CALIBRATIONS / 2], rates[CALIBRATIONS - 1]];
        self.rate = median * self.tsc_hz;
        self.noise =
            Noise { gap: before.longest_gap / self.tsc_hz, lost: (most - least) / 2.0 / median * WINDOW.as_secs_f64() };
    }

    /// A checkpoint, and what it cost.
    pub(crate) fn checkpoint(&mut self) -> Sample {
        thread::sleep(SETTLE);
        self.vm.process().type_bytes(b"r");
        let before = status(self.vm.process());
        thread::sleep(ANSWERED);
        let taken = self.vm.checkpoint();
        thread::sleep(WINDOW.saturating_sub(taken.durable));
        let after = status(self.vm.process());
        Sample {
            gap: after.longest_gap / self.tsc_hz,
            lost: (after.tsc - before.tsc) / self.tsc_hz - (after.steps - before.steps) / self.rate,
            durable: taken.durable.as_secs_f64(),
            said: taken.said,
            written: taken.written as f64,
        }
    }

    /// The memory that the VMM has beside its guest's.
    pub(crate) fn resident(&mut self) -> u64 {
        memory::beside_guest(self.vm.process().pid())
    }

    /// The memory of a checkpoint at its most, beside what the VMM and its guest have before. It is looked at during a
    /// checkpoint of its own, for looking takes time.
    pub(crate) fn peak_memory(&mut self) -> u64 {
        thread::sleep(SETTLE);
        let pid = self.vm.process().pid();
        let before = memory::proportional(&[pid]);
        let (_, peak) = memory::peak_while(pid, || self.vm.checkpoint());
        peak.saturating_sub(before)
    }

    /// Kills the VM and goes on with its last checkpoint.
    pub(crate) fn restart(&mut self, scratch: &Scratch) {
        self.vm.end();
        self.vm.restart(scratch);
        first_unit(self.vm.process());
    }
}

/// Waits until the guest has answered: it runs. The shortest answer that it has: each byte is an exit or two.
pub(crate) fn first_unit(process: &mut Ckvmm) {
    process.console.skip();
    process.type_bytes(b"p");
    answer(&process.console);
}

/// Waits for the answer to `p`: an empty line, since to print more would take the guest longer than to go on.
pub(crate) fn answer(console: &Lines) {
    console.next("answer", LIMIT, |line| line.is_empty().then_some(()));
}

/// Waits until the guest has read all the RAM that it has filled.
pub(crate) fn all_ram_read(process: &mut Ckvmm) {
    process.type_bytes(b"a");
    process.console.expect("CKVMM read", LIMIT);
}

fn status(process: &mut Ckvmm) -> Status {
    process.console.skip();
    process.type_bytes(b"s");
    process.console.next("status", LIMIT, |line| {
        let line = line.strip_prefix("CKVMM status ")?;
        let number = |name| value(line, name)?.parse().ok();
        Some(Status { steps: number("steps")?, longest_gap: number("longest_gap")?, tsc: number("tsc")? })
    })
}
