//! The VM as KVM has it: memory slots, interrupt controllers, vCPUs.
//!
//! It is made on a thread of its own: KVM's calls take milliseconds, in which others find out what the guest is.
#![allow(unsafe_code)]

use std::{
    io::{self, ErrorKind},
    panic,
    sync::mpsc::{self, Sender},
    thread::{self, JoinHandle},
};

use ckvmm_snapshot::MemoryImage;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

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
#[derive(Debug)]
pub struct Hardware {
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) vm: VmFd,
    pub(super) kvm: Kvm,
    pub(super) ram: Ram,
}

impl Hardware {
    /// Begins to make a VM: what needs nothing of its guest.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub fn begin() -> Result<Begun> {
        let (shape, given) = mpsc::channel();
        // Not by the thread: what counts KVM's events (kvm_stat) finds a VM by who made it.
        let vm = make_vm();
        let make = move || {
            let (kvm, vm) = vm?;
            let bare = Bare { kvm, vm };
            let nobody = |_| Error::os("making a VM")(io::Error::from(ErrorKind::BrokenPipe));
            let (slots, vcpus) = given.recv().map_err(nobody)?;
            let vcpus = bare.shape(slots, vcpus)?;
            Ok((bare, vcpus))
        };
        let made = thread::Builder::new().name("kvm".into()).spawn(make).map_err(Error::os("starting a thread"))?;
        Ok(Begun { shape, made })
    }
}

/// [`Hardware`] that waits for its shape. Where none comes it goes.
#[derive(Debug)]
pub struct Begun {
    shape: Sender<(Slots, u32)>,
    made: JoinHandle<Result<(Bare, Vec<VcpuFd>)>>,
}

impl Begun {
    /// Goes on with `ram` and `vcpus` vCPUs.
    pub fn shaped(self, ram: Ram, vcpus: u32) -> Unfinished {
        let Begun { shape, made } = self;
        // Where making it has failed already `finish` says so.
        drop(shape.send((slots(&ram), vcpus)));
        Unfinished { made, ram }
    }
}

/// [`Hardware`] that is being made.
#[derive(Debug)]
pub struct Unfinished {
    made: JoinHandle<Result<(Bare, Vec<VcpuFd>)>>,
    ram: Ram,
}

impl Unfinished {
    /// Its RAM, to be filled meanwhile.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Fills its RAM as [`Ram::map`] does.
    ///
    /// # Errors
    /// As there.
    pub fn map(&mut self, image: &MemoryImage) -> Result<()> {
        self.ram.map(image)
    }

    /// Waits for it.
    ///
    /// # Errors
    /// If `/dev/kvm` cannot be had, KVM does not allow so many vCPUs, or a call fails.
    pub fn finish(self) -> Result<Hardware> {
        let Unfinished { made, ram } = self;
        let (Bare { vm, kvm }, vcpus) = made.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
        Ok(Hardware { vcpus, vm, kvm, ram })
    }
}

/// A VM, of no shape yet.
#[derive(Debug)]
struct Bare {
    vm: VmFd,
    kvm: Kvm,
}

impl Bare {
    fn shape(&self, slots: Slots, vcpus: u32) -> Result<Vec<VcpuFd>> {
        let most = self.kvm.get_max_vcpus();
        if vcpus as usize > most {
            let what = format!("{vcpus} are more than the {most} that this host's KVM allows");
            return Err(ConfigError::field("vcpus", what, format!("give at most {most}")).into());
        }
        // Before the interrupt controllers are there: afterwards a slot takes ten times as long.
        set_memory(&self.vm, slots)?;
        make_processors(&self.vm, vcpus)
    }
}

fn make_vm() -> Result<(Kvm, VmFd)> {
    let kvm = open()?;
    xsave::allow_amx();
    let vm = create_vm(&kvm).map_err(Error::kvm("creating a VM"))?;
    Ok((kvm, vm))
}

/// Interrupt controllers, interval timer, vCPUs.
fn make_processors(vm: &VmFd, vcpus: u32) -> Result<Vec<VcpuFd>> {
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(Error::kvm("KVM_SET_TSS_ADDR"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(Error::kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.create_irq_chip().map_err(Error::kvm("creating the interrupt controllers"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(Error::kvm("creating the interval timer"))?;
    (0..vcpus).map(|id| vm.create_vcpu(id.into()).map_err(Error::kvm("creating a vCPU"))).collect()
}

/// The CPUID that this host's KVM supports. On a host that is a guest itself the answer takes long.
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

/// Where RAM lies, for KVM.
type Slots = Vec<kvm_userspace_memory_region>;

fn slots(ram: &Ram) -> Slots {
    let slot = |(slot, region): (u32, &GuestRegionMmap<()>)| kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    (0..).zip(ram.memory().iter()).map(slot).collect()
}

fn set_memory(vm: &VmFd, slots: Slots) -> Result<()> {
    for slot in slots {
        // SAFETY: KVM touches it when a vCPU runs, and then it is mapped: who could let one run has `Hardware`, and a
        // machine, which drops its RAM last. Where it comes to none RAM may go first.
        unsafe { vm.set_user_memory_region(slot) }.map_err(Error::kvm("giving the VM its memory"))?;
    }
    Ok(())
}
