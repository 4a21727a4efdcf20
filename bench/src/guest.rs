//! A guest that works, and what it says of the time it had.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    console::value,
    process::Ckvmm,
};
use serde_json::Value;

/// How long a checkpoint's consequences are watched, at least.
const WINDOW: Duration = Duration::from_millis(1500);
/// Time for what has just begun to settle: page faults after a restore, huge pages after a checkpoint.
const SETTLE: Duration = Duration::from_millis(700);
/// Runs without a checkpoint.
const CALIBRATIONS: usize = 5;

/// What a guest does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) touched_mib: u64,
    pub(crate) hot_mib: u64,
    pub(crate) mode: &'static str,
}

/// What one checkpoint cost, in seconds.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// The longest gap that the guest saw between two looks at its TSC.
    pub(crate) gap: f64,
    /// Of the guest's work, in time that it takes without a checkpoint.
    pub(crate) lost: f64,
    /// From the signal to the message that it is durable.
    pub(crate) durable: f64,
    /// The pause as ckvmm says it.
    pub(crate) said: f64,
}

/// A VM with its guest.
pub(crate) struct Guest {
    home: Home,
    /// Always there, but while another one takes its place.
    vm: Option<Ckvmm>,
    /// Steps in a second without a checkpoint.
    rate: f64,
    /// TSC ticks in a second.
    tsc_hz: f64,
}

/// Where the guests' directories are.
pub(crate) fn place() -> PathBuf {
    Home::in_memory().path().parent().map(PathBuf::from).unwrap_or_default()
}

/// The guest's own account.
#[derive(Debug, Clone, Copy)]
struct Status {
    steps: f64,
    longest_gap: f64,
    tsc: f64,
}

impl Guest {
    /// Boots it and waits until all of its RAM is touched.
    pub(crate) fn boot(case: Case) -> Self {
        let Case { touched_mib, hot_mib, mode } = case;
        let home = Home::in_memory();
        // It looks for questions every 0.8 ms, so that the answer tells when it runs.
        let mut config = bare_metal::config(&format!("job=write mib={touched_mib} hot={hot_mib} poll=2097152"));
        config["memory"] = format!("{}MiB", touched_mib + 64).into();
        config["checkpoint"]["mode"] = mode.into();
        config["checkpoint"]["keep"] = 1.into();
        let vm = home.boot(&config);
        Guest { home, vm: Some(vm), rate: 0.0, tsc_hz: 0.0 }
    }

    /// Learns how fast the guest is when nothing happens; returns how much that varies.
    pub(crate) fn calibrate(&mut self) -> Sample {
        thread::sleep(SETTLE);
        let (before, begun) = (self.status(), Instant::now());
        thread::sleep(WINDOW);
        self.tsc_hz = (self.status().tsc - before.tsc) / begun.elapsed().as_secs_f64();
        self.vm().type_bytes(b"r");
        let mut rates: Vec<f64> = (0..CALIBRATIONS)
            .map(|_| {
                let before = self.status();
                thread::sleep(WINDOW);
                let after = self.status();
                (after.steps - before.steps) / self.seconds(after.tsc - before.tsc)
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        self.rate = rates[CALIBRATIONS / 2];
        let spread = (rates[CALIBRATIONS - 1] - rates[0]) / 2.0 / self.rate * WINDOW.as_secs_f64();
        let longest_gap = self.status().longest_gap;
        Sample { gap: self.seconds(longest_gap), lost: spread, durable: 0.0, said: 0.0 }
    }

    /// A checkpoint, and what it cost.
    pub(crate) fn checkpoint(&mut self) -> Sample {
        thread::sleep(SETTLE);
        self.vm().type_bytes(b"r");
        let (before, begun) = (self.status(), Instant::now());
        let image = bare_metal::checkpoint(self.vm());
        let durable = begun.elapsed();
        thread::sleep(WINDOW.saturating_sub(durable));
        let after = self.status();
        let manifest = std::fs::read(image.join("manifest.json")).expect("it was just made");
        let manifest: Value = serde_json::from_slice(&manifest).expect("it is JSON");
        Sample {
            gap: self.seconds(after.longest_gap),
            lost: self.seconds(after.tsc - before.tsc) - (after.steps - before.steps) / self.rate,
            durable: durable.as_secs_f64(),
            said: manifest["pause_us"].as_f64().unwrap_or_default() / 1e6,
        }
    }

    /// Kills the VM and restores its last checkpoint. Returns the time from exec to the guest's first answer.
    pub(crate) fn restart_from_checkpoint(&mut self) -> Duration {
        let image = self.home.join("checkpoints/latest").canonicalize().expect("there is one");
        let work = self.home.join("work");
        self.vm = None;
        // What an earlier restore left.
        let _ = std::fs::remove_dir_all(&work);
        let begun = Instant::now();
        self.vm = Some(self.home.restore(&image, &["--work", work.to_str().expect("UTF-8")]));
        self.status();
        begun.elapsed()
    }

    fn vm(&mut self) -> &mut Ckvmm {
        self.vm.as_mut().expect("one runs")
    }

    fn status(&mut self) -> Status {
        self.vm().console.skip();
        self.vm().type_bytes(b"s");
        self.vm().console.next("status", LIMIT, |line| {
            let line = line.strip_prefix("CKVMM status ")?;
            let number = |name| value(line, name)?.parse().ok();
            Some(Status { steps: number("steps")?, longest_gap: number("longest_gap")?, tsc: number("tsc")? })
        })
    }

    fn seconds(&self, ticks: f64) -> f64 {
        ticks / self.tsc_hz
    }
}
