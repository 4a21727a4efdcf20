//! The ACPI tables: what the guest learns of its machine.
//!
//! Hardware-reduced ACPI (ACPI 6.5 §4.1): no fixed hardware, no system control interrupt. Power button and VM
//! generation ID notify through a generic event device (§5.6.9), each on an interrupt line of its own, so that the
//! event needs no register. virtio devices are `LNRO0005`, which every Linux with `virtio_mmio` probes by itself.
//!
//! ```text
//! RSDP → XSDT → FADT → DSDT
//!             → MADT   (a local APIC a vCPU, the I/O APIC)
//! ```

use std::ops::Range;

use acpi_tables::{
    Aml,
    aml::{self, Path, ResourceTemplate},
    fadt::{FADTBuilder, Flags, PmProfile},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

use super::layout;

const OEM_ID: [u8; 6] = *b"CKVMM ";
const OEM_TABLE_ID: [u8; 8] = *b"CKVMM   ";
const OEM_REVISION: u32 = 1;
/// `IAPC_BOOT_ARCH`: there is no VGA, no CMOS clock; and no 8042 either, since its bit is clear (ACPI 6.5 §5.2.9.3).
const BOOT_ARCH_NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
/// `SLP_TYP` of S5, as `_S5` names it and the sleep control register takes it.
const SLEEP_TYPE_S5: u8 = 5;
/// Value that resets the machine when written to the reset register.
const RESET_VALUE: u8 = 1;
const TABLE_ALIGN: u64 = 64;

/// All tables, to be written to [`layout::ACPI_START`]; the RSDP stands at its start.
///
/// `vcpus` have APIC IDs from 0, `virtio_devices` are numbered from 0. The result fits below [`layout::ACPI_END`] for
/// every machine that the configuration allows.
pub fn tables(vcpus: u32, virtio_devices: usize) -> Vec<u8> {
    let mut blob = Blob::new(layout::ACPI_START);
    blob.reserve(Rsdp::len());
    let dsdt = blob.append(dsdt(virtio_devices).as_slice());
    let fadt = blob.append(&bytes(&fadt(dsdt)));
    let madt = blob.append(&bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = blob.append(&bytes(&xsdt));
    blob.fill_reserved(&bytes(&Rsdp::new(OEM_ID, xsdt)));
    blob.data
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |offset: u16| {
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, (layout::POWER_PORT + offset).into())
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = BOOT_ARCH_NO_VGA_NO_RTC.into();
    fadt.sleep_control_reg = register(0);
    fadt.sleep_status_reg = register(1);
    fadt.reset_reg = register(2);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"ckvmm\0\0\0").into();
    fadt.finalize()
}

fn madt(vcpus: u32) -> MADT {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(layout::LAPIC));
    for id in (0..vcpus).map(|id| id as u8) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

fn dsdt(virtio_devices: usize) -> Sdt {
    let mut body =
        bytes(&aml::Name::new(Path::new("_S5_"), &aml::Package::new(vec![&SLEEP_TYPE_S5, &0u8, &0u8, &0u8])));
    serial(&mut body);
    panic_device(&mut body);
    generation_id(&mut body);
    power_button(&mut body);
    event_device(&mut body);
    for index in 0..virtio_devices {
        virtio(&mut body, index);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table
}

fn serial(body: &mut Vec<u8>) {
    device(
        body,
        "COM1",
        &aml::EISAName::new("PNP0501"),
        0,
        &[&io(layout::SERIAL_PORT, layout::SERIAL_PORTS), &edge(layout::SERIAL_GSI)],
    );
}

fn panic_device(body: &mut Vec<u8>) {
    device(body, "PEVT", &"QEMU0001", 0, &[&io(layout::PVPANIC_PORT, 1)]);
}

fn virtio(body: &mut Vec<u8>, index: usize) {
    let base = layout::VIRTIO_MMIO_BASE + index as u64 * layout::VIRTIO_MMIO_STRIDE;
    let window = aml::Memory32Fixed::new(true, base as u32, layout::VIRTIO_MMIO_STRIDE as u32);
    let line = edge(layout::VIRTIO_MMIO_GSI + index as u32);
    device(body, &format!("VR{index:02}"), &"LNRO0005", index as u32, &[&window, &line]);
}

/// A device with `_HID`, `_UID` and `_CRS`.
fn device(body: &mut Vec<u8>, name: &str, hid: &dyn Aml, uid: u32, resources: &[&dyn Aml]) {
    let hid = aml::Name::new(Path::new("_HID"), hid);
    let uid = aml::Name::new(Path::new("_UID"), &uid);
    let crs = ResourceTemplate::new(resources.to_vec());
    let crs = aml::Name::new(Path::new("_CRS"), &crs);
    aml::Device::new(Path::new(&format!("_SB_.{name}")), vec![&hid, &uid, &crs]).to_aml_bytes(body);
}

/// The device of Microsoft's "Virtual Machine Generation ID": `ADDR` is the guest-physical address of the ID.
fn generation_id(body: &mut Vec<u8>) {
    let address = aml::Package::new(vec![&layout::VM_GENERATION_ID, &0u64]);
    aml::Device::new(
        Path::new("_SB_.VGEN"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"CKVM0001"),
            &aml::Name::new(Path::new("_CID"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("_DDN"), &"VM_Gen_Counter"),
            &aml::Name::new(Path::new("ADDR"), &address),
        ],
    )
    .to_aml_bytes(body);
}

fn power_button(body: &mut Vec<u8>) {
    let hid = aml::EISAName::new("PNP0C0C");
    let hid = aml::Name::new(Path::new("_HID"), &hid);
    aml::Device::new(Path::new("_SB_.PWRB"), vec![&hid]).to_aml_bytes(body);
}

/// The generic event device: `_EVT` is called with the line that fired and notifies the device behind it with 0x80.
fn event_device(body: &mut Vec<u8>) {
    let power = edge(layout::POWER_BUTTON_GSI);
    let generation = edge(layout::VM_GENERATION_GSI);
    let notify = (Path::new("\\_SB_.PWRB"), Path::new("\\_SB_.VGEN"));
    aml::Device::new(
        Path::new("_SB_.GED_"),
        vec![
            &aml::Name::new(Path::new("_HID"), &"ACPI0013"),
            &aml::Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&power, &generation])),
            &aml::Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    &aml::If::new(
                        &aml::Equal::new(&aml::Arg(0), &layout::POWER_BUTTON_GSI),
                        vec![&aml::Notify::new(&notify.0, &0x80u8)],
                    ),
                    &aml::If::new(
                        &aml::Equal::new(&aml::Arg(0), &layout::VM_GENERATION_GSI),
                        vec![&aml::Notify::new(&notify.1, &0x80u8)],
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(body);
}

fn io(port: u16, ports: u16) -> aml::IO {
    aml::IO::new(port, port, 1, ports as u8)
}

/// An edge-triggered line, active high, not shared: what an irqfd without resampling is.
fn edge(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Tables laid one after the other from a guest-physical address.
struct Blob {
    base: u64,
    data: Vec<u8>,
    reserved: Range<usize>,
}

impl Blob {
    fn new(base: u64) -> Self {
        Blob { base, data: Vec::new(), reserved: 0..0 }
    }

    fn reserve(&mut self, bytes: usize) {
        self.reserved = 0..bytes;
        self.data.resize(bytes, 0);
    }

    fn fill_reserved(&mut self, table: &[u8]) {
        self.data[self.reserved.clone()].copy_from_slice(table);
    }

    fn append(&mut self, table: &[u8]) -> u64 {
        let offset = (self.data.len() as u64).next_multiple_of(TABLE_ALIGN);
        self.data.resize(offset as usize, 0);
        self.data.extend_from_slice(table);
        self.base + offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_machine_fits_below_the_generation_id() {
        let tables = tables(layout::VCPUS_MAX, layout::VIRTIO_MMIO_MAX);
        assert!(layout::ACPI_START + (tables.len() as u64) < layout::ACPI_END);
    }

    #[test]
    fn rsdp_points_at_tables_whose_checksums_hold() {
        let tables = tables(2, 3);
        let at = |address: u64| &tables[(address - layout::ACPI_START) as usize..];
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let table = |address: u64| {
            let bytes = at(address);
            let len = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
            &bytes[..len]
        };
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!(sum(&tables[..36]), 0);
        let xsdt = table(u64::from_le_bytes(tables[24..32].try_into().unwrap()));
        assert_eq!((&xsdt[..4], sum(xsdt)), (&b"XSDT"[..], 0));
        let entries: Vec<_> =
            xsdt[36..].chunks(8).map(|entry| table(u64::from_le_bytes(entry.try_into().unwrap()))).collect();
        assert_eq!((&entries[0][..4], sum(entries[0])), (&b"FACP"[..], 0));
        assert_eq!((&entries[1][..4], sum(entries[1])), (&b"APIC"[..], 0));
        let dsdt = table(u64::from_le_bytes(entries[0][140..148].try_into().unwrap()));
        assert_eq!((&dsdt[..4], sum(dsdt)), (&b"DSDT"[..], 0));
    }
}
