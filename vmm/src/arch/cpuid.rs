//! What the guest sees of its processors: KVM's supported CPUID, with the topology of this machine.
//!
//! Topology: one socket, a core a vCPU, one thread a core; the APIC ID is the vCPU's number.
#![allow(unsafe_code)]

use std::{arch::x86_64::__cpuid_count, collections::BTreeMap};

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// CPUID.1:ECX.HYPERVISOR, set for every guest.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:ECX.TSC_DEADLINE: KVM's local APIC has it, its supported list does not say so.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:EDX.HTT: more than one logical processor in the package.
const HTT: u32 = 1 << 28;
/// CPUID.1:ECX.VMX and CPUID.80000001:ECX.SVM: hidden, since the state of a guest's own guests is not saved.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
/// Level types of leaves 0xB and 0x1F (Intel SDM vol. 2A, CPUID).
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// `supported` (of `KVM_GET_SUPPORTED_CPUID`) made into the CPUID of vCPU `id` of `vcpus`.
pub fn for_vcpu(supported: &CpuId, id: u32, vcpus: u32, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => features(entry, id, vcpus, tsc_deadline),
            0x4 | 0x8000_001d => cache_sharing(entry, vcpus),
            0xb | 0x1f => extended_topology(entry, id, vcpus),
            0x8000_0001 => entry.ecx &= !SVM,
            0x8000_0008 => amd_core_count(entry, vcpus),
            0x8000_001e => amd_topology(entry, id),
            _ => {}
        }
    }
    cpuid
}

fn features(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32, tsc_deadline: bool) {
    entry.ebx = entry.ebx & 0xffff | id << 24 | vcpus.min(255) << 16;
    entry.ecx = entry.ecx & !VMX | HYPERVISOR;
    if tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
}

/// Caches of level 1 and 2 belong to a core, level 3 to all. EAX[25:14]: logical processors that share, less one.
/// EAX[31:26] (leaf 4): cores of the package, less one.
fn cache_sharing(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
    if kind == 0 {
        return;
    }
    let shared_by = if level < 3 { 1 } else { vcpus };
    entry.eax = entry.eax & 0x3fff | (shared_by - 1) << 14;
    if entry.function == 0x4 {
        entry.eax |= (vcpus - 1).min(63) << 26;
    }
}

fn extended_topology(entry: &mut kvm_cpuid_entry2, id: u32, vcpus: u32) {
    let core_bits = vcpus.next_power_of_two().trailing_zeros();
    (entry.eax, entry.ebx, entry.ecx) = match entry.index {
        0 => (0, 1, LEVEL_SMT << 8),
        1 => (core_bits, vcpus, LEVEL_CORE << 8 | 1),
        index => (0, 0, index & 0xff),
    };
    entry.edx = id;
}

/// ECX[7:0]: cores less one; ECX[15:12]: bits of the APIC ID that number a core (AMD APM vol. 3, E.4.7).
fn amd_core_count(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    let bits = vcpus.next_power_of_two().trailing_zeros();
    entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (vcpus - 1) & 0xff;
}

/// EAX: extended APIC ID; EBX[7:0]: core ID, EBX[15:8]: threads a core less one; ECX: node ID.
fn amd_topology(entry: &mut kvm_cpuid_entry2, id: u32) {
    (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0);
}

/// The names of the CPU features that `image` has and `host` lacks: why a guest cannot go on here.
pub fn missing_features(image: &CpuId, host: &CpuId) -> Vec<String> {
    let mut missing = Vec::new();
    for (function, index, register, name) in FEATURE_WORDS {
        let bits = |cpuid: &CpuId| {
            cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == *function && entry.index == *index)
                .map_or(0, |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx][*register])
        };
        let absent = bits(image) & !bits(host) & !ignored(*function, *register);
        missing.extend((0..32).filter(|bit| absent >> bit & 1 == 1).map(|bit| {
            KNOWN_BITS
                .iter()
                .find(|known| (known.0, known.1, known.2) == (*function, *register, bit))
                .map_or_else(|| format!("{name}[{bit}]"), |known| known.3.to_owned())
        }));
    }
    missing
}

/// What [`missing_features`] compares, of the processor that this runs on, in hexadecimal. CPUID itself is asked: what the
/// kernel says of it is from its boot, and a host that is a VM may have been moved since.
#[allow(unused_unsafe)]
pub fn features_here() -> String {
    let words = FEATURE_WORDS.iter().filter(|(function, ..)| *function != KVM_FEATURES);
    let leaves: BTreeMap<_, Vec<_>> = words.fold(BTreeMap::new(), |mut leaves, (function, index, register, _)| {
        leaves.entry((*function, *index)).or_default().push(*register);
        leaves
    });
    let words = leaves.into_iter().flat_map(|((function, index), registers)| {
        // SAFETY: every x86-64 processor has the instruction. (Newer compilers know.)
        let leaf = unsafe { __cpuid_count(function, index) };
        let leaf = [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx];
        registers.into_iter().map(move |register| format!("{:x}", leaf[register]))
    });
    words.collect::<Vec<_>>().join(":")
}

/// Bits that say something of the moment rather than of the processor: OSXSAVE mirrors CR4, TSC_DEADLINE and
/// HYPERVISOR are ours, HTT is the topology's.
fn ignored(function: u32, register: usize) -> u32 {
    match (function, register) {
        (1, 2) => HYPERVISOR | TSC_DEADLINE | 1 << 27,
        (1, 3) => HTT,
        (7, 3) => 0,
        _ => 0,
    }
}

/// KVM's own leaf, which its guests have (kernel document `virt/kvm/x86/cpuid`).
const KVM_FEATURES: u32 = 0x4000_0001;
/// (leaf, subleaf, register 0–3 for EAX–EDX, name of the word)
const FEATURE_WORDS: &[(u32, u32, usize, &str)] = &[
    (0x1, 0, 2, "CPUID.1:ECX"),
    (0x1, 0, 3, "CPUID.1:EDX"),
    (0x7, 0, 1, "CPUID.7:EBX"),
    (0x7, 0, 2, "CPUID.7:ECX"),
    (0x7, 0, 3, "CPUID.7:EDX"),
    (0x7, 1, 0, "CPUID.7.1:EAX"),
    (0xd, 0, 0, "XCR0"),
    (0xd, 1, 0, "CPUID.D.1:EAX"),
    (0x8000_0001, 0, 2, "CPUID.80000001:ECX"),
    (0x8000_0001, 0, 3, "CPUID.80000001:EDX"),
    (KVM_FEATURES, 0, 0, "KVM"),
];

/// Bits with names that people know (Intel SDM vol. 2A; AMD APM vol. 3).
const KNOWN_BITS: &[(u32, usize, u32, &str)] = &[
    (0x1, 2, 0, "sse3"),
    (0x1, 2, 9, "ssse3"),
    (0x1, 2, 12, "fma"),
    (0x1, 2, 13, "cx16"),
    (0x1, 2, 19, "sse4.1"),
    (0x1, 2, 20, "sse4.2"),
    (0x1, 2, 21, "x2apic"),
    (0x1, 2, 22, "movbe"),
    (0x1, 2, 23, "popcnt"),
    (0x1, 2, 25, "aes"),
    (0x1, 2, 26, "xsave"),
    (0x1, 2, 28, "avx"),
    (0x1, 2, 29, "f16c"),
    (0x1, 2, 30, "rdrand"),
    (0x7, 1, 0, "fsgsbase"),
    (0x7, 1, 3, "bmi1"),
    (0x7, 1, 5, "avx2"),
    (0x7, 1, 8, "bmi2"),
    (0x7, 1, 9, "erms"),
    (0x7, 1, 10, "invpcid"),
    (0x7, 1, 16, "avx512f"),
    (0x7, 1, 17, "avx512dq"),
    (0x7, 1, 18, "rdseed"),
    (0x7, 1, 28, "avx512cd"),
    (0x7, 1, 29, "sha_ni"),
    (0x7, 1, 30, "avx512bw"),
    (0x7, 1, 31, "avx512vl"),
    (0x7, 2, 1, "avx512vbmi"),
    (0x7, 2, 3, "pku"),
    (0x7, 2, 8, "gfni"),
    (0x7, 2, 9, "vaes"),
    (0x7, 2, 11, "avx512_vnni"),
    (0x7, 2, 22, "rdpid"),
    (0x7, 3, 22, "amx_bf16"),
    (0x7, 3, 23, "avx512_fp16"),
    (0x7, 3, 24, "amx_tile"),
    (0x7, 3, 25, "amx_int8"),
    (0x8000_0001, 3, 20, "nx"),
    (0x8000_0001, 3, 26, "pdpe1gb"),
    (0x8000_0001, 3, 27, "rdtscp"),
    (0x8000_0001, 3, 29, "lm"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuid(entries: &[(u32, u32, [u32; 4])]) -> CpuId {
        let entries: Vec<_> = entries
            .iter()
            .map(|(function, index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function: *function,
                index: *index,
                eax: *eax,
                ebx: *ebx,
                ecx: *ecx,
                edx: *edx,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries).unwrap()
    }

    #[test]
    fn every_vcpu_has_its_own_apic_id() {
        let supported = cpuid(&[(1, 0, [0; 4]), (0xb, 0, [0; 4]), (0xb, 1, [0; 4]), (0x8000_001e, 0, [0; 4])]);
        for id in [0, 1, 7, 253] {
            let guest = for_vcpu(&supported, id, 254, true);
            let entries = guest.as_slice();
            assert_eq!(entries[0].ebx >> 24, id);
            assert_eq!(entries[1].edx, id);
            assert_eq!((entries[2].eax, entries[2].ebx), (8, 254));
            assert_eq!(entries[3].eax, id);
        }
    }

    #[test]
    fn a_lacking_feature_is_named() {
        let image = cpuid(&[(1, 0, [0, 0, 1 << 28 | 1 << 31, 0]), (7, 0, [0, 1 << 5 | 1 << 13, 0, 0])]);
        let host = cpuid(&[(1, 0, [0; 4]), (7, 0, [0; 4])]);
        assert_eq!(missing_features(&image, &host), ["avx", "avx2", "CPUID.7:EBX[13]"]);
        assert!(missing_features(&image, &image).is_empty());
    }
}
