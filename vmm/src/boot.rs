//! Loading a kernel into the RAM of a new machine, with all that it wants to find there.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use ckvmm_devices::GuestRam;
use linux_loader::{
    bootparam::boot_params,
    loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
    loader::{BzImage, Elf, KernelLoader, KernelLoaderResult, elf::PvhBootCapability},
};
use vm_memory::{Bytes, GuestAddress};

use crate::{
    arch::{acpi, boot_cpu::Entry, layout},
    config::{ConfigError, INITRD_MAX, InputFile, KERNEL_MAX, KernelConfig, Protocol},
    error::{Error, Result},
};

const KERNEL_FIELD: &str = "kernel.image";
const INITRD_FIELD: &str = "kernel.initrd";
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Where a bzImage has its header's magic "HdrS", and what that is (kernel document `arch/x86/boot`).
const BZIMAGE_MAGIC_AT: u64 = 0x202;
const BZIMAGE_MAGIC: [u8; 4] = *b"HdrS";
/// The 64-bit entry of a bzImage lies so far behind its load address.
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
const BOOT_FLAG: u16 = 0xaa55;
/// "A loader without an assigned number".
const LOADER_UNDEFINED: u8 = 0xff;
const PVH_MAGIC: u32 = 0x336e_c578;
/// e820 and PVH types of memory.
const MEMORY_USABLE: u32 = 1;
const MEMORY_RESERVED: u32 = 2;
const PAGE: u64 = 0x1000;

/// What the firmware tables say of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Number of virtio devices.
    pub virtio_devices: usize,
}

/// Loads kernel, initrd, command line, tables; says where the first vCPU starts.
///
/// # Errors
/// If a file cannot be used: missing, empty, no kernel, cut off, or too large for the RAM.
pub fn load(config: &KernelConfig, shape: Shape, ram: &GuestRam) -> Result<Entry> {
    let kernel = load_kernel(config, shape, ram)?;
    let initrd = match &config.initrd {
        Some(path) => Some(load_initrd(path, &kernel, shape, ram)?),
        None => None,
    };
    let mut cmdline = config.cmdline.clone().unwrap_or_default().into_bytes();
    cmdline.push(0);
    write(ram, &cmdline, layout::CMDLINE, "writing the command line")?;
    write(ram, &acpi::tables(shape.vcpus, shape.virtio_devices), layout::ACPI_START, "writing ACPI tables")?;
    match kernel.entry {
        Entry::Linux(_) => write_zero_page(&kernel, initrd, cmdline.len(), shape, ram)?,
        Entry::Pvh(_) => write_start_info(initrd, shape, ram)?,
    }
    Ok(kernel.entry)
}

struct Kernel {
    entry: Entry,
    /// First guest-physical address that the kernel does not need while it starts.
    end: u64,
    loaded: KernelLoaderResult,
}

/// (guest-physical address, bytes)
type Initrd = (u64, u64);

fn load_kernel(config: &KernelConfig, shape: Shape, ram: &GuestRam) -> Result<Kernel> {
    let path = config.image.as_path();
    let mut file =
        InputFile { field: KERNEL_FIELD, path, max: KERNEL_MAX, block_device: false, write: false }.open()?;
    let magic_at = |offset| {
        let mut magic = [0; 4];
        file.read_exact_at(&mut magic, offset).map(|()| magic).unwrap_or_default()
    };
    if magic_at(0) == ELF_MAGIC {
        load_elf(&mut file, path, config.protocol, shape, ram)
    } else if magic_at(BZIMAGE_MAGIC_AT) == BZIMAGE_MAGIC {
        load_bzimage(&mut file, path, config.protocol, shape, ram)
    } else {
        Err(kernel_error(path, "is no kernel", "give a bzImage (vmlinuz), an ELF vmlinux or a PVH ELF for x86-64"))
    }
}

fn load_elf(file: &mut File, path: &Path, protocol: Protocol, shape: Shape, ram: &GuestRam) -> Result<Kernel> {
    let mut header = [0; 20];
    let read = file.read_exact_at(&mut header, 0);
    if read.is_err() || header[4] != 2 || header[18..20] != [62, 0] {
        return Err(kernel_error(path, "is no 64-bit x86 ELF", "give a kernel built for x86-64"));
    }
    let loaded = Elf::load(ram, None, file, Some(GuestAddress(layout::HIMEM_START)))
        .map_err(|error| load_error(path, &error, shape))?;
    let linux = Entry::Linux(loaded.kernel_load.0);
    let entry = match (protocol, loaded.pvh_boot_cap) {
        (Protocol::Auto | Protocol::Pvh, PvhBootCapability::PvhEntryPresent(entry)) => Entry::Pvh(entry.0),
        (Protocol::Pvh, _) => {
            let mend = "give a kernel with CONFIG_PVH, or \"protocol\": \"linux\"";
            return Err(kernel_error(path, "has no PVH entry", mend));
        }
        (Protocol::Auto | Protocol::Linux, _) => linux,
    };
    Ok(Kernel { entry, end: loaded.kernel_end, loaded })
}

fn load_bzimage(file: &mut File, path: &Path, protocol: Protocol, shape: Shape, ram: &GuestRam) -> Result<Kernel> {
    if protocol == Protocol::Pvh {
        let mend = "give the vmlinux that is inside it, or leave \"protocol\" away";
        return Err(kernel_error(path, "is a bzImage, which has no PVH entry", mend));
    }
    let loaded = BzImage::load(ram, None, file, Some(GuestAddress(layout::HIMEM_START)))
        .map_err(|error| load_error(path, &error, shape))?;
    let header = loaded.setup_header.unwrap_or_default();
    let payload = loaded.kernel_end - loaded.kernel_load.0;
    if payload < u64::from(header.syssize) * 16 {
        return Err(kernel_error(path, "is cut off", "fetch or build it again"));
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(kernel_error(path, "has no 64-bit entry", "give a kernel built for x86-64, Linux 3.8 or later"));
    }
    let start = loaded.kernel_load.0.max(header.pref_address);
    let end = loaded.kernel_end.max(start.saturating_add(header.init_size.into()));
    if end > low_ram_end(shape) {
        return Err(too_large(path, KERNEL_FIELD, end - layout::HIMEM_START, shape).into());
    }
    Ok(Kernel { entry: Entry::Linux(loaded.kernel_load.0 + BZIMAGE_ENTRY_64), end, loaded })
}

/// Puts the initrd as high as the kernel can reach it, so that it never lies where the kernel unpacks itself.
fn load_initrd(path: &Path, kernel: &Kernel, shape: Shape, ram: &GuestRam) -> Result<Initrd> {
    let input = InputFile { field: INITRD_FIELD, path, max: INITRD_MAX, block_device: false, write: false };
    let mut file = input.open()?;
    let bytes = file.metadata().map_err(Error::os("measuring the initrd"))?.len();
    let highest = match kernel.loaded.setup_header {
        Some(header) => u64::from(header.initrd_addr_max) + 1,
        None => u64::MAX,
    };
    let start = low_ram_end(shape).min(highest).saturating_sub(bytes) / PAGE * PAGE;
    if start < kernel.end {
        return Err(too_large(path, INITRD_FIELD, bytes, shape).into());
    }
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, bytes as usize)
        .map_err(|source| Error::RamAccess { what: "reading the initrd into RAM", source })?;
    Ok((start, bytes))
}

fn write_zero_page(
    kernel: &Kernel,
    initrd: Option<Initrd>,
    cmdline_bytes: usize,
    shape: Shape,
    ram: &GuestRam,
) -> Result<()> {
    let header = kernel.loaded.setup_header.unwrap_or_default();
    let mut params = boot_params { hdr: header, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = u32::from_le_bytes(BZIMAGE_MAGIC);
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    if let Some((start, bytes)) = initrd {
        params.hdr.ramdisk_image = start as u32;
        params.hdr.ramdisk_size = bytes as u32;
    }
    params.acpi_rsdp_addr = layout::ACPI_START;
    let map = layout::memory_map(shape.memory);
    params.e820_entries = map.len() as u8;
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        slot.addr = entry.start;
        slot.size = entry.bytes;
        slot.r#type = if entry.usable { MEMORY_USABLE } else { MEMORY_RESERVED };
    }
    ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))
        .map_err(|source| Error::RamAccess { what: "writing boot_params", source })
}

fn write_start_info(initrd: Option<Initrd>, shape: Shape, ram: &GuestRam) -> Result<()> {
    let failed = |source| Error::RamAccess { what: "writing hvm_start_info", source };
    let map = layout::memory_map(shape.memory);
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: initrd.map_or(0, |_| 1),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI_START,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((paddr, size)) = initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        ram.write_obj(module, GuestAddress(layout::PVH_MODULES)).map_err(failed)?;
    }
    for (index, entry) in map.iter().enumerate() {
        let type_ = if entry.usable { MEMORY_USABLE } else { MEMORY_RESERVED };
        let line = hvm_memmap_table_entry { addr: entry.start, size: entry.bytes, type_, reserved: 0 };
        let at = layout::PVH_MEMMAP + (index * size_of::<hvm_memmap_table_entry>()) as u64;
        ram.write_obj(line, GuestAddress(at)).map_err(failed)?;
    }
    ram.write_obj(info, GuestAddress(layout::PVH_INFO)).map_err(failed)
}

fn write(ram: &GuestRam, bytes: &[u8], address: u64, what: &'static str) -> Result<()> {
    ram.write_slice(bytes, GuestAddress(address)).map_err(|source| Error::RamAccess { what, source })
}

fn low_ram_end(shape: Shape) -> u64 {
    shape.memory.min(layout::MMIO_GAP_START)
}

fn kernel_error(path: &Path, what: &str, mend: &str) -> Error {
    ConfigError::field(KERNEL_FIELD, format!("{} {what}", path.display()), mend).into()
}

fn load_error(path: &Path, error: &linux_loader::loader::Error, shape: Shape) -> Error {
    let what = format!("cannot be loaded into {} bytes of RAM ({error})", shape.memory);
    kernel_error(path, &what, "it is cut off or too large: fetch or build it again, or give the VM more memory")
}

fn too_large(path: &Path, field: &str, bytes: u64, shape: Shape) -> ConfigError {
    let what = format!("{} needs {bytes} bytes, which {} bytes of RAM do not hold", path.display(), shape.memory);
    ConfigError::field(field, what, "give the VM more memory")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SHAPE: Shape = Shape { memory: 32 << 20, vcpus: 1, virtio_devices: 0 };

    fn load_bytes(bytes: &[u8], protocol: Protocol) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), SHAPE.memory as usize)]).unwrap();
        let config = KernelConfig { image: file.path().into(), initrd: None, cmdline: None, protocol };
        load(&config, SHAPE, &ram).unwrap_err().to_string()
    }

    /// A bzImage header that claims `syssize` 16-byte units of payload and has none.
    fn bzimage(syssize: u32) -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[0x1f1] = 4;
        image[0x1f4..0x1f8].copy_from_slice(&syssize.to_le_bytes());
        image[0x202..0x206].copy_from_slice(&BZIMAGE_MAGIC);
        image[0x206..0x208].copy_from_slice(&0x20cu16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
        image[0x236] = 1;
        image
    }

    #[test]
    fn what_is_no_kernel_is_said_to_be_none() {
        assert!(load_bytes(b"#!/bin/sh\n", Protocol::Auto).contains("is no kernel"));
        assert!(load_bytes(&[0; 4096], Protocol::Auto).contains("is no kernel"));
        assert!(load_bytes(b"\x7fELF\x01\x01\x01", Protocol::Auto).contains("is no 64-bit x86 ELF"));
    }

    #[test]
    fn a_kernel_that_is_cut_off_is_said_to_be() {
        assert!(load_bytes(&bzimage(0x10_0000), Protocol::Auto).contains("is cut off"));
        assert!(load_bytes(&bzimage(1), Protocol::Pvh).contains("no PVH entry"));
    }

    #[test]
    fn a_kernel_that_needs_more_ram_than_there_is_is_refused() {
        let mut image = bzimage(1);
        image[0x260..0x264].copy_from_slice(&(64u32 << 20).to_le_bytes());
        assert!(load_bytes(&image, Protocol::Auto).contains("give the VM more memory"));
    }
}
