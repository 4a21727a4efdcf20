//! One vCPU's state.
//!
//! The order of the calls is part of what KVM asks for, and a reason stands at each that could not be elsewhere.

use ckvmm_snapshot::Saved;
use kvm_bindings::{
    CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{msrs, pod, xsave};
use crate::error::{Error, Result};

/// Offset of the timer's entry in the local vector table, its mask bit, and its mode "TSC-deadline" (SDM vol. 3A
/// §11.5.1).
const LAPIC_LVT_TIMER: usize = 0x320;
const LVT_MASKED: u32 = 1 << 16;
const LVT_MODE: u32 = 0b11 << 17;
const LVT_TSC_DEADLINE: u32 = 0b10 << 17;

/// State of a vCPU that is not running and has no exit to complete.
#[derive(Serialize, Deserialize)]
pub struct VcpuState {
    #[serde(with = "pod")]
    mp_state: kvm_mp_state,
    #[serde(with = "pod")]
    regs: kvm_regs,
    #[serde(with = "pod")]
    sregs: kvm_sregs,
    xsave: ByteBuf,
    #[serde(with = "pod")]
    xcrs: kvm_xcrs,
    #[serde(with = "pod")]
    debug_regs: kvm_debugregs,
    #[serde(with = "pod")]
    lapic: kvm_lapic_state,
    #[serde(with = "pod::list")]
    cpuid: Vec<kvm_cpuid_entry2>,
    msrs: Vec<(u32, u64)>,
    #[serde(with = "pod")]
    events: kvm_vcpu_events,
}

impl Saved for VcpuState {
    const KIND: &'static str = "x86-vcpu";
    const VERSION: u16 = 1;
}

/// What saving and restoring need to know beside the vCPU itself.
#[derive(Debug, Clone)]
pub struct VcpuContext {
    /// Number of the vCPU.
    pub id: u32,
    /// MSRs that hold its state.
    pub msrs: Vec<u32>,
    /// Length of its extended state in bytes.
    pub xsave_bytes: usize,
    /// What it was told by `KVM_SET_CPUID2`.
    pub cpuid: CpuId,
}

impl VcpuState {
    /// Reads the state of `vcpu`.
    ///
    /// # Errors
    /// If KVM does not give all of it.
    pub fn save(vcpu: &VcpuFd, context: &VcpuContext) -> Result<Self> {
        // First: reading it takes up a pending INIT or SIPI, which changes the rest.
        let mp_state = vcpu.get_mp_state().map_err(Error::kvm("reading the MP state"))?;
        let regs = vcpu.get_regs().map_err(Error::kvm("reading registers"))?;
        let sregs = vcpu.get_sregs().map_err(Error::kvm("reading special registers"))?;
        let xsave = ByteBuf::from(xsave::get(vcpu, context.xsave_bytes)?);
        let xcrs = vcpu.get_xcrs().map_err(Error::kvm("reading XCRs"))?;
        let debug_regs = vcpu.get_debug_regs().map_err(Error::kvm("reading debug registers"))?;
        let msrs = msrs::get(vcpu, context.id, &context.msrs)?;
        // After the MSRs: a timer that fires in between is then kept twice (deadline and pending interrupt) rather
        // than not at all, and an interrupt too many is one that every guest bears.
        let lapic = vcpu.get_lapic().map_err(Error::kvm("reading the local APIC"))?;
        let events = vcpu.get_vcpu_events().map_err(Error::kvm("reading pending events"))?;
        let cpuid = context.cpuid.as_slice().to_vec();
        Ok(VcpuState { mp_state, regs, sregs, xsave, xcrs, debug_regs, lapic, cpuid, msrs, events })
    }

    /// Writes the state to `vcpu`, whose CPUID and TSC are set already.
    ///
    /// # Errors
    /// If KVM does not take all of it.
    pub fn restore(&self, vcpu: &VcpuFd, context: &VcpuContext, tsc: u64) -> Result<()> {
        let VcpuState { mp_state, regs, sregs, xsave, xcrs, debug_regs, lapic, cpuid: _, msrs, events } = self;
        vcpu.set_mp_state(*mp_state).map_err(Error::kvm("setting the MP state"))?;
        vcpu.set_regs(regs).map_err(Error::kvm("setting registers"))?;
        vcpu.set_sregs(sregs).map_err(Error::kvm("setting special registers"))?;
        xsave::set(vcpu, context.xsave_bytes, xsave)?;
        vcpu.set_xcrs(xcrs).map_err(Error::kvm("setting XCRs"))?;
        vcpu.set_debug_regs(debug_regs).map_err(Error::kvm("setting debug registers"))?;
        // After the special registers, which hold the APIC base; before the MSRs, since a TSC deadline that is
        // written while the timer has another mode is dropped.
        vcpu.set_lapic(lapic).map_err(Error::kvm("setting the local APIC"))?;
        msrs::set(vcpu, context.id, &restore_order(msrs, lapic, tsc))?;
        // Last: the calls before it may drop or make pending events.
        vcpu.set_vcpu_events(events).map_err(Error::kvm("setting pending events"))
    }

    /// The CPUID that the vCPU was told.
    ///
    /// # Errors
    /// If the list is longer than KVM allows.
    pub fn cpuid(&self) -> Result<CpuId> {
        CpuId::from_entries(&self.cpuid).map_err(|_| Error::State {
            what: format!("a CPUID of {} entries is longer than KVM allows", self.cpuid.len()),
        })
    }
}

/// The MSRs with the TSC deadline last and never lost: a timer in deadline mode whose deadline reads 0 may have fired
/// just before it was read, so it fires once more.
fn restore_order(msrs: &[(u32, u64)], lapic: &kvm_lapic_state, tsc: u64) -> Vec<(u32, u64)> {
    let (mut ordered, deadline): (Vec<_>, Vec<_>) =
        msrs.iter().copied().partition(|(index, _)| *index != msrs::IA32_TSC_DEADLINE);
    let timer = lvt_timer(lapic);
    let armed = timer & LVT_MODE == LVT_TSC_DEADLINE && timer & LVT_MASKED == 0;
    ordered.extend(deadline.into_iter().map(|(index, value)| (index, if value == 0 && armed { tsc } else { value })));
    ordered
}

fn lvt_timer(lapic: &kvm_lapic_state) -> u32 {
    let byte = |offset: usize| lapic.regs[LAPIC_LVT_TIMER + offset] as u8;
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic(timer: u32) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (index, byte) in timer.to_le_bytes().into_iter().enumerate() {
            lapic.regs[LAPIC_LVT_TIMER + index] = byte as i8;
        }
        lapic
    }

    #[test]
    fn deadline_comes_last_and_fires_if_it_may_have() {
        let msrs = [(msrs::IA32_TSC_DEADLINE, 0), (0x174, 1)];
        assert_eq!(
            restore_order(&msrs, &lapic(LVT_TSC_DEADLINE | 0xec), 99),
            [(0x174, 1), (msrs::IA32_TSC_DEADLINE, 99)]
        );
        assert_eq!(
            restore_order(&msrs, &lapic(LVT_TSC_DEADLINE | LVT_MASKED), 99),
            [(0x174, 1), (msrs::IA32_TSC_DEADLINE, 0)]
        );
        let armed = [(msrs::IA32_TSC_DEADLINE, 55)];
        assert_eq!(restore_order(&armed, &lapic(LVT_TSC_DEADLINE), 99), armed);
    }
}
