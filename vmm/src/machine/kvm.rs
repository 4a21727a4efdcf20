//! The VM as KVM has it: memory slots, interrupt controllers, vCPUs.
#![allow(unsafe_code)]

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::ram::Ram;
use crate::{
    arch::layout,
    config::ConfigError,
    error::{Error, Result},
    state::xsave,
};

/// `KVM_CREATE_VM` may be interrupted by a signal; so often it is tried.
const CREATE_TRIES: usize = 16;

/// What a machine cannot do without.
pub(crate) const REQUIRED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
];

/// Opens `/dev/kvm`.
///
/// # Errors
/// If it is not there, may not be used, or lacks what ckvmm needs.
pub fn open() -> Result<Kvm> {
    let kvm = Kvm::new().map_err(|source| Error::NoKvm {
        source,
        mend: match source.errno() {
            libc::ENOENT => "load kvm_intel or kvm_amd, and turn virtualisation on in the firmware",
            libc::EACCES | libc::EPERM => "join the group that owns it: sudo usermod -aG kvm $USER, then log in again",
            _ => "`ckvmm doctor` says what this host's KVM can do",
        },
    })?;
    match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(Error::Unsupported { what: (*name).to_owned() }),
        None => Ok(kvm),
    }
}

/// What KVM has of a machine. Fields are dropped in their order: RAM last.
pub struct Hardware {
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) vm: VmFd,
    pub(super) kvm: Kvm,
    /// Asked for once: on a host that is a guest itself each answer takes milliseconds.
    pub(super) supported: CpuId,
    pub(super) ram: Ram,
}

impl Hardware {
    /// A VM with `ram` and `vcpus` vCPUs.
    ///
    /// # Errors
    /// If `/dev/kvm` cannot be had, KVM does not allow so many vCPUs, or a call fails.
    pub fn make(ram: Ram, vcpus: u32) -> Result<Hardware> {
        let kvm = open()?;
        let (vm, vcpus) = create(&kvm, &ram, vcpus)?;
        let supported = supported_cpuid(&kvm)?;
        Ok(Hardware { vcpus, vm, kvm, supported, ram })
    }
}

fn create(kvm: &Kvm, ram: &Ram, vcpus: u32) -> Result<(VmFd, Vec<VcpuFd>)> {
    let most = kvm.get_max_vcpus();
    if vcpus as usize > most {
        let what = format!("{vcpus} are more than the {most} that this host's KVM allows");
        return Err(ConfigError::field("vcpus", what, format!("give at most {most}")).into());
    }
    xsave::allow_amx();
    let vm = create_vm(kvm).map_err(Error::kvm("creating a VM"))?;
    // Before the interrupt controllers are there: afterwards a slot takes ten times as long.
    set_memory(&vm, ram)?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.create_irq_chip().map_err(Error::kvm("creating the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(Error::kvm("creating the interval timer"))?;
    let vcpus =
        (0..vcpus).map(|id| vm.create_vcpu(id.into()).map_err(Error::kvm("creating a vCPU"))).collect::<Result<_>>()?;
    Ok((vm, vcpus))
}

/// The CPUID that this host's KVM supports.
pub(super) fn supported_cpuid(kvm: &Kvm) -> Result<CpuId> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(Error::kvm("reading the supported CPUID"))
}

/// Creates an empty VM.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    for _ in 1..CREATE_TRIES {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result,
        }
    }
    kvm.create_vm()
}

fn set_memory(vm: &VmFd, ram: &Ram) -> Result<()> {
    for (slot, region) in ram.memory().iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped for as long as `Ram` lives, and the machine drops its VM before its RAM.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::kvm("giving the VM its memory"))?;
    }
    Ok(())
}
