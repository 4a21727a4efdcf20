//! A guest whose disks are qcow2 files: it finds on them what was written before, its checkpoints have them as any other
//! disk, and the files stay as they are.

use std::{fs, process::Command};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    console::value,
};
use serde_json::{Value, json};

use crate::{disks, guest};

fn qemu_img(home: &Home, line: &str) {
    let mut qemu_img = Command::new("qemu-img");
    let output =
        qemu_img.args(line.split(' ')).current_dir(home.path()).output().expect("make deps installs qemu-utils");
    assert!(output.status.success(), "{line}: {output:?}");
}

/// The newest numbers that the guest has found on its disks.
fn found(line: &str) -> [u64; 2] {
    ["disk0", "disk1"].map(|disk| value(line, disk).and_then(|n| n.parse().ok()).expect("a number"))
}

#[test]
fn a_guest_is_restored_that_was_booted_from_qcow2_files() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut config = disks::config(&home, 1);
    let vm = home.boot(&config);
    vm.console.expect("CKVMM flushed", LIMIT);
    vm.kill9();
    let written = disks::DISKS.map(|id| home.join(format!("t.ckvmm/disks/{id}.raw")));
    let numbers = [0, 1].map(|disk| disks::newest(&written[disk], disk as u64));
    assert!(numbers[1] > 0, "{numbers:?}");

    // One is a compressed file, the other an empty one on such a file.
    for (id, raw) in disks::DISKS.iter().zip(&written) {
        qemu_img(&home, &format!("convert -c -O qcow2 {} {id}.qcow2", raw.display()));
    }
    qemu_img(&home, "create -q -f qcow2 -b second.qcow2 -F qcow2 top.qcow2");
    let files = ["first.qcow2", "top.qcow2", "second.qcow2"];
    let before = files.map(|file| fs::read(home.join(file)).expect("it is there"));
    let disk = |id: &str, file: &str| json!({ "id": id, "path": home.join(file), "format": "qcow2" });
    config["disks"] = Value::from([disk(disks::DISKS[0], files[0]), disk(disks::DISKS[1], files[1])].as_slice());
    let vm = home.start(&config, &["--fresh"]);
    vm.console.expect("CKVMM flushed", LIMIT);
    let lines = vm.console.all();
    let line = lines.iter().find(|line| line.starts_with("CKVMM found")).expect("it has looked before it writes");
    assert_eq!(found(line), numbers);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let at = disks::check(&home, &image);
    assert!(at > numbers[0], "{at} after {numbers:?}");
    assert!(files.map(|file| fs::read(home.join(file)).expect("it is there")) == before, "they are never written");

    // A restore needs none of them.
    files.iter().for_each(|file| fs::remove_file(home.join(file)).expect("it is there"));
    let mut vm = guest::restore(&home, &image, &[]);
    bare_metal::goes_on(&mut vm);
    let later = disks::check(&home, &bare_metal::checkpoint(&vm));
    assert!(later > at, "{later} after {at}");
}
