//! The machine: RAM, board, vCPUs, built in one place for boot and restore alike.
//!
//! Invariant: only a machine that stands still can be saved or restored: both are methods of [`Paused`], and
//! [`Machine::pause`] is the only way to one. A machine is born paused.
//!
//! Order of a pause: I/O thread parked, devices drained while the vCPUs still run, vCPUs parked with every exit
//! completed. So the time that a disk takes is no pause for the guest.

pub mod board;
pub mod events;
pub mod exits;
pub mod huge_pages;
pub mod io_thread;
pub mod kvm;
pub mod moving;
pub mod ram;
pub mod vcpu;

use std::sync::Arc;

use ckvmm_snapshot::{Aside, LiveDisk, StateMap};
use jiff::Timestamp;
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use self::{
    board::{Assembled, Backends, Board, Cards},
    events::Notify,
    huge_pages::Collapser,
    io_thread::IoThread,
    kvm::Hardware,
    ram::Ram,
    vcpu::Vcpus,
};
use crate::{
    arch::{boot_cpu, boot_cpu::Entry, cpuid},
    error::{Error, Result},
    host_cpu::Host,
    state::{
        clock::{ClockPolicy, ClockState},
        msrs,
        vcpu::{VcpuContext, VcpuState},
        vm::VmState,
        xsave,
    },
};

/// A machine. Fields are dropped in their order: threads first, RAM last.
pub struct Machine {
    collapser: Option<Collapser>,
    vcpus: Vcpus,
    io: IoThread,
    board: Board,
    /// Of each vCPU, once it has its features.
    contexts: Vec<VcpuContext>,
    vm: VmFd,
    kvm: Kvm,
    ram: Ram,
    tsc_khz: u32,
    running: bool,
    /// Clocks of a restored machine that has not run: guest time goes on when the guest does.
    frozen: Option<(ClockState, ClockPolicy)>,
}

impl Machine {
    /// Builds a machine around what KVM has of it. Its processors have neither features nor registers yet: these come with
    /// [`Paused::set_entry`] or [`Paused::restore`].
    ///
    /// # Errors
    /// If KVM lacks something, or a device cannot use its backend.
    pub fn build(hardware: Hardware, backends: Backends, notify: &Notify) -> Result<Machine> {
        let Hardware { ram, kvm, vm, vcpus: fds } = hardware;
        let Assembled { board, buses, subscribers, port } = Board::assemble(&vm, ram.memory(), backends, notify)?;
        let tsc_khz = fds[0].get_tsc_khz().map_err(Error::kvm("reading the TSC frequency"))?;
        let io = IoThread::start(subscribers, port)?;
        let vcpus = Vcpus::start(fds, &Arc::new(buses), notify)?;
        Ok(Machine {
            collapser: None,
            vcpus,
            io,
            board,
            contexts: Vec::new(),
            vm,
            kvm,
            ram,
            tsc_khz,
            running: false,
            frozen: None,
        })
    }

    /// Stops the machine (if it runs) and gives access to what only a machine at rest has.
    ///
    /// # Errors
    /// If a device does not come to rest; the machine then runs on.
    pub fn pause(&mut self) -> Result<Paused<'_>> {
        self.leave_huge_pages();
        if self.running {
            self.io.park();
            if let Err(error) = self.board.drain() {
                self.board.undrain();
                self.io.run();
                return Err(error);
            }
            self.vcpus.park();
            self.running = false;
        }
        Ok(Paused { machine: self })
    }

    /// Lets the machine run.
    ///
    /// # Errors
    /// If KVM does not take the clocks, or word of the pause.
    pub fn resume(&mut self) -> Result<()> {
        if self.running {
            return Ok(());
        }
        self.set_time_right()?;
        self.frozen = None;
        self.running = true;
        self.board.undrain();
        // Its devices first, which takes microseconds: the vCPU that is woken up may take this thread's CPU until the
        // scheduler's next tick, 4 ms at 250 Hz, and a guest would have to wait as long for its disks and its console.
        self.io.run();
        self.vcpus.run();
        Ok(())
    }

    /// Lets the vCPUs go when it returns: what runs next waits for no lock.
    fn set_time_right(&self) -> Result<()> {
        let fds = self.vcpus.lock();
        let fds: Vec<&VcpuFd> = fds.iter().map(|fd| &**fd).collect();
        if let Some((clock, policy)) = &self.frozen {
            clock.restore_tsc(&self.vm, &fds, *policy)?;
            clock.restore_kvmclock(&self.vm, *policy)?;
        }
        fds.iter().try_for_each(|fd| tell_of_pause(fd))
    }

    /// Its vCPUs, for whoever has something else to do.
    pub fn aside(&self) -> Aside {
        Aside::of(&self.vcpus.threads())
    }

    /// How many vCPUs it has.
    pub fn vcpus(&self) -> usize {
        self.vcpus.count()
    }

    /// What becomes of the time of a restored machine that has not run.
    pub fn set_clock_policy(&mut self, policy: ClockPolicy) {
        if let Some((_, frozen)) = &mut self.frozen {
            *frozen = policy;
        }
    }

    /// True while the vCPUs may run.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Makes huge pages again of those that were split while a writer had them too, beside the running guest.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub fn collapse_huge_pages(&mut self) -> Result<()> {
        self.collapser = Some(Collapser::start(self.ram.memory(), self.aside())?);
        Ok(())
    }

    /// Leaves those that are still split as they are.
    pub fn leave_huge_pages(&mut self) {
        self.collapser = None;
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.board.press_power_button();
    }

    /// The disks whose contents belong to a checkpoint, by id.
    pub fn captured_disks(&self) -> &[(String, Arc<LiveDisk>)] {
        self.board.captured_disks()
    }

    /// What the network cards count.
    pub fn cards(&self) -> &Cards {
        self.board.cards()
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The CPUID of the first vCPU: what another host's processor must have.
    pub fn processor(&self) -> &CpuId {
        &self.contexts[0].cpuid
    }

    /// Frequency of the guest's TSC in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }
}

/// A machine that stands still. Dropping this does not make it run.
pub struct Paused<'a> {
    machine: &'a mut Machine,
}

impl Paused<'_> {
    /// Sets the boot processor to the kernel's entry; the others wait for it to start them.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn set_entry(&mut self, entry: Entry) -> Result<()> {
        let machine = &mut *self.machine;
        let fds = machine.vcpus.lock();
        let deadline = machine.kvm.check_extension(Cap::TscDeadlineTimer);
        let supported = kvm::supported_cpuid(&machine.kvm)?;
        machine.contexts.clear();
        for (fd, id) in fds.iter().zip(0..) {
            let cpuid = cpuid::for_vcpu(&supported, id, fds.len() as u32, deadline);
            machine.contexts.push(context(&machine.kvm, &machine.vm, fd, id, cpuid)?);
            msrs::set_boot(fd, id)?;
        }
        let boot = &fds[0];
        let sregs = boot.get_sregs().map_err(Error::kvm("reading special registers"))?;
        let sregs = boot_cpu::sregs(entry, sregs, machine.ram.memory())
            .map_err(|source| Error::RamAccess { what: "writing page tables", source })?;
        boot.set_sregs(&sregs).map_err(Error::kvm("setting special registers"))?;
        boot.set_regs(&boot_cpu::regs(entry)).map_err(Error::kvm("setting registers"))
    }

    /// The state of everything but RAM and disks, and the instant at which it was read. Devices first, then what KVM
    /// holds.
    ///
    /// # Errors
    /// If any of it cannot be read.
    pub fn save(&self) -> Result<(StateMap, Timestamp)> {
        let mut states = StateMap::new();
        self.machine.board.save(&mut states)?;
        let fds = self.machine.vcpus.lock();
        let fds: Vec<&VcpuFd> = fds.iter().map(|fd| &**fd).collect();
        let mut instant = Timestamp::now();
        match &self.machine.frozen {
            Some((clock, _)) => states.put("clock", clock)?,
            None => {
                let clock = ClockState::save(&self.machine.vm, &fds)?;
                states.put("clock", &clock)?;
                instant = clock.instant();
            }
        }
        assert_eq!(self.machine.contexts.len(), fds.len(), "a machine without features has no state");
        for (fd, context) in fds.iter().zip(&self.machine.contexts) {
            states.put(&format!("vcpu/{}", context.id), &VcpuState::save(fd, context)?)?;
        }
        states.put("vm", &VmState::save(&self.machine.vm)?)?;
        Ok((states, instant))
    }

    /// Puts a saved state into a machine that has not run: vCPUs, interrupt controllers, devices, in this order.
    /// The clocks stand still until [`Machine::resume`].
    ///
    /// # Errors
    /// If the host lacks what the guest had, or a state is missing, left over, or does not fit.
    pub fn restore(&mut self, mut states: StateMap, policy: ClockPolicy, from: Host) -> Result<()> {
        let machine = &mut *self.machine;
        let fds = machine.vcpus.lock();
        let fds: Vec<&VcpuFd> = fds.iter().map(|fd| &**fd).collect();
        let clock: ClockState = states.take("clock")?;
        let supported = match from {
            // The guest had them here, and it takes long to ask.
            Host::Same => None,
            Host::Other => Some(kvm::supported_cpuid(&machine.kvm)?),
        };
        let mut saved = Vec::with_capacity(fds.len());
        machine.contexts.clear();
        for (fd, id) in fds.iter().zip(0..) {
            let state: VcpuState = states.take(&format!("vcpu/{id}"))?;
            let cpuid = state.cpuid()?;
            if let Some(supported) = &supported {
                require_features(&cpuid, supported)?;
            }
            machine.contexts.push(context(&machine.kvm, &machine.vm, fd, id, cpuid)?);
            saved.push(state);
        }
        clock.restore_tsc(&machine.vm, &fds, policy)?;
        for ((fd, context), state) in fds.iter().zip(&machine.contexts).zip(&saved) {
            let tsc = msrs::get(fd, context.id, &[msrs::IA32_TSC])?[0].1;
            state.restore(fd, context, tsc)?;
        }
        states.take::<VmState>("vm")?.restore(&machine.vm)?;
        machine.board.restore(&mut states)?;
        states.finish()?;
        machine.board.new_generation(machine.ram.memory())?;
        machine.board.kick();
        machine.frozen = Some((clock, policy));
        Ok(())
    }

    /// Guest RAM, which does not change while this lives.
    pub fn ram(&self) -> &Ram {
        &self.machine.ram
    }
}

/// Tells vCPU `id` what it is, and finds out what its state consists of.
fn context(kvm: &Kvm, vm: &VmFd, fd: &VcpuFd, id: u32, cpuid: CpuId) -> Result<VcpuContext> {
    fd.set_cpuid2(&cpuid).map_err(Error::kvm("setting CPUID"))?;
    Ok(VcpuContext { id, msrs: msrs::readable(kvm, fd)?, xsave_bytes: xsave::size(vm), cpuid })
}

fn require_features(image: &CpuId, host: &CpuId) -> Result<()> {
    let missing = cpuid::missing_features(image, host);
    if missing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "the guest uses CPU features that this host lacks: {}; restore it on a host that has them",
        missing.join(", ")
    );
    Err(Error::State { what })
}

/// So that the guest's watchdogs know that it stood still (`KVM_KVMCLOCK_CTRL`). EINVAL: it has no kvmclock.
fn tell_of_pause(fd: &VcpuFd) -> Result<()> {
    match fd.kvmclock_ctrl() {
        Err(error) if error.errno() != libc::EINVAL => Err(Error::Kvm { what: "KVM_KVMCLOCK_CTRL", source: error }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
