//! qcow2 files: of which nobody has said that they are, that cannot be read, and whose backing files are none.

use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

use ckvmm_tests::{
    bare_metal::{self, Home},
    lines::{USAGE, refused},
};
use serde_json::{Value, json};

/// Runs `qemu-img` in a home.
fn qemu_img(home: &Home, line: &str) {
    let mut qemu_img = Command::new("qemu-img");
    let output =
        qemu_img.args(line.split(' ')).current_dir(home.path()).output().expect("make deps installs qemu-utils");
    assert!(output.status.success(), "{line}: {output:?}");
}

/// A VM whose disk is a qcow2 file of 1 MiB with a backing file, `top` on `base`, in `home`.
fn with_chain(home: &Home) -> Value {
    qemu_img(home, "create -q -f qcow2 base 1M");
    qemu_img(home, "create -q -f qcow2 -b base -F qcow2 top");
    let mut config = bare_metal::config("job=hello");
    config["disks"] = json!([{ "id": "root", "path": home.join("top"), "format": "qcow2" }]);
    config
}

fn change(path: &Path, offset: u64, bytes: &[u8]) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Boots, and sees what the disk's file is refused with.
fn refused_for(home: &Home, config: &Value, named: &[&str]) {
    let line = refused(&home.boot_to_its_end(config, &[]), USAGE, named);
    assert!(line.contains(": disks.root."), "{line}");
    assert!(!home.join("t.ckvmm/disks/root.raw").exists(), "nothing is made of a file that cannot be used");
}

#[test]
fn a_format_that_nobody_has_given() {
    let home = Home::new();
    let mut config = with_chain(&home);
    for mode in ["private", "direct", "read-only"] {
        config["disks"] = json!([{ "id": "root", "path": home.join("top"), "mode": mode }]);
        refused_for(&home, &config, &["/top begins as a qcow2 file does", "add \"format\""]);
    }
    let what_a_guest_wrote = [fs::read(home.join("top")).unwrap(), vec![0; 512]].concat();
    fs::write(home.join("raw"), &what_a_guest_wrote[..what_a_guest_wrote.len() / 512 * 512]).unwrap();
    config["disks"] = json!([{ "id": "root", "path": home.join("raw"), "format": "raw" }]);
    assert!(home.boot_to_its_end(&config, &[]).status.success());
    assert!(fs::read(home.join("t.ckvmm/disks/root.raw")).unwrap().starts_with(b"QFI\xfb"));
    // Nobody looks into the guest's own copy.
    config["disks"] = json!([{ "id": "root", "path": home.join("top"), "format": "qcow2" }]);
    assert!(home.boot_to_its_end(&config, &["--fresh"]).status.success());
    change(&home.join("t.ckvmm/disks/root.raw"), 0, b"QFI\xfb");
    assert!(home.boot_to_its_end(&config, &[]).status.success());
}

#[test]
fn a_file_that_is_to_be_written_in_place() {
    let home = Home::new();
    let mut config = with_chain(&home);
    config["disks"][0]["mode"] = "direct".into();
    refused_for(
        &home,
        &config,
        &["disks.root.mode", "\"direct\" does not fit a qcow2 file", "qemu-img convert -O raw"],
    );
}

#[test]
fn a_file_that_is_none() {
    let home = Home::new();
    let config = with_chain(&home);
    fs::write(home.join("top"), vec![7; 4096]).unwrap();
    refused_for(&home, &config, &["/top is no qcow2 file", "leave \"format\" out"]);
}

#[test]
fn a_file_that_is_encrypted() {
    let home = Home::new();
    let config = with_chain(&home);
    change(&home.join("top"), 35, &[2]);
    refused_for(&home, &config, &["/top is encrypted", "qemu-img convert"]);
}

#[test]
fn a_file_with_features_that_are_not_read() {
    let home = Home::new();
    let config = with_chain(&home);
    for (bit, what, mend) in [
        (0, "was not closed", "qemu-img check -r all"),
        (1, "is marked as corrupt", "qemu-img check -r all"),
        (2, "an external data file", "qemu-img convert"),
        (3, "a compression other than zlib", "qemu-img convert"),
        (4, "extended L2 entries", "qemu-img convert"),
        (5, "what only a newer QEMU knows", "qemu-img convert"),
    ] {
        change(&home.join("base"), 79, &[1 << bit]);
        refused_for(&home, &config, &["/base ", what, "(the backing file of ", mend]);
    }
}

#[test]
fn a_file_that_is_cut_off() {
    let home = Home::new();
    let config = with_chain(&home);
    fs::write(home.join("raw"), vec![7; 1 << 20]).unwrap();
    qemu_img(&home, "convert -O qcow2 raw top");
    let whole = fs::read(home.join("top")).unwrap();
    fs::write(home.join("top"), &whole[..whole.len() - (64 << 10)]).unwrap();
    refused_for(&home, &config, &["/top cannot be read: ", "qemu-img check"]);
}

#[test]
fn a_header_on_which_the_library_panics() {
    let home = Home::new();
    let config = with_chain(&home);
    let file = fs::read(home.join("base")).unwrap();
    let names = file.windows(4).position(|bytes| bytes == 0x6803_f857_u32.to_be_bytes()).unwrap();
    change(&home.join("base"), names as u64 + 4, &385_u32.to_be_bytes());
    refused_for(&home, &config, &["/base is damaged: its feature name table", "fetch it again"]);
}

#[test]
fn a_table_that_is_too_short() {
    let home = Home::new();
    let config = with_chain(&home);
    change(&home.join("top"), 36, &[0; 4]);
    refused_for(&home, &config, &["/top is damaged: its L1 table is too short"]);
}

#[test]
fn a_backing_file_that_is_missing() {
    let home = Home::new();
    let config = with_chain(&home);
    fs::remove_file(home.join("base")).unwrap();
    refused_for(&home, &config, &["/base does not exist (the backing file of ", "/top)"]);
}

#[test]
fn a_backing_file_whose_format_nobody_has_given() {
    let home = Home::new();
    let config = with_chain(&home);
    let file = fs::read(home.join("top")).unwrap();
    let format = file.windows(4).position(|bytes| bytes == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    change(&home.join("top"), format as u64, &[7; 4]);
    refused_for(&home, &config, &["/top does not say what format", "qemu-img rebase -u"]);
}

#[test]
fn a_backing_file_that_is_no_path() {
    let home = Home::new();
    let config = with_chain(&home);
    qemu_img(&home, "rebase -u -b nbd://host/disk -F raw top");
    refused_for(&home, &config, &["\"nbd://host/disk\", which is no path", "qemu-img rebase -u"]);
}

#[test]
fn a_file_that_is_its_own_backing_file() {
    let home = Home::new();
    let config = with_chain(&home);
    qemu_img(&home, "rebase -u -b top -F qcow2 base");
    refused_for(&home, &config, &["/top is a backing file of itself", "qemu-img rebase -u"]);
}

#[test]
fn a_chain_that_is_too_long() {
    let home = Home::new();
    let config = with_chain(&home);
    for file in 0..31 {
        fs::rename(home.join("top"), home.join(format!("below{file}"))).unwrap();
        qemu_img(&home, &format!("create -q -f qcow2 -b below{file} -F qcow2 top 1M"));
    }
    refused_for(&home, &config, &["/top builds on more than 32 files", "qemu-img convert"]);
}

#[test]
fn a_backing_file_that_changed_under_a_working_copy() {
    let home = Home::new();
    let config = with_chain(&home);
    assert!(home.boot_to_its_end(&config, &[]).status.success());
    assert!(home.boot_to_its_end(&config, &[]).status.success(), "nothing has changed");
    qemu_img(&home, "convert -O qcow2 -o compat=0.10 base other");
    fs::rename(home.join("other"), home.join("base")).unwrap();
    refused(&home.boot_to_its_end(&config, &[]), USAGE, &["disks.root.path", "has changed since", "--fresh"]);
    assert!(home.boot_to_its_end(&config, &["--fresh"]).status.success());
}
