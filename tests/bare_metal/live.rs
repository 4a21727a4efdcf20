//! Checkpoints after which the guest goes on, and restores that wait.

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    process::Ckvmm,
};

use crate::{
    guest::{self, PROTOCOLS},
    picture,
};

/// Live checkpoints of one guest.
const CHECKPOINTS: u32 = 20;

#[test]
fn a_guest_goes_on_after_each_live_checkpoint_and_each_is_of_its_instant() {
    if guest::skipped() {
        return;
    }
    for protocol in PROTOCOLS {
        let home = Home::in_memory();
        let mut vm = home.boot(&guest::config(protocol, "48MiB", "job=write seed=5 mib=16 hot=2"));
        let mut images = Vec::new();
        let mut least = 0;
        for _ in 0..CHECKPOINTS {
            let image = bare_metal::checkpoint(&vm);
            let header = picture::check(&image);
            assert!(header.steps >= least, "{} steps after {least}", header.steps);
            assert_eq!(header.backwards, 0, "the guest saw its time go back");
            least = guest::steps(&mut vm);
            assert!(least >= header.steps, "{least} steps after {}", header.steps);
            images.push((image, header));
        }
        vm.kill9();
        // Later checkpoints and later writes have not touched the earlier ones.
        for (image, header) in &images {
            assert_eq!(picture::check(image), *header, "{}", image.display());
        }
        let [(_, first), .., (_, last)] = &images[..] else { panic!("two or more") };
        assert!(last.steps > first.steps, "{protocol}: the guest stands still");
        goes_on_from(&home, &images[CHECKPOINTS as usize / 2]);
    }
}

fn goes_on_from(home: &Home, (image, header): &(std::path::PathBuf, crate::model::Header)) {
    let mut vm = guest::restore(home, image, &[]);
    let steps = guest::steps(&mut vm);
    assert!(steps >= header.steps, "{steps} steps after {}", header.steps);
    assert!(guest::steps(&mut vm) > steps, "the restored guest stands still");
    bare_metal::goes_on(&mut vm);
}

#[test]
fn a_guest_that_is_restored_paused_does_nothing_until_it_is_resumed() {
    if guest::skipped() {
        return;
    }
    guest::keep_early_signals();
    for protocol in PROTOCOLS {
        let home = Home::in_memory();
        let vm = home.boot(&guest::config(protocol, "32MiB", "job=write seed=9 mib=8"));
        let first = bare_metal::checkpoint(&vm);
        vm.kill9();
        let mut vm = guest::restore(&home, &first, &["--paused"]);
        let second = bare_metal::checkpoint(&vm);
        same_memory(&first, &second);
        vm.console.skip();
        vm.type_bytes(b"s");
        assert_eq!(home.api().vm()["state"], "paused");
        home.ok(["resume", bare_metal::NAME]);
        vm.console.expect("CKVMM status", LIMIT);
        went_on(&vm, &second);
    }
}

#[test]
fn a_guest_that_is_checkpointed_halted_is_woken_by_its_timer() {
    /// The guest halts for half a second at a time: far more TSC ticks than so many.
    const HALTED: u64 = 100_000_000;
    if guest::skipped() {
        return;
    }
    let job = "job=time rest=500000000 poll=0";
    for protocol in PROTOCOLS {
        let home = Home::in_memory();
        let mut vm = home.boot(&guest::config(protocol, "32MiB", job));
        guest::steps(&mut vm);
        let image = bare_metal::checkpoint(&vm);
        guest::steps(&mut vm);
        vm.kill9();
        let mut vm = guest::restore(&home, &image, &[]);
        guest::steps(&mut vm);
        let header = picture::header(&picture::open(&bare_metal::checkpoint(&vm)));
        assert!(header.longest_gap > HALTED, "{protocol}: it is not halted");
    }
}

/// All of RAM but the VM generation ID, which a restored guest has a new one of.
fn same_memory(a: &std::path::Path, b: &std::path::Path) {
    const GENERATION_ID: std::ops::Range<usize> = 0xf_f000..0xf_f010;
    let read = |dir| {
        let image = picture::open(dir);
        let bytes = image.memory().bytes();
        picture::read(&image, 0, bytes)
    };
    let (mut a, mut b) = (read(a), read(b));
    assert_ne!(a[GENERATION_ID], b[GENERATION_ID], "a restored guest cannot see that it may have a twin");
    a[GENERATION_ID].fill(0);
    b[GENERATION_ID].fill(0);
    let differs = a.iter().zip(&b).position(|(a, b)| a != b);
    assert_eq!((a.len(), differs), (b.len(), None), "memory of a guest that did not run has changed");
}

fn went_on(vm: &Ckvmm, before: &std::path::Path) {
    let (before, after) = (picture::check(before), picture::check(&bare_metal::checkpoint(vm)));
    assert!(after.steps > before.steps, "{} steps after {}", after.steps, before.steps);
    assert_eq!(after.backwards, 0, "the guest saw its time go back");
}
