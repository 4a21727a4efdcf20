//! 300 cuts at random moments of a guest that writes a known sequence: each image is whole, and its RAM is that of one
//! instant, with no page from before or after. In all modes, full and incremental, in chains of ten.
//!
//! ```text
//! boot, 10 cuts │ kill, restore the last, 10 cuts │ kill, restore, 10 cuts, the first of them full │ …   5 chains a test
//! ```
//!
//! From the second chain on, the guest's RAM is mapped from the files of the image that it was restored from, and a
//! chain that does not begin with a full checkpoint builds on that image: so chains of twenty come about too. RAM is moved
//! into the VM's own memory meanwhile; what is to be protected is cut by a fork before, and then has been moved.
//!
//! The moments are chosen by chance: the only delays here.

use std::{env, fs, path::PathBuf, time::Duration};

use ckvmm_snapshot::Progress;
use ckvmm_tests::{
    api::wait_until,
    bare_metal::{self, Home},
    process::Ckvmm,
};
use serde_json::json;

use crate::{guest, model::Header, picture, random::Random};

/// Chains of each of the six tests, in the lab, whose processor is emulated, and cuts of a chain.
const CHAINS: usize = 5;
const CHAINS_IN_THE_LAB: usize = 1;
const CUTS_A_CHAIN: usize = 10;
/// Longest time between a checkpoint that is durable and the next cut: long enough for some ten rounds over the hot
/// pages.
const LONGEST_REST: Duration = Duration::from_millis(10);

/// How checkpoints are made.
#[derive(Clone, Copy)]
struct Way {
    mode: &'static str,
    full: bool,
}

/// The guest, through many processes, and the images of its chain so far.
struct Life {
    home: Home,
    way: Way,
    vm: Ckvmm,
    images: Vec<(PathBuf, Header)>,
    steps: u64,
}

impl Life {
    fn begin(way: Way, random: &mut Random) -> Life {
        let home = Home::in_memory();
        let job = format!("job=write seed={} mib=8 hot=2", random.below(1 << 32));
        let vm = home.boot(&guest::config("linux", "20MiB", &job));
        Life { home, way, vm, images: Vec::new(), steps: 0 }
    }

    /// A checkpoint, compared with the model at once: what the guest does meanwhile must not reach it.
    fn cut(&mut self, full: bool) {
        let request = json!({ "mode": self.way.mode, "full": full });
        self.home.api().begin_checkpoint(&request.to_string());
        let path = bare_metal::committed(&self.vm);
        let image = picture::open(&path);
        image.verify(&Progress::new()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(image.manifest().mode, self.way.mode);
        let builds = !full && (!self.images.is_empty() || self.steps > 0);
        assert_eq!(image.manifest().is_incremental(), builds, "{}", path.display());
        let header = picture::check(&path);
        assert!(header.steps >= self.steps, "from {} steps back to {}", self.steps, header.steps);
        assert_eq!(header.backwards, 0, "the guest saw its time go back");
        self.steps = header.steps;
        self.images.push((path, header));
    }

    /// Has RAM moved that was restored: a checkpoint by a fork, and some time.
    fn move_ram(&mut self, full: bool) {
        let wanted = std::mem::replace(&mut self.way.mode, "fork");
        self.cut(full);
        self.way.mode = wanted;
        let mappings = format!("/proc/{}/maps", self.vm.pid());
        wait_until("no file is mapped over RAM", || {
            let mappings = fs::read_to_string(&mappings).expect("the VM lives");
            (!mappings.lines().any(|line| line.contains("/memory"))).then_some(())
        });
    }

    /// Ends the chain: none of its images has changed since it was made, and the guest goes on from the last one.
    fn restore_the_last(self) -> Life {
        let Life { home, way, vm, images, steps } = self;
        vm.kill9();
        for (image, header) in &images {
            assert_eq!(picture::check(image), *header, "{}", image.display());
        }
        let [(_, first), .., (last, _)] = &images[..] else { panic!("a chain") };
        assert!(steps > first.steps, "the guest stands still");
        let work = home.join("work");
        if work.exists() {
            fs::remove_dir_all(work).expect("what the last process left can be removed");
        }
        let mut vm = guest::restore(&home, last, &[]);
        let answered = guest::steps(&mut vm);
        assert!(answered >= steps, "restored at {steps} steps, and at {answered}");
        bare_metal::goes_on(&mut vm);
        // What the chain took is given back, all but what the next one builds on.
        for (image, _) in &images[..images.len() - 1] {
            fs::remove_dir_all(image).expect("a checkpoint can be removed");
        }
        Life { home, way, vm, images: Vec::new(), steps }
    }
}

fn cuts(way: Way) {
    let protects = way.mode == "protect";
    if guest::skipped() || (protects && !guest::can_protect()) {
        return;
    }
    let mut random = Random::seeded();
    let mut life = Life::begin(way, &mut random);
    for chain in 0..if env::var_os("CKVMM_LAB").is_some() { CHAINS_IN_THE_LAB } else { CHAINS } {
        if protects && chain > 0 {
            life.move_ram(way.full);
        }
        for cut in 0..CUTS_A_CHAIN {
            random.wait(LONGEST_REST);
            life.cut(way.full || (cut == 0 && chain % 2 == 0 && chain > 0));
        }
        life = life.restore_the_last();
    }
}

#[test]
fn a_full_image_of_protected_ram_is_of_one_instant() {
    cuts(Way { mode: "protect", full: true });
}

#[test]
fn an_incremental_image_of_protected_ram_is_of_one_instant() {
    cuts(Way { mode: "protect", full: false });
}

#[test]
fn a_full_image_by_a_fork_is_of_one_instant() {
    cuts(Way { mode: "fork", full: true });
}

#[test]
fn an_incremental_image_by_a_fork_is_of_one_instant() {
    cuts(Way { mode: "fork", full: false });
}

#[test]
fn a_full_image_by_a_stop_is_of_one_instant() {
    cuts(Way { mode: "stop", full: true });
}

#[test]
fn an_incremental_image_by_a_stop_is_of_one_instant() {
    cuts(Way { mode: "stop", full: false });
}
