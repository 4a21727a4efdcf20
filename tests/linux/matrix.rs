//! Kernel kinds, numbers of vCPUs and sizes of memory: pairwise here, all of them with `make soak`.

use ckvmm_tests::{LIMIT, config, paths};

use crate::vm::{Count, Home, checkpoint, complaints};

/// A kernel's file and the protocol by which it is entered.
type Kernel = (&'static str, &'static str);

const BZIMAGE: Kernel = ("vmlinuz", "auto");
const VMLINUX: Kernel = ("vmlinux", "linux");
const PVH: Kernel = ("vmlinux", "pvh");

/// A test for each combination, so that each can be run alone.
macro_rules! matrix {
    ($($(#[$attribute:meta])* $name:ident: $kernel:ident, $vcpus:literal, $memory:literal;)*) => {
        $($(#[$attribute])* #[test] fn $name() { checkpoint_and_restore($kernel, $vcpus, $memory); })*
    };
}

// A Latin square: each pair of values of two axes occurs.
matrix! {
    bzimage_1_vcpu_128mib: BZIMAGE, 1, "128MiB";
    bzimage_2_vcpus_1gib: BZIMAGE, 2, "1GiB";
    bzimage_8_vcpus_5gib: BZIMAGE, 8, "5GiB";
    vmlinux_1_vcpu_1gib: VMLINUX, 1, "1GiB";
    vmlinux_2_vcpus_5gib: VMLINUX, 2, "5GiB";
    vmlinux_8_vcpus_128mib: VMLINUX, 8, "128MiB";
    pvh_1_vcpu_5gib: PVH, 1, "5GiB";
    pvh_2_vcpus_128mib: PVH, 2, "128MiB";
    pvh_8_vcpus_1gib: PVH, 8, "1GiB";
}

// The others.
matrix! {
    #[ignore = "make soak"] bzimage_1_vcpu_1gib: BZIMAGE, 1, "1GiB";
    #[ignore = "make soak"] bzimage_1_vcpu_5gib: BZIMAGE, 1, "5GiB";
    #[ignore = "make soak"] bzimage_2_vcpus_128mib: BZIMAGE, 2, "128MiB";
    #[ignore = "make soak"] bzimage_2_vcpus_5gib: BZIMAGE, 2, "5GiB";
    #[ignore = "make soak"] bzimage_8_vcpus_128mib: BZIMAGE, 8, "128MiB";
    #[ignore = "make soak"] bzimage_8_vcpus_1gib: BZIMAGE, 8, "1GiB";
    #[ignore = "make soak"] vmlinux_1_vcpu_128mib: VMLINUX, 1, "128MiB";
    #[ignore = "make soak"] vmlinux_1_vcpu_5gib: VMLINUX, 1, "5GiB";
    #[ignore = "make soak"] vmlinux_2_vcpus_128mib: VMLINUX, 2, "128MiB";
    #[ignore = "make soak"] vmlinux_2_vcpus_1gib: VMLINUX, 2, "1GiB";
    #[ignore = "make soak"] vmlinux_8_vcpus_1gib: VMLINUX, 8, "1GiB";
    #[ignore = "make soak"] vmlinux_8_vcpus_5gib: VMLINUX, 8, "5GiB";
    #[ignore = "make soak"] pvh_1_vcpu_128mib: PVH, 1, "128MiB";
    #[ignore = "make soak"] pvh_1_vcpu_1gib: PVH, 1, "1GiB";
    #[ignore = "make soak"] pvh_2_vcpus_1gib: PVH, 2, "1GiB";
    #[ignore = "make soak"] pvh_2_vcpus_5gib: PVH, 2, "5GiB";
    #[ignore = "make soak"] pvh_8_vcpus_128mib: PVH, 8, "128MiB";
    #[ignore = "make soak"] pvh_8_vcpus_5gib: PVH, 8, "5GiB";
}

fn checkpoint_and_restore((image, protocol): Kernel, vcpus: u32, memory: &str) {
    let home = Home::new();
    // Without pauses a count after the other is all that an emulated CPU can do for eight vCPUs.
    let mut config = config::add_to_cmdline(config::linux("counter,kmsg"), "ckvmm.interval=0.5");
    config["kernel"]["image"] = paths::guest(image).to_str().unwrap().into();
    config["kernel"]["protocol"] = protocol.into();
    config["vcpus"] = vcpus.into();
    config["memory"] = memory.into();
    let vm = home.boot(&config);
    let first = Count::next(&vm);
    let ready = vm.console.all().into_iter().find(|line| line.contains("CKVMM ready")).unwrap();
    assert!(ready.contains(&format!("cpus={vcpus} ")), "{ready}");
    let checkpoint = checkpoint(&vm);
    vm.kill9();
    let restored = home.restore(&checkpoint, "restored", &[]);
    let next = Count::next(&restored);
    assert!(next.same_process(&first) && next.count > first.count, "{next:?} after {first:?}");
    restored.console.next("five counts", LIMIT, |line| Count::parse(line).filter(|count| count.count > next.count + 5));
    let lines = restored.console.all();
    assert!(complaints(&lines).is_empty(), "{:?}", complaints(&lines));
}
