//! Model-specific registers. `KVM_GET_MSRS` and `KVM_SET_MSRS` may stop half-way: the count is always checked.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use crate::error::{Error, Result};

/// Time stamp counter; saved and restored apart, see [`super::clock`].
pub const IA32_TSC: u32 = 0x10;
/// Counters that go on by themselves: the TSC, and Hyper-V's of time and of a vCPU's own time, which follow kvmclock and
/// thread (and which no guest of ours is told of).
const CLOCKS: [u32; 3] = [IA32_TSC, 0x4000_0020, 0x4000_0010];
/// Absolute time in guest TSC at which the local APIC timer fires.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Default memory type: MTRRs on, write-back.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 0x806;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;

/// MSRs of one ioctl at the most.
const BATCH: usize = 128;

/// The MSRs that hold this vCPU's state: KVM's list, less the clocks and those that it does not let us read.
///
/// # Errors
/// If KVM gives no list.
pub fn readable(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().map_err(Error::kvm("listing MSRs"))?;
    let mut indices: Vec<u32> = list.as_slice().to_vec();
    indices.retain(|index| !CLOCKS.contains(index));
    let mut done = 0;
    while done < indices.len() {
        let end = (done + BATCH).min(indices.len());
        let mut batch = entries(&indices[done..end])?;
        let read = vcpu.get_msrs(&mut batch).map_err(Error::kvm("reading MSRs"))?;
        done += read;
        if done < end {
            indices.remove(done);
        }
    }
    Ok(indices)
}

/// Reads the MSRs `indices` of vCPU `id`.
///
/// # Errors
/// If one of them cannot be read.
pub fn get(vcpu: &VcpuFd, id: u32, indices: &[u32]) -> Result<Vec<(u32, u64)>> {
    let mut values = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(BATCH) {
        let mut batch = entries(chunk)?;
        let read = vcpu.get_msrs(&mut batch).map_err(Error::kvm("reading MSRs"))?;
        if read < chunk.len() {
            return Err(Error::Msr { vcpu: id, verb: "read", msr: chunk[read] });
        }
        values.extend(batch.as_slice().iter().map(|entry| (entry.index, entry.data)));
    }
    Ok(values)
}

/// Writes `values` in their order; one that KVM refuses is passed over if it has its value already.
///
/// # Errors
/// If one of them cannot be written and has another value.
pub fn set(vcpu: &VcpuFd, id: u32, values: &[(u32, u64)]) -> Result<()> {
    let mut rest = values;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(BATCH)];
        let batch: Vec<_> =
            chunk.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let batch = Msrs::from_entries(&batch).map_err(|_| too_many())?;
        let written = vcpu.set_msrs(&batch).map_err(Error::kvm("writing MSRs"))?;
        rest = &rest[written..];
        if written < chunk.len() {
            let (index, data) = chunk[written];
            if get(vcpu, id, &[index]).is_ok_and(|current| current[0].1 != data) {
                return Err(Error::Msr { vcpu: id, verb: "write", msr: index });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

/// What a boot loader leaves in the MSRs: caching of RAM is on.
///
/// # Errors
/// If KVM takes none of it.
pub fn set_boot(vcpu: &VcpuFd, id: u32) -> Result<()> {
    set(vcpu, id, &[(IA32_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK), (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING)])
}

fn entries(indices: &[u32]) -> Result<Msrs> {
    let entries: Vec<_> = indices.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|_| too_many())
}

fn too_many() -> Error {
    Error::State { what: "too many MSRs for one call of KVM".into() }
}
