//! Images that are damaged, incomplete, of another version, or restored with what does not fit them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    lines::{FAILED, USAGE, refused},
    mount,
};
use nix::{sys::stat::Mode, unistd::mkfifo};

/// An image of a guest with a disk, in the store of a home; the VM is gone.
fn image() -> (Home, PathBuf) {
    let home = Home::new();
    let config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 6 << 20);
    let vm = home.boot(&config);
    let image = bare_metal::checkpoint(&vm);
    drop(vm);
    (home, image)
}

/// A copy of the image in which something may be broken.
fn copy(image: &Path, name: &str) -> PathBuf {
    let copy = image.with_file_name(name);
    let status = Command::new("cp").arg("-a").arg(image).arg(&copy).status().unwrap();
    assert!(status.success());
    copy
}

fn flip(file: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

/// Before the guest's first instruction: nothing on the console, no disk made, and `ckvmm verify` says so too.
fn refused_before_the_start(home: &Home, image: &Path, named: &[&str]) {
    let path = image.to_str().unwrap();
    // A restore that goes on would have no end: those first that have one.
    refused(&home.run(["inspect", path]), FAILED, named);
    refused(&home.run(["verify", path]), FAILED, named);
    refused(&home.run(["restore", path, "--work", "w"]), FAILED, named);
    assert!(!home.join("w").exists(), "nothing is made for an image that cannot be used");
}

#[test]
fn a_flipped_byte_in_what_is_read_first() {
    let (home, whole) = image();
    for file in ["manifest.json", "state", "memory.map", "disks/root.map"] {
        let bytes = fs::read(whole.join(file)).unwrap();
        let length = bytes.len() as u64;
        // Of a name one letter is as good as another: only the seal knows.
        let name = bytes.windows(8).position(|place| place == b"\"name\": ").map(|place| place as u64 + 9);
        for offset in [0, length / 3, length / 2, length - 1].into_iter().chain(name) {
            let broken = copy(&whole, "broken");
            flip(&broken.join(file), offset);
            let path = broken.join(file);
            refused_before_the_start(&home, &broken, &[path.to_str().unwrap()]);
            fs::remove_dir_all(&broken).unwrap();
        }
    }
    home.ok(["verify", whole.to_str().unwrap()]);
}

#[test]
fn files_that_are_missing_or_of_another_length() {
    let (home, whole) = image();
    let files = ["manifest.json", "state", "memory", "memory.map", "disks/root", "disks/root.map"];
    for file in files {
        let broken = copy(&whole, "missing");
        fs::remove_file(broken.join(file)).unwrap();
        let named = if file == "manifest.json" { "manifest.json" } else { "it is missing" };
        refused_before_the_start(&home, &broken, &[broken.to_str().unwrap(), named]);
        fs::remove_dir_all(&broken).unwrap();
    }
    for file in files {
        for (name, by) in [("shorter", -1), ("longer", 1), ("empty", i64::MIN)] {
            let broken = copy(&whole, name);
            let path = broken.join(file);
            let length = fs::metadata(&path).unwrap().len();
            let new = length.saturating_add_signed(by);
            File::options().write(true).open(&path).unwrap().set_len(new).unwrap();
            refused_before_the_start(&home, &broken, &[path.to_str().unwrap()]);
            fs::remove_dir_all(&broken).unwrap();
        }
    }
    for file in files {
        let broken = copy(&whole, "directory");
        fs::remove_file(broken.join(file)).unwrap();
        fs::create_dir(broken.join(file)).unwrap();
        refused_before_the_start(&home, &broken, &[file, "it is a directory"]);
        fs::remove_dir_all(&broken).unwrap();
    }
}

#[test]
fn a_newer_format() {
    let (home, whole) = image();
    let manifest = whole.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    let newer = text.replacen("\"format_version\": 1", "\"format_version\": 4", 1);
    assert_ne!(newer, text);
    fs::write(&manifest, newer).unwrap();
    let path = manifest.to_str().unwrap();
    refused_before_the_start(&home, &whole, &[path, "format version 4", "reads 1 to 3", "use the ckvmm that wrote it"]);
}

#[test]
fn directories_that_are_no_checkpoint() {
    let (home, whole) = image();
    let store = whole.parent().unwrap().to_str().unwrap();
    refused(&home.run(["restore", store]), FAILED, &[store, "is a directory of them", "000001"]);
    refused(&home.run(["restore", "nowhere"]), FAILED, &["nowhere: not a checkpoint: it does not exist"]);
    refused(&home.run(["restore", "vm.json"]), FAILED, &["vm.json: not a checkpoint: it is not a directory"]);
    fs::create_dir(home.join("empty")).unwrap();
    refused(&home.run(["restore", "empty"]), FAILED, &["empty: not a checkpoint: it has no manifest.json"]);
    fs::create_dir(home.join("fifo")).unwrap();
    mkfifo(&home.join("fifo/manifest.json"), Mode::S_IRUSR).unwrap();
    for verb in ["restore", "inspect", "verify"] {
        refused(&home.run([verb, "fifo"]), FAILED, &["fifo/manifest.json", "not a regular file"]);
    }
    refused(&home.run(["list", "nowhere"]), FAILED, &["nowhere: no such directory"]);
    refused(&home.run(["list", whole.to_str().unwrap()]), USAGE, &["is one checkpoint", "ckvmm inspect"]);
}

#[test]
fn set_that_changes_the_machine() {
    let (home, whole) = image();
    let path = whole.to_str().unwrap();
    for (set, field) in [
        ("vcpus=2", "vcpus"),
        ("memory=64MiB", "memory"),
        ("disks.root.id=other", "disks"),
        ("disks.root.mode=read-only", "disks"),
        ("disks=[]", "disks"),
        ("nics=[{\"id\":\"eth0\",\"uplink\":{\"tap\":\"tap0\"}}]", "nics"),
    ] {
        let output = home.run(["restore", path, "--work", "w", "--set", set]);
        let field = format!("ckvmm: {field}: part of the guest's state");
        refused(&output, USAGE, &[&field, path, "leave it out of --set"]);
    }
    for (set, named) in [
        ("vcpus", "has no ="),
        ("vcpus=0", "vcpus: 0 does not fit"),
        ("nonsense=1", "nonsense: no such field"),
        ("disks.swap.path=/x", "use one of root"),
        ("name=No Name", "name"),
    ] {
        refused(&home.run(["restore", path, "--work", "w", "--set", set]), USAGE, &[named]);
    }
    assert!(!home.join("w").exists(), "nothing is made");
    let mut vm = home.restore(&whole, &["--work", "w", "--set", "name=other"]);
    bare_metal::goes_on(&mut vm);
    assert_eq!(home.json(["status", "other", "--json"])["name"], "other");
}

#[test]
fn one_image_restored_twice() {
    let (home, whole) = image();
    let before = digests(&whole);
    let mut first = home.restore(&whole, &["--work", "a"]);
    bare_metal::goes_on(&mut first);
    // the same name, the same socket: two of them need one each
    let clash = home.run(["restore", whole.to_str().unwrap(), "--work", "b"]);
    refused_but_for_the_disk(&clash.stderr, "t.sock: in use by a running VM");
    let mut second = home.restore(&whole, &["--work", "c", "--set", "name=second"]);
    bare_metal::goes_on(&mut second);
    bare_metal::goes_on(&mut first);
    for vm in [&mut first, &mut second] {
        vm.type_line("q");
        assert_eq!(vm.wait(LIMIT), 0, "{:?}", vm.messages.all());
    }
    assert_eq!(digests(&whole), before, "the image is as it was");
    for work in ["a", "c"] {
        assert_eq!(fs::read(home.join(work).join("disks/root.raw")).unwrap(), fs::read(home.join("disk.raw")).unwrap());
    }
}

/// The disks are copied before the socket is bound, so that there is a line about them.
fn refused_but_for_the_disk(stderr: &[u8], named: &str) {
    let stderr = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.contains("the guest's copy is")).collect();
    assert!(lines.len() == 1 && lines[0].contains(named), "{lines:?}");
}

fn digests(image: &Path) -> String {
    let output = Command::new("sh")
        .args(["-c", "find . -type f -exec sha256sum {} + | sort"])
        .current_dir(image)
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_work_directory_that_holds_disks() {
    let (home, whole) = image();
    let path = whole.to_str().unwrap();
    let mut vm = home.restore(&whole, &["--work", "w"]);
    bare_metal::goes_on(&mut vm);
    let busy = home.run(["restore", path, "--work", "w", "--set", "name=other"]);
    refused(&busy, FAILED, &["w: a VM runs on this state directory", &format!("pid {}", vm.pid())]);
    vm.type_line("q");
    assert_eq!(vm.wait(LIMIT), 0);
    let disk = home.join("w/disks/root.raw");
    fs::write(&disk, "what the guest wrote").unwrap();
    let again = home.run(["restore", path, "--work", "w"]);
    refused(&again, USAGE, &["--work: ", "w/disks/root.raw", "give another directory"]);
    assert_eq!(fs::read_to_string(&disk).unwrap(), "what the guest wrote", "nothing is lost");
}

#[test]
fn a_work_directory_that_holds_a_disk_that_is_not_captured() {
    let home = Home::new();
    let mut config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 1 << 20);
    config["disks"][0]["capture"] = false.into();
    let vm = home.boot(&config);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let mut vm = home.restore(&image, &["--work", "w"]);
    bare_metal::goes_on(&mut vm);
    vm.kill9();
    let disk = home.join("w/disks/root.raw");
    fs::write(&disk, "what the guest wrote").unwrap();
    let again = home.run(["restore", image.to_str().unwrap(), "--work", "w"]);
    refused(&again, USAGE, &["--work: ", "w/disks/root.raw", "give another directory"]);
    assert_eq!(fs::read_to_string(&disk).unwrap(), "what the guest wrote", "nothing is lost");
}

#[test]
fn a_restore_that_fails_leaves_no_disk() {
    let home = Home::new();
    let mut config = bare_metal::with_disk(bare_metal::config("job=write"), home.path(), 1 << 20);
    let scratch = home.join("scratch.raw");
    fs::write(&scratch, vec![7; 1 << 20]).unwrap();
    let disks = config["disks"].as_array_mut().unwrap();
    disks.push(serde_json::json!({ "id": "scratch", "path": scratch, "capture": false }));
    let vm = home.boot(&config);
    let image = bare_metal::checkpoint(&vm);
    vm.kill9();
    let restore = ["restore", image.to_str().unwrap(), "--work", "w"];
    fs::rename(&scratch, home.join("elsewhere")).unwrap();
    refused(&home.run(restore), USAGE, &["disks.scratch.path", "scratch.raw"]);
    assert_eq!(home.names("w/disks"), [""; 0], "the disk before it");
    fs::rename(home.join("elsewhere"), &scratch).unwrap();
    let unusable = restore.into_iter().chain(["--set", "serial.file=no/such/place"]);
    refused(&home.run(unusable), USAGE, &["serial.file", "no/such/place"]);
    assert_eq!(home.names("w/disks"), [""; 0], "no machine was built");
    let mut vm = home.restore(&image, &["--work", "w"]);
    bare_metal::goes_on(&mut vm);
    vm.kill9();
    assert_eq!(home.names("w/disks"), ["root.raw", "scratch.base", "scratch.raw"], "a guest's stay");
}

#[test]
fn a_work_directory_without_room() {
    if !mount::enter_namespace() {
        return;
    }
    let (home, whole) = image();
    fs::create_dir(home.join("w")).unwrap();
    mount::small(&home.join("w"), 4 << 20);
    let path = whole.to_str().unwrap();
    let full = home.run(["restore", path, "--work", "w"]);
    refused(&full, FAILED, &["w/disks/root.raw", "no space left", "bytes wanted"]);
    assert_eq!(home.names("w/disks"), [""; 0], "nothing is left");
    let config = bare_metal::with_disk(bare_metal::config("job=hello"), home.path(), 6 << 20);
    let full = home.boot_to_its_end(&config, &["--state", "w"]);
    refused(&full, FAILED, &["w/disks/root.raw", "no space left", "bytes wanted"]);
    assert_eq!(home.names("w/disks"), [""; 0], "nothing is left");
    mount::set_read_only(&home.join("w"), true);
    let read_only = home.run(["restore", path, "--work", "w"]);
    refused(&read_only, FAILED, &["w/lock", "ead-only"]);
}
