//! Kernel kinds, numbers of vCPUs and sizes of memory: pairwise here, all of them with `make soak`.

use ckvmm_tests::{LIMIT, config, paths};

use crate::vm::{Count, Home, checkpoint, complaints};

const KERNELS: [(&str, &str); 3] = [("vmlinuz", "auto"), ("vmlinux", "linux"), ("vmlinux", "pvh")];
const VCPUS: [u32; 3] = [1, 2, 8];
const MEMORY: [&str; 3] = ["128MiB", "1GiB", "5GiB"];

#[test]
fn kernels_vcpus_and_memory_pairwise() {
    // A Latin square: each pair of values of two axes occurs.
    for kernel in 0..3 {
        for vcpus in 0..vcpus_here() {
            checkpoint_and_restore(kernel, vcpus, (kernel + vcpus) % 3);
        }
    }
}

/// How many of [`VCPUS`] are tried: in the lab not eight, which do not always come up on its two emulated CPUs.
fn vcpus_here() -> usize {
    if std::env::var_os("CKVMM_LAB").is_some() { 2 } else { VCPUS.len() }
}

#[test]
#[ignore = "make soak"]
fn kernels_vcpus_and_memory_fully() {
    for kernel in 0..3 {
        for vcpus in 0..3 {
            for memory in 0..3 {
                checkpoint_and_restore(kernel, vcpus, memory);
            }
        }
    }
}

fn checkpoint_and_restore(kernel: usize, vcpus: usize, memory: usize) {
    let (image, protocol) = KERNELS[kernel];
    let what = format!("{image} by {protocol}, {} vCPUs, {}", VCPUS[vcpus], MEMORY[memory]);
    println!("{what}");
    let home = Home::new();
    let mut config = config::linux("counter,kmsg");
    config["kernel"]["image"] = paths::guest(image).to_str().unwrap().into();
    config["kernel"]["protocol"] = protocol.into();
    config["vcpus"] = VCPUS[vcpus].into();
    config["memory"] = MEMORY[memory].into();
    let vm = home.boot(&config);
    let first = Count::next(&vm);
    let ready = vm.console.all().into_iter().find(|line| line.contains("CKVMM ready")).unwrap();
    assert!(ready.contains(&format!("cpus={} ", VCPUS[vcpus])), "{what}: {ready}");
    let checkpoint = checkpoint(&vm);
    vm.kill9();
    let restored = home.restore(&checkpoint, "restored", &[]);
    let next = Count::next(&restored);
    assert!(next.same_process(&first) && next.count > first.count, "{what}: {next:?} after {first:?}");
    restored.console.next("ten counts", LIMIT, |line| Count::parse(line).filter(|count| count.count > next.count + 10));
    let lines = restored.console.all();
    assert!(complaints(&lines).is_empty(), "{what}: {:?}", complaints(&lines));
}
