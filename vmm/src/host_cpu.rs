//! The host's processor as a manifest describes it: for people, and for a comparison before anything is mapped.

use kvm_bindings::CpuId;
use serde_json::{Value, json};

/// Vendor, model name, TSC frequency and KVM's CPUID of the guest.
pub fn describe(cpuid: &CpuId, tsc_khz: u32) -> Value {
    let entries: Vec<Value> = cpuid
        .as_slice()
        .iter()
        .map(|entry| {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx].map(|value| format!("{value:#010x}"));
            json!({ "leaf": format!("{:#x}", entry.function), "subleaf": entry.index, "registers": registers })
        })
        .collect();
    json!({ "vendor": vendor(cpuid), "model": model(cpuid), "tsc_khz": tsc_khz, "cpuid": entries })
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
