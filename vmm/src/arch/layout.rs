//! The address map of the machine: every guest-physical address, I/O port and interrupt line, in one place.
//!
//! ```text
//! 0x0000_0000 ┬ RAM ── 0x0500 GDT, 0x6000 PVH start info, 0x7000 zero page, 0x9000 page tables, 0x2_0000 command line
//! 0x000a_0000 ┤ hole (legacy video memory: there is none)
//! 0x000e_0000 ┤ ACPI tables, RSDP first; 0x000f_f000 VM generation ID   (backed by RAM, reserved in e820)
//! 0x0010_0000 ┤ RAM ── the kernel; the initrd ends where low RAM ends
//! 0xc000_0000 ┤ hole: 0xd000_0000 virtio-mmio, a page a device; 0xfec0_0000 I/O APIC; 0xfee0_0000 local APIC
//! 0x1_0000_0000 ┴ RAM above the hole
//! ```

/// Where RAM below 4 GiB ends and the MMIO gap begins.
pub const MMIO_GAP_START: u64 = 0xc000_0000;
/// Where the MMIO gap ends and high RAM begins.
pub const MMIO_GAP_END: u64 = 1 << 32;

/// Global descriptor table that the boot processor starts with.
pub const BOOT_GDT: u64 = 0x500;
/// An empty interrupt descriptor table.
pub const BOOT_IDT: u64 = 0x540;
/// `hvm_start_info` of the PVH protocol.
pub const PVH_INFO: u64 = 0x6000;
/// Memory map entries of the PVH protocol.
pub const PVH_MEMMAP: u64 = 0x6100;
/// Module list (the initrd) of the PVH protocol.
pub const PVH_MODULES: u64 = 0x6040;
/// `boot_params` of the Linux 64-bit protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the boot processor at the Linux entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Level 4 page table; levels 3 and 2 follow, a page each.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest kernel command line in bytes with its NUL (`COMMAND_LINE_SIZE` of Linux on x86).
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory that the guest may use; above it the (absent) EBDA and video memory.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The kernel is loaded here, and RAM proper starts.
pub const HIMEM_START: u64 = 0x10_0000;

/// ACPI tables; the RSDP is the first of them, where firmware-less guests look for it (ACPI 6.5 §5.2.5.1).
pub const ACPI_START: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = VM_GENERATION_ID;
/// The page that holds the 16 bytes of the VM generation ID.
pub const VM_GENERATION_ID: u64 = 0xf_f000;

/// First virtio-mmio device.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Distance between two virtio-mmio devices.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// Offset of `QueueNotify` (virtio 1.2 §4.2.2).
pub const VIRTIO_MMIO_NOTIFY: u64 = 0x50;
/// How many virtio devices fit: one interrupt line of the I/O APIC each.
pub const VIRTIO_MMIO_MAX: usize = (IOAPIC_PINS - VIRTIO_MMIO_GSI) as usize;

/// I/O APIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// Pins of KVM's I/O APIC.
pub const IOAPIC_PINS: u32 = 24;
/// Three pages that KVM needs on Intel hosts (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// One page that KVM needs on Intel hosts (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// 16550 serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of the serial port.
pub const SERIAL_PORTS: u16 = 8;
/// Keyboard controller, of which only the reset line is there.
pub const I8042_PORT: u16 = 0x60;
/// Ports of the keyboard controller.
pub const I8042_PORTS: u16 = 5;
/// ACPI sleep control, sleep status and reset registers.
pub const POWER_PORT: u16 = 0x600;
/// Ports of the power registers.
pub const POWER_PORTS: u16 = 4;
/// pvpanic (QEMU's `docs/specs/pvpanic`).
pub const PVPANIC_PORT: u16 = 0x505;

/// Interrupt line of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt line of the power button (ACPI generic event device).
pub const POWER_BUTTON_GSI: u32 = 5;
/// Interrupt line that says the VM generation ID has changed (ACPI generic event device).
pub const VM_GENERATION_GSI: u32 = 6;
/// Interrupt line of the first virtio device.
pub const VIRTIO_MMIO_GSI: u32 = 7;

/// Most vCPUs: xAPIC IDs are one byte, 255 is the broadcast, and one is left for the I/O APIC.
pub const VCPUS_MAX: u32 = 254;
/// Most RAM in bytes: 1 TiB.
pub const RAM_MAX: u64 = 1 << 40;

/// The ranges of guest RAM as (guest-physical address, bytes) for `bytes` of it: one, or two around the MMIO gap.
pub fn ram_ranges(bytes: u64) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, bytes.min(MMIO_GAP_START))];
    if bytes > MMIO_GAP_START {
        ranges.push((MMIO_GAP_END, bytes - MMIO_GAP_START));
    }
    ranges
}

/// The parts of RAM that the guest may use as (guest-physical address, bytes), and the parts that it must not.
pub fn memory_map(bytes: u64) -> Vec<MemoryMapEntry> {
    let usable = |start, end| MemoryMapEntry { start, bytes: end - start, usable: true };
    let reserved = |start, end| MemoryMapEntry { start, bytes: end - start, usable: false };
    let mut map =
        vec![usable(0, LOW_RAM_END), reserved(ACPI_START, HIMEM_START), usable(HIMEM_START, bytes.min(MMIO_GAP_START))];
    if bytes > MMIO_GAP_START {
        map.push(usable(MMIO_GAP_END, MMIO_GAP_END + bytes - MMIO_GAP_START));
    }
    map
}

/// A line of the memory map that a guest is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// RAM that the guest may use, as opposed to reserved.
    pub usable: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_gap() {
        assert_eq!(ram_ranges(1 << 30), [(0, 1 << 30)]);
        assert_eq!(ram_ranges(MMIO_GAP_START), [(0, MMIO_GAP_START)]);
        assert_eq!(ram_ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn memory_map_lies_in_ram_in_order_without_overlap() {
        for bytes in [16 << 20, 3 << 30, 5 << 30, RAM_MAX] {
            let map = memory_map(bytes);
            assert!(map.windows(2).all(|pair| pair[0].start + pair[0].bytes <= pair[1].start));
            assert!(map.iter().all(|entry| {
                ram_ranges(bytes)
                    .iter()
                    .any(|(start, len)| *start <= entry.start && entry.start + entry.bytes <= start + len)
            }));
        }
    }

    #[test]
    fn virtio_devices_have_a_line_each() {
        assert_eq!(VIRTIO_MMIO_MAX, 17);
        assert!(VIRTIO_MMIO_BASE + VIRTIO_MMIO_STRIDE * VIRTIO_MMIO_MAX as u64 <= IOAPIC.into());
    }
}
