//! The extended processor state (`KVM_GET_XSAVE2`): as long as the VM's features need, not always 4 KiB.
#![allow(unsafe_code)]

use kvm_bindings::{KVM_CAP_XSAVE2, Xsave, kvm_xsave, kvm_xsave2};
use kvm_ioctls::{VcpuFd, VmFd};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{Error, Result};

const LEGACY_BYTES: usize = size_of::<kvm_xsave>();
/// Far above what any processor has (AMX needs 11 KiB).
const BYTES_MAX: usize = 64 << 10;

/// Length in bytes of the extended state of this VM's vCPUs.
pub fn size(vm: &VmFd) -> usize {
    let bytes = vm.check_extension_raw(KVM_CAP_XSAVE2.into());
    (bytes.max(0) as usize).clamp(LEGACY_BYTES, BYTES_MAX)
}

/// Reads it.
pub fn get(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u8>> {
    let mut xsave = empty(bytes)?;
    // SAFETY: the buffer is as long as KVM_CAP_XSAVE2 says, see `size`.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(Error::kvm("reading the XSAVE state"))?;
    let mut state = xsave.as_fam_struct_ref().xsave.as_bytes().to_vec();
    state.extend_from_slice(xsave.as_slice().as_bytes());
    Ok(state)
}

/// Writes it. State that is shorter than this host's is padded with zeros: features that the guest never had.
pub fn set(vcpu: &VcpuFd, bytes: usize, state: &[u8]) -> Result<()> {
    if state.len() < LEGACY_BYTES || state.len() > bytes {
        let what =
            format!("the XSAVE state has {} bytes, this host's KVM takes {LEGACY_BYTES} to {bytes}", state.len());
        return Err(Error::State { what });
    }
    let mut padded = state.to_vec();
    padded.resize(bytes.next_multiple_of(4), 0);
    let (legacy, extra) = padded.split_at(LEGACY_BYTES);
    let malformed = || Error::State { what: "the XSAVE state cannot be read".into() };
    let legacy = kvm_xsave::read_from_bytes(legacy).map_err(|_| malformed())?;
    let words: Vec<u32> =
        extra.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    let mut xsave = Xsave::from_entries(&words).map_err(|_| malformed())?;
    // SAFETY: only the fixed part is replaced, the length of the array that follows it stays.
    unsafe { xsave.as_mut_fam_struct().xsave = legacy };
    // SAFETY: the buffer is as long as KVM_CAP_XSAVE2 says, see `size`.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(Error::kvm("writing the XSAVE state"))
}

fn empty(bytes: usize) -> Result<Xsave> {
    let words = (bytes - LEGACY_BYTES).div_ceil(size_of::<u32>());
    Xsave::new(words).map_err(|_| Error::State {
        what: format!("an XSAVE state of {} bytes is too large", bytes + size_of::<kvm_xsave2>()),
    })
}

/// Asks the kernel for permission to give guests AMX tile data (kernel document `arch/x86/xstate`): without it the
/// supported CPUID does not have it. A host without AMX refuses, which is no matter.
pub fn allow_amx() {
    const ARCH_REQ_XCOMP_GUEST_PERM: libc::c_long = 0x1025;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request touches no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM, XFEATURE_XTILEDATA) };
}
