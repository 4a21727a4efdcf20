//! Files that are named and cannot be used: missing, empty, cut off, a directory, unreadable, too large.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use ckvmm_tests::{
    bare_metal::{self, Home},
    config,
    lines::{USAGE, refused},
    paths, process,
};
use serde_json::{Value, json};

/// A file of `bytes` bytes that takes no room.
fn sparse(path: &Path, bytes: u64) {
    File::create(path).and_then(|file| file.set_len(bytes)).unwrap();
}

/// Boots with the file `name` as `make` made it in the place that `put` gives it; what it was refused with.
fn refused_with(put: impl Fn(&mut Value, &Path), make: impl Fn(&Path), field: &str, what: &str) {
    let home = Home::new();
    let file = home.join("the-file");
    make(&file);
    let mut config = bare_metal::config("job=hello");
    put(&mut config, &file);
    let output = home.boot_to_its_end(&config, &[]);
    refused(&output, USAGE, &[field, &file.to_string_lossy(), what]);
}

fn no_file(_: &Path) {}

fn empty(path: &Path) {
    fs::write(path, "").unwrap();
}

fn directory(path: &Path) {
    fs::create_dir(path).unwrap();
}

/// Nobody but root may read it.
fn unreadable(path: &Path) {
    fs::write(path, [7; 4096]).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
}

fn kernel(config: &mut Value, path: &Path) {
    config["kernel"]["image"] = json!(path);
}

fn initrd(config: &mut Value, path: &Path) {
    config["kernel"]["initrd"] = json!(path);
}

fn disk(config: &mut Value, path: &Path) {
    config["disks"] = json!([{ "id": "root", "path": path }]);
}

fn read_only_disk(config: &mut Value, path: &Path) {
    config["disks"] = json!([{ "id": "root", "path": path, "mode": "read-only" }]);
}

/// Boots as a user who has no right to the file.
fn refused_without_rights(put: impl Fn(&mut Value, &Path), field: &str) {
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o777)).unwrap();
    let file = home.join("the-file");
    unreadable(&file);
    let mut config = bare_metal::config("job=hello");
    // a copy: the path to the guests may be closed to others
    let image = home.join("kernel.elf");
    fs::copy(paths::guest("bare-metal.elf"), &image).unwrap();
    kernel(&mut config, &image);
    put(&mut config, &file);
    let config = config::write(home.path(), &config);
    let output = process::run_without_rights(home.path(), ["boot", "--config", config.to_str().unwrap()]);
    refused(&output, USAGE, &[field, &file.to_string_lossy(), "may not be read by this user"]);
}

#[test]
fn a_kernel_that_is_missing() {
    refused_with(kernel, no_file, "kernel.image", "does not exist");
}

#[test]
fn a_kernel_that_is_empty() {
    refused_with(kernel, empty, "kernel.image", "is empty");
}

#[test]
fn a_kernel_that_is_a_directory() {
    refused_with(kernel, directory, "kernel.image", "is a directory");
}

#[test]
fn a_kernel_that_is_unreadable() {
    refused_without_rights(kernel, "kernel.image");
}

#[test]
fn a_kernel_that_is_too_large() {
    refused_with(kernel, |path| sparse(path, (1 << 30) + 1), "kernel.image", "is too large");
}

#[test]
fn a_kernel_that_is_too_large_for_the_ram() {
    // Its one segment wants more memory than there is.
    let grown = |path: &Path| {
        let mut elf = fs::read(paths::guest("bare-metal.elf")).unwrap();
        let table = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
        let count = usize::from(u16::from_le_bytes(elf[56..58].try_into().unwrap()));
        for header in (0..count).map(|index| table + index * 56) {
            if elf[header..header + 4] == [1, 0, 0, 0] {
                // p_paddr
                elf[header + 24..header + 32].copy_from_slice(&(1u64 << 40).to_le_bytes());
            }
        }
        fs::write(path, elf).unwrap();
    };
    refused_with(kernel, grown, "kernel.image", "give the VM more memory");
}

#[test]
fn a_kernel_that_is_cut_off() {
    let half = |path: &Path| {
        let elf = fs::read(paths::guest("bare-metal.elf")).unwrap();
        fs::write(path, &elf[..0x1100]).unwrap();
    };
    refused_with(kernel, half, "kernel.image", "is cut off");
}

#[test]
fn a_kernel_that_is_none_costs_no_copy_of_a_disk() {
    let home = Home::new();
    let mut config = bare_metal::with_disk(bare_metal::config("job=hello"), home.path(), 1 << 20);
    config["kernel"]["image"] = json!(home.join("disk.raw"));
    refused(&home.boot_to_its_end(&config, &[]), USAGE, &["kernel.image", "is no kernel"]);
    assert!(!home.join("t.ckvmm").exists(), "nothing is made for it");
}

#[test]
fn a_kernel_that_is_none() {
    refused_with(kernel, |path| fs::write(path, "#!/bin/sh\nexit 0\n").unwrap(), "kernel.image", "is no kernel");
}

#[test]
fn an_initrd_that_is_missing() {
    refused_with(initrd, no_file, "kernel.initrd", "does not exist");
}

#[test]
fn an_initrd_that_is_empty() {
    refused_with(initrd, empty, "kernel.initrd", "is empty");
}

#[test]
fn an_initrd_that_is_a_directory() {
    refused_with(initrd, directory, "kernel.initrd", "is a directory");
}

#[test]
fn an_initrd_that_is_unreadable() {
    refused_without_rights(initrd, "kernel.initrd");
}

#[test]
fn an_initrd_that_is_too_large() {
    refused_with(initrd, |path| sparse(path, (4 << 30) + 1), "kernel.initrd", "is too large");
}

#[test]
fn an_initrd_that_is_too_large_for_the_ram() {
    refused_with(initrd, |path| sparse(path, 40 << 20), "kernel.initrd", "give the VM more memory");
}

#[test]
fn a_disk_that_is_missing() {
    refused_with(disk, no_file, "disks.root.path", "does not exist");
    refused_with(read_only_disk, no_file, "disks.root.path", "does not exist");
}

#[test]
fn a_disk_that_is_empty() {
    refused_with(disk, empty, "disks.root.path", "is empty");
    refused_with(read_only_disk, empty, "disks.root.path", "is empty");
}

#[test]
fn a_disk_that_is_a_directory() {
    refused_with(disk, directory, "disks.root.path", "is a directory");
    refused_with(read_only_disk, directory, "disks.root.path", "is a directory");
}

#[test]
fn a_disk_that_is_unreadable() {
    refused_without_rights(disk, "disks.root.path");
    refused_without_rights(read_only_disk, "disks.root.path");
}

#[test]
fn a_disk_that_is_too_large() {
    refused_with(disk, |path| sparse(path, (8 << 40) + 512), "disks.root.path", "is too large");
}

#[test]
fn a_disk_that_is_cut_off_within_a_sector() {
    let cut = |path: &Path| fs::write(path, [7; 1000]).unwrap();
    refused_with(disk, cut, "disks.root.path", "not a multiple of 512");
    refused_with(read_only_disk, cut, "disks.root.path", "not a multiple of 512");
}

#[test]
fn a_disk_that_may_not_be_written_in_place() {
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o777)).unwrap();
    let mut config = bare_metal::with_disk(bare_metal::config("job=hello"), home.path(), 4096);
    config["disks"][0]["mode"] = "direct".into();
    fs::set_permissions(home.join("disk.raw"), Permissions::from_mode(0o444)).unwrap();
    let image = home.join("kernel.elf");
    fs::copy(paths::guest("bare-metal.elf"), &image).unwrap();
    kernel(&mut config, &image);
    let config = config::write(home.path(), &config);
    let output = process::run_without_rights(home.path(), ["boot", "--config", config.to_str().unwrap()]);
    refused(&output, USAGE, &["disks.root.path", "disk.raw", "may not be written by this user"]);
}

fn boot_vm_json(make: impl Fn(&Path), what: &str) {
    let home = Home::new();
    let file = home.join("vm.json");
    make(&file);
    let output = home.run(["boot", "--config", file.to_str().unwrap()]);
    refused(&output, USAGE, &[&file.to_string_lossy(), what]);
    assert!(!home.join("t.ckvmm").exists(), "nothing is made for a configuration that cannot be used");
}

#[test]
fn a_configuration_that_is_missing_or_empty_or_a_directory() {
    boot_vm_json(no_file, "does not exist");
    boot_vm_json(empty, "is empty");
    boot_vm_json(directory, "is a directory");
}

#[test]
fn a_configuration_that_is_too_large() {
    boot_vm_json(|path| sparse(path, (1 << 20) + 1), "is too large");
}

#[test]
fn a_configuration_that_is_cut_off() {
    let text = bare_metal::config("job=hello").to_string();
    boot_vm_json(|path| fs::write(path, &text[..text.len() - 9]).unwrap(), "line 1, column");
}

#[test]
fn a_configuration_that_is_unreadable() {
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o777)).unwrap();
    let file = home.join("vm.json");
    unreadable(&file);
    let output = process::run_without_rights(home.path(), ["boot", "--config", file.to_str().unwrap()]);
    refused(&output, USAGE, &[&file.to_string_lossy(), "may not be read by this user"]);
}
