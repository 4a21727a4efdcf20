//! Why a vCPU left the guest, and what is done about it.

use ckvmm_devices::Bus;
use kvm_ioctls::{VcpuExit, VcpuFd};

/// What the vCPUs reach outside RAM.
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Guest-physical addresses without RAM.
    pub mmio: Bus,
}

/// What the loop around `KVM_RUN` does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// Run on (if nobody wants the vCPU parked).
    Continue,
    /// The guest triple-faulted.
    Shutdown,
    /// Nothing that ckvmm knows: the exit and the registers in one line.
    Unknown(String),
}

/// Enters the guest once and handles the exit.
pub fn handle(fd: &mut VcpuFd, buses: &Buses) -> Exit {
    let unknown = match fd.run() {
        Ok(VcpuExit::IoIn(port, data)) => return read(&buses.ports, port.into(), data),
        Ok(VcpuExit::IoOut(port, data)) => return write(&buses.ports, port.into(), data),
        Ok(VcpuExit::MmioRead(address, data)) => return read(&buses.mmio, address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => return write(&buses.mmio, address, data),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => return Exit::Continue,
        Ok(VcpuExit::Shutdown) => return Exit::Shutdown,
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            format!("the processor refused to enter the guest (reason {reason:#x} on host CPU {cpu})")
        }
        Ok(VcpuExit::InternalError) => "KVM could not go on (KVM_EXIT_INTERNAL_ERROR)".to_owned(),
        Ok(other) => format!("unknown exit {other:?}"),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Exit::Continue,
        Err(error) => format!("KVM_RUN: {error}"),
    };
    Exit::Unknown(format!("{unknown}{}; {}", internal_error(fd), registers(fd)))
}

/// A read where nobody is gives all ones, as an empty bus does.
fn read(bus: &Bus, address: u64, data: &mut [u8]) -> Exit {
    if !bus.read(address, data) {
        data.fill(0xff);
    }
    Exit::Continue
}

/// A write where nobody is goes nowhere.
fn write(bus: &Bus, address: u64, data: &[u8]) -> Exit {
    bus.write(address, data);
    Exit::Continue
}

/// The bytes of the instruction that KVM could not emulate, if it says so.
fn internal_error(fd: &mut VcpuFd) -> String {
    let Ok(regs) = fd.get_regs() else { return String::new() };
    match fd.translate_gva(regs.rip) {
        Ok(translation) if translation.valid != 0 => {
            format!(" at guest-physical {:#x}", translation.physical_address)
        }
        _ => String::new(),
    }
}

fn registers(fd: &VcpuFd) -> String {
    let (Ok(r), Ok(s)) = (fd.get_regs(), fd.get_sregs()) else {
        return "registers cannot be read".into();
    };
    format!(
        "rip={:#x} rsp={:#x} rflags={:#x} rax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rbp={:#x} \
         r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x} cr0={:#x} cr2={:#x} cr3={:#x} \
         cr4={:#x} efer={:#x} cs={:#x} ss={:#x}",
        r.rip,
        r.rsp,
        r.rflags,
        r.rax,
        r.rbx,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        r.rbp,
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        s.cr0,
        s.cr2,
        s.cr3,
        s.cr4,
        s.efer,
        s.cs.selector,
        s.ss.selector,
    )
}
