//! Machines of every size: the smallest, both sides of the MMIO gap, and memory that the guest fills and leaves alone.

use ckvmm_tests::bare_metal::{self, Home};

use crate::{
    guest::{self, PROTOCOLS},
    model::Header,
    picture,
};

const GIB: u64 = 1 << 30;

/// Boots, checkpoints, restores, checkpoints, and compares both pictures with the model.
fn boot_and_restore(protocol: &str, memory: &str, job: &str) -> Header {
    let home = Home::in_memory();
    let vm = home.boot(&guest::config(protocol, memory, job));
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let before = picture::check(&image);
    let mut vm = guest::restore(&home, &image, &[]);
    guest::steps(&mut vm);
    let after = picture::check(&bare_metal::checkpoint(&vm));
    assert!(after.units > before.units && after.steps >= before.steps, "{before:?} {after:?}");
    assert_eq!(after.backwards, 0, "{memory}: the guest saw its time go back");
    assert_eq!((after.arena, after.arena_bytes), (before.arena, before.arena_bytes));
    after
}

#[test]
fn the_smallest_machine() {
    if guest::skipped() {
        return;
    }
    for protocol in PROTOCOLS {
        boot_and_restore(protocol, "16MiB", "job=write seed=1 mib=6");
    }
}

#[test]
fn ram_that_ends_right_below_the_gap() {
    if guest::skipped() {
        return;
    }
    let below = boot_and_restore("linux", "3145724KiB", "job=write seed=2 mib=16 at=high");
    assert_eq!(below.arena + below.arena_bytes, 3 * GIB - 4096);
    let up_to = boot_and_restore("pvh", "3GiB", "job=write seed=3 mib=16 at=high");
    assert_eq!(up_to.arena + up_to.arena_bytes, 3 * GIB);
}

#[test]
fn ram_on_both_sides_of_the_gap() {
    if guest::skipped() {
        return;
    }
    let a_little = boot_and_restore("pvh", "3074MiB", "job=write seed=4 mib=2 at=high");
    assert_eq!(a_little.arena, 4 * GIB);
    for protocol in PROTOCOLS {
        let high = boot_and_restore(protocol, "5GiB", "job=write seed=5 mib=32 hot=8 at=high");
        assert_eq!(high.arena + high.arena_bytes, 6 * GIB);
    }
    let low = boot_and_restore("linux", "5GiB", "job=write seed=6 mib=32");
    assert!(low.arena + low.arena_bytes < GIB);
}

#[test]
fn memory_that_is_filled_and_left_alone() {
    if guest::skipped() {
        return;
    }
    let filled = boot_and_restore("pvh", "5GiB", "job=pagefill seed=7 mib=256 at=high");
    assert_eq!((filled.steps, filled.hot_bytes), (256 << 17, 0));
}
