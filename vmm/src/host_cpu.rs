//! The host's processor as a manifest describes it: for people, and for a comparison before anything is mapped.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use kvm_bindings::CpuId;
use serde_json::{Value, json};

use crate::arch::cpuid;

/// Another id at each boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// What is loaded anew has another inode here.
const MODULES: &str = "/sys/module";
const KVM: &str = "kvm";
/// What of KVM knows the processor.
const VENDORS: [&str; 3] = ["kvm_intel", "kvm_amd", "kvm_pvm"];

/// Where a checkpoint was made, seen from where it is restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// On this host, by the KVM that it still has: what the guest uses is there.
    Same,
    /// On another one, or nobody can say.
    Other,
}

/// Compares this host with a description of one.
pub fn compare(described: &Value) -> Host {
    match kvm() {
        Some(kvm) if described["kvm"] == kvm => Host::Same,
        _ => Host::Other,
    }
}

/// What tells this KVM from another host's, and from this host's after a boot or with its modules loaded anew, with other
/// parameters maybe; and its processor from the one that it had, if it is a VM itself and was moved while it ran. Absent
/// where that cannot be known.
fn kvm() -> Option<String> {
    let boot = fs::read_to_string(BOOT_ID).ok()?;
    let inode = |module: &&str| Some(fs::metadata(Path::new(MODULES).join(module)).ok()?.ino());
    let vendors = VENDORS.iter().filter_map(|vendor| Some(format!(" {vendor}:{}", inode(vendor)?)));
    let vendors: String = vendors.collect();
    let known = !vendors.is_empty();
    let features = cpuid::features_here();
    known.then_some(format!("{} {KVM}:{}{vendors} {features}", boot.trim_end(), inode(&KVM)?))
}

/// Vendor, model name, TSC frequency, KVM's CPUID of the guest, and what tells this KVM from others.
pub fn describe(cpuid: &CpuId, tsc_khz: u32) -> Value {
    let entries: Vec<Value> = cpuid
        .as_slice()
        .iter()
        .map(|entry| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx].map(|value| format!("{value:#010x}"));
            json!({ "leaf": format!("{:#x}", entry.function), "subleaf": entry.index, "registers": registers })
        })
        .collect();
    json!({ "vendor": vendor(cpuid), "model": model(cpuid), "tsc_khz": tsc_khz, "kvm": kvm(), "cpuid": entries })
}

fn leaf(cpuid: &CpuId, function: u32) -> [u32; 4] {
    let found = cpuid.as_slice().iter().find(|entry| entry.function == function);
    found.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

/// CPUID leaf 0: EBX, EDX, ECX.
fn vendor(cpuid: &CpuId) -> String {
    let [_, b, c, d] = leaf(cpuid, 0);
    text(&[b, d, c])
}

/// CPUID leaves 0x80000002 to 0x80000004.
fn model(cpuid: &CpuId) -> String {
    let words: Vec<u32> = (0x8000_0002..=0x8000_0004).flat_map(|function| leaf(cpuid, function)).collect();
    text(&words)
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).filter(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_kvm_was_is_known() {
        if kvm().is_none() {
            return eprintln!("skipped: no KVM here, or nothing tells which");
        }
        let described = describe(&CpuId::new(0).unwrap(), 0);
        assert_eq!(compare(&described), Host::Same);
        let after_a_boot = described["kvm"].as_str().unwrap().replacen('-', "0", 1);
        let loaded_anew = described["kvm"].as_str().unwrap().replacen(':', ":1", 1);
        let on_another_processor = format!("{}1", described["kvm"].as_str().unwrap());
        for kvm in [after_a_boot.into(), loaded_anew.into(), on_another_processor.into(), Value::Null] {
            let mut other = described.clone();
            other["kvm"] = kvm;
            assert_eq!(compare(&other), Host::Other, "{}", other["kvm"]);
        }
    }
}
