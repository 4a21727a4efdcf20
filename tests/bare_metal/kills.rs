//! kill -9 at any moment of a checkpoint, of the VM, of the process that writes its memory, or of both: what is in the
//! store is whole, nothing else stays there, and guest and checkpoints go on.
//!
//! The moments are chosen by chance, between the signal that asks for a checkpoint and half as long again as one takes:
//! the only delays here. Checkpoints are pruned too, so kills come during removals as well.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use ckvmm_snapshot::{Image, Progress, Store};
use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    pidfd::Pidfd,
    process::Ckvmm,
};
use nix::sys::signal::Signal;

use crate::{guest, model::Header, picture, random::Random};

/// Kills of a test, and of `make soak`.
const KILLS: u32 = 40;
const KILLS_IN_SOAK: u32 = 500;
/// Kills in the life of one guest. The last so many of them are of a VM that stops its guest to write memory.
const KILLS_A_LIFE: u32 = 20;
const KILLS_OF_STOP: u32 = 6;
/// Checkpoints that are kept: older ones are removed after each.
const KEPT: u32 = 2;
const DISK_BYTES: usize = 300 << 10;

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Vm,
    Writer,
    Both,
}

/// What the kills met.
#[derive(Debug, Default)]
struct Tally {
    /// The VM was killed and its checkpoint was made.
    made: u32,
    /// The VM was killed, and its checkpoint was never made.
    lost: u32,
    /// A VM that was killed left something that had to be swept.
    swept: u32,
    /// The writer was killed, and the checkpoint failed.
    failed: u32,
    /// There was no writer yet, or no more: no kill.
    missed: u32,
}

impl Tally {
    fn kills(&self) -> u32 {
        self.made + self.lost + self.failed
    }
}

/// The life of one guest, through many processes.
struct Life {
    home: Home,
    vm: Option<Ckvmm>,
    /// The number of the newest checkpoint, and how far the guest was.
    number: u64,
    steps: u64,
    /// How long a checkpoint takes, from the signal to the line that says that it is durable.
    takes: Duration,
}

impl Life {
    fn begin(seed: u64, mode: &str) -> Life {
        let home = Home::in_memory();
        let config = guest::config("linux", "24MiB", &format!("job=write seed={seed} mib=6 hot=1"));
        let mut config = bare_metal::with_disk(config, home.path(), DISK_BYTES);
        config["checkpoint"]["keep"] = KEPT.into();
        config["checkpoint"]["mode"] = mode.into();
        let vm = home.boot(&config);
        let mut life = Life { home, vm: Some(vm), number: 0, steps: 0, takes: Duration::ZERO };
        for _ in 0..3 {
            life.checkpoint();
        }
        life
    }

    fn vm(&mut self) -> &mut Ckvmm {
        self.vm.as_mut().expect("a VM runs between two rounds")
    }

    /// Makes a checkpoint that nobody disturbs.
    fn checkpoint(&mut self) {
        let begun = Instant::now();
        let image = bare_metal::checkpoint(self.vm());
        let took = begun.elapsed();
        self.takes = if self.takes.is_zero() { took } else { (self.takes * 3 + took) / 4 };
        self.made(&image);
    }

    /// `image` is the newest checkpoint, of an instant after that of the last one.
    fn made(&mut self, image: &Path) {
        let Header { steps, backwards, .. } = picture::check(image);
        assert!(steps >= self.steps && backwards == 0, "from {} steps back to {steps}", self.steps);
        let name = image.file_name().expect("a name").to_string_lossy();
        (self.steps, self.number) = (steps, name.parse().expect("a number"));
    }

    fn round(&mut self, victim: Victim, random: &mut Random, tally: &mut Tally) {
        let longest = if victim == Victim::Writer { self.takes } else { self.takes * 3 / 2 };
        self.vm().signal(Signal::SIGUSR1);
        random.wait(longest);
        let writers = Pidfd::children_of(self.vm().pid());
        if victim == Victim::Both && random.below(2) == 0 || victim == Victim::Writer {
            writers.iter().for_each(Pidfd::kill9);
        }
        match victim {
            Victim::Writer => self.after_kill_of_writer(tally),
            Victim::Vm | Victim::Both => {
                let vm = self.vm.take().expect("a VM runs");
                let (_, messages) = vm.kill9();
                if victim == Victim::Both {
                    writers.iter().for_each(Pidfd::kill9);
                }
                // Nobody but the VM's own end tells its writer to go.
                writers.iter().for_each(|writer| writer.wait(LIMIT));
                messages.wait_for_end(LIMIT);
                self.after_kill_of_vm(&messages.all(), tally);
            }
        }
    }

    fn after_kill_of_writer(&mut self, tally: &mut Tally) {
        let line = self.vm().messages.expect("ckvmm: checkpoint", LIMIT);
        if line.starts_with("ckvmm: checkpoint: ") {
            assert!(line.contains("the writer was killed") && line.ends_with("; the guest goes on"), "{line}");
            assert_eq!(self.newest(), self.number, "it failed");
            assert_eq!(self.hidden(), [""; 0], "nothing is left of it");
            tally.failed += 1;
        } else {
            let newest = self.newest();
            assert!(newest > self.number, "{line}");
            self.made(&self.home.checkpoint(newest as u32));
            tally.missed += 1;
        }
        bare_metal::goes_on(self.vm());
        self.checkpoint();
    }

    fn after_kill_of_vm(&mut self, messages: &[String], tally: &mut Tally) {
        self.everything_shown_is_whole();
        let newest = self.newest();
        let image = self.home.checkpoint(newest as u32);
        if newest > self.number {
            assert_eq!(newest, self.number + 1, "one was asked for");
            self.made(&image);
            tally.made += 1;
        } else {
            let said = format!("checkpoints/{:06}: ", self.number + 1);
            assert!(!messages.iter().any(|line| line.contains(&said)), "it was said to be durable: {messages:?}");
            tally.lost += 1;
        }
        tally.swept += u32::from(!self.hidden().is_empty());
        let work = self.home.join("work");
        if work.exists() {
            fs::remove_dir_all(work).expect("the disk of the VM that was killed can be removed");
        }
        let mut vm = guest::restore(&self.home, &image, &[]);
        let steps = guest::steps(&mut vm);
        assert!(steps >= self.steps, "restored at {} steps, and at {steps}", self.steps);
        bare_metal::goes_on(&mut vm);
        self.vm = Some(vm);
        assert_eq!(self.hidden(), [""; 0], "swept at the next start");
    }

    /// Sees that what has a name in the store, and is not on its way in or out, is a whole checkpoint.
    fn everything_shown_is_whole(&self) {
        for name in self.home.names("checkpoints") {
            let path = self.home.join("checkpoints").join(&name);
            if path.is_symlink() || name.starts_with(".STAGING-") {
                continue;
            }
            let image = Image::open(&path).unwrap_or_else(|error| panic!("{error}"));
            image.verify(&Progress::new()).unwrap_or_else(|error| panic!("{error}"));
            let disk = self.home.join("found");
            image.materialise_disk("root", &disk).expect("it has the disk");
            let same = fs::read(&disk).expect("it was copied") == fs::read(self.home.join("disk.raw")).expect("a disk");
            assert!(same, "{name}: the disk that nobody wrote to is another");
            fs::remove_file(disk).expect("it is there");
        }
    }

    fn newest(&self) -> u64 {
        let entries = Store::new(self.home.join("checkpoints")).list().expect("the store can be listed");
        // Oldest first. There are more than are kept for as long as each VM is killed before it removes any.
        entries.last().and_then(|entry| entry.number).expect("it has a number")
    }

    /// Names in the store that are no checkpoints.
    fn hidden(&self) -> Vec<String> {
        self.home.names("checkpoints").into_iter().filter(|name| name.starts_with('.')).collect()
    }

    /// Ends it: no process that it began is left.
    fn end(self) {
        if let Some(vm) = self.vm {
            vm.kill9();
        }
        ckvmm_tests::api::wait_until("nobody has a file of the store open", || {
            let processes = fs::read_dir("/proc").expect("/proc").flatten();
            let files =
                processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok()).flatten().flatten();
            let mut links = files.filter_map(|file| fs::read_link(file.path()).ok());
            (!links.any(|link| link.starts_with(self.home.join("checkpoints")))).then_some(())
        });
    }
}

fn kills(number: u32) {
    if guest::skipped() {
        return;
    }
    let mut random = Random::seeded();
    let mut tally = Tally::default();
    let begun = Instant::now();
    for first in (0..number).step_by(KILLS_A_LIFE as usize) {
        for (mode, kills) in [("auto", KILLS_A_LIFE - KILLS_OF_STOP), ("stop", KILLS_OF_STOP)] {
            let mut life = Life::begin(u64::from(first) + 1, mode);
            let enough = tally.kills() + kills;
            while tally.kills() < enough {
                let victims = [Victim::Vm, Victim::Writer, Victim::Both];
                let victim = if mode == "stop" { Victim::Vm } else { victims[random.below(3) as usize] };
                life.round(victim, &mut random, &mut tally);
            }
            life.end();
        }
    }
    eprintln!("{} kills took {:.1} s: {tally:?}", tally.kills(), begun.elapsed().as_secs_f64());
    assert!(tally.kills() >= number && tally.lost > 0, "{tally:?}");
}

#[test]
fn whoever_is_killed_whenever_a_checkpoint_is_whole_or_not_there() {
    kills(KILLS);
}

#[test]
#[ignore = "make soak"]
fn whoever_is_killed_whenever_a_checkpoint_is_whole_or_not_there_500() {
    kills(KILLS_IN_SOAK);
}
