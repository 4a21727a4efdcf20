//! Interrupt controllers and the interval timer, which the VM's vCPUs share.

use ckvmm_snapshot::Saved;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::pod;
use crate::error::{Error, Result};

/// State of the VM outside its vCPUs.
#[derive(Serialize, Deserialize)]
pub struct VmState {
    #[serde(with = "pod")]
    pic_master: kvm_irqchip,
    #[serde(with = "pod")]
    pic_slave: kvm_irqchip,
    #[serde(with = "pod")]
    ioapic: kvm_irqchip,
    #[serde(with = "pod")]
    pit: kvm_pit_state2,
}

impl Saved for VmState {
    const KIND: &'static str = "x86-vm";
    const VERSION: u16 = 1;
}

impl VmState {
    /// Reads it from a paused VM.
    ///
    /// # Errors
    /// If KVM cannot be asked.
    pub fn save(vm: &VmFd) -> Result<Self> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(Error::kvm("reading an interrupt controller"))?;
            Ok::<_, Error>(chip)
        };
        Ok(VmState {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: pit(vm)?,
        })
    }

    /// Writes it to a VM whose vCPUs have not run.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub fn restore(&self, vm: &VmFd) -> Result<()> {
        let VmState { pic_master, pic_slave, ioapic, pit } = self;
        vm.set_pit2(pit).map_err(Error::kvm("setting the interval timer"))?;
        for chip in [pic_master, pic_slave, ioapic] {
            vm.set_irqchip(chip).map_err(Error::kvm("setting an interrupt controller"))?;
        }
        Ok(())
    }
}

/// The interval timer. When a channel's count was loaded is told in the host's time, which means nothing elsewhere: KVM
/// loads it again at the restore.
fn pit(vm: &VmFd) -> Result<kvm_pit_state2> {
    let mut pit = vm.get_pit2().map_err(Error::kvm("reading the interval timer"))?;
    pit.channels.iter_mut().for_each(|channel| channel.count_load_time = 0);
    Ok(pit)
}
