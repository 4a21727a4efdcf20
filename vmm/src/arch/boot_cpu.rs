//! The state that the boot processor starts with, for either entry protocol.
//!
//! Linux 64-bit entry: long mode, flat segments, the first GiB identity-mapped by 2 MiB pages, RSI = `boot_params`
//! (kernel document `arch/x86/boot`, "64-bit Boot Protocol"). PVH entry: 32-bit protected mode without paging, EBX =
//! `hvm_start_info` (Xen document `misc/pvh`).

use ckvmm_devices::GuestRam;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;

/// Segment descriptors of `[null, null, code, data, task]` for 64-bit and for 32-bit code: Linux wants its code segment
/// at selector 0x10 and data at 0x18.
const GDT_64: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];
const GDT_32: [u64; 5] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

/// How the kernel is entered, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux 64-bit boot protocol, at this guest-physical address.
    Linux(u64),
    /// PVH, at this guest-physical address.
    Pvh(u64),
}

/// General registers at `entry`.
pub fn regs(entry: Entry) -> kvm_regs {
    match entry {
        Entry::Linux(rip) => kvm_regs {
            rflags: RFLAGS_RESERVED,
            rip,
            rsp: layout::BOOT_STACK,
            rbp: layout::BOOT_STACK,
            rsi: layout::ZERO_PAGE,
            ..Default::default()
        },
        Entry::Pvh(rip) => kvm_regs { rflags: RFLAGS_RESERVED, rip, rbx: layout::PVH_INFO, ..Default::default() },
    }
}

/// Special registers at `entry`, on top of what KVM gave the vCPU; writes descriptor and page tables to `ram`.
///
/// # Errors
/// If guest RAM is too small to hold the tables.
pub fn sregs(entry: Entry, mut sregs: kvm_sregs, ram: &GuestRam) -> Result<kvm_sregs, GuestMemoryError> {
    let gdt = if matches!(entry, Entry::Linux(_)) { GDT_64 } else { GDT_32 };
    for (index, descriptor) in gdt.into_iter().enumerate() {
        ram.write_obj(descriptor, GuestAddress(layout::BOOT_GDT + index as u64 * 8))?;
    }
    ram.write_obj(0u64, GuestAddress(layout::BOOT_IDT))?;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = size_of_val(&gdt) as u16 - 1;
    sregs.idt.base = layout::BOOT_IDT;
    sregs.idt.limit = 7;

    let data = segment(&gdt, 3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cs = segment(&gdt, 2);
    sregs.tr = segment(&gdt, 4);
    match entry {
        Entry::Linux(_) => {
            identity_map_first_gib(ram)?;
            sregs.cr3 = layout::PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PE | CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
        Entry::Pvh(_) => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
        }
    }
    Ok(sregs)
}

fn identity_map_first_gib(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    let [level4, level3, level2] = [0, 1, 2].map(|index| layout::PAGE_TABLES + index * PAGE);
    ram.write_obj(level3 | PAGE_PRESENT_WRITABLE, GuestAddress(level4))?;
    ram.write_obj(level2 | PAGE_PRESENT_WRITABLE, GuestAddress(level3))?;
    (0..512u64).try_for_each(|index| {
        ram.write_obj(index << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE, GuestAddress(level2 + index * 8))
    })
}

/// The hidden part of a segment register for entry `index` of `gdt` (Intel SDM vol. 3A §3.4.5).
fn segment(gdt: &[u64], index: usize) -> kvm_segment {
    let entry = gdt[index];
    let field = |shift: u32, bits: u32| (entry >> shift & ((1 << bits) - 1)) as u8;
    let granular = field(55, 1);
    let limit = (entry & 0xffff | entry >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: entry >> 16 & 0xff_ffff | entry >> 32 & 0xff00_0000,
        limit: if granular == 1 { limit << 12 | 0xfff } else { limit },
        selector: index as u16 * 8,
        type_: field(40, 4),
        s: field(44, 1),
        dpl: field(45, 2),
        present: field(47, 1),
        avl: field(52, 1),
        l: field(53, 1),
        db: field(54, 1),
        g: granular,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_segments_are_what_the_protocols_ask_for() {
        let long = segment(&GDT_64, 2);
        assert_eq!((long.l, long.db, long.type_ & 0x8, long.limit), (1, 0, 8, u32::MAX));
        let protected = segment(&GDT_32, 2);
        assert_eq!((protected.l, protected.db, protected.base, protected.limit), (0, 1, 0, u32::MAX));
        assert_eq!(segment(&GDT_32, 4).limit, 0x67);
    }

    #[test]
    fn first_gib_is_mapped_onto_itself() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        sregs(Entry::Linux(0x10_0000), kvm_sregs::default(), &ram).unwrap();
        let last: u64 = ram.read_obj(GuestAddress(layout::PAGE_TABLES + 2 * PAGE + 511 * 8)).unwrap();
        assert_eq!(last & !0xfff, 511 << 21);
    }
}
