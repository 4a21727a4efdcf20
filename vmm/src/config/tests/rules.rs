//! What is wrong with fields beyond their types: names, addresses, and what they have to do with each other.

use clap::ValueEnum;

use super::*;

#[test]
fn ids_and_addresses_are_checked() {
    let name = "give a name of a-z, 0-9 and -, at most 63 long, like \"node0\"";
    refused("/name", json!(""), &format!("name: \"\" is empty; {name}"));
    refused(
        "/name",
        json!("Node"),
        &format!("name: \"Node\" does not start with a lower-case letter or a digit; {name}"),
    );
    refused("/name", json!("a/b"), &format!("name: \"a/b\" holds '/'; {name}"));
    refused("/name", json!("a\nb"), &format!("name: \"a\\nb\" holds '\\n'; {name}"));
    let long = "a".repeat(64);
    assert!(error_with("/name", json!(long)).contains("is 64 bytes long, more than 63"));
    assert!(error_with("/disks/0/id", json!("../x")).starts_with("disks.0.id: \"../x\" does not start"));
    let mac = "give a unicast MAC address like \"02:00:00:00:00:01\"";
    for (bad, why) in [
        ("01:00:00:00:00:01", "is a multicast address (its first byte is odd)"),
        ("00:00:00:00:00:00", "is all zero"),
        ("02:00:00:00:00", "is not six pairs of hexadecimal digits"),
        ("02:00:00:00:00:01:02", "is not six pairs of hexadecimal digits"),
        ("02:00:00:00:00:+1", "is not six pairs of hexadecimal digits"),
    ] {
        refused("/nics/0/mac", json!(bad), &format!("nics.eth0.mac: \"{bad}\" {why}; {mac}"));
    }
}

#[test]
fn what_must_differ_differs() {
    refused(
        "/disks/1/id",
        json!("root"),
        "disks.1.id: \"root\" is also that of disks.0; give each of disks its own id",
    );
    let nic = |id: &str, mac: &str, tap: &str| json!({ "id": id, "mac": mac, "uplink": { "tap": tap } });
    let with = |second: Value| error_with("/nics", json!([nic("eth0", "02:00:00:00:00:01", "tap0"), second]));
    let mac2 = "02:00:00:00:00:02";
    assert_eq!(
        with(nic("eth0", mac2, "tap1")),
        "nics.1.id: \"eth0\" is also that of nics.0; give each of nics its own id"
    );
    assert!(with(nic("eth1", "02:00:00:00:00:01", "tap1")).starts_with("nics.1.mac: "));
    assert!(with(nic("eth1", mac2, "tap0")).starts_with("nics.1.uplink.tap: "));
    let same = error_with("/disks/0/path", json!("/dev/sdb"));
    assert_eq!(
        same,
        "disks.data.path: /dev/sdb is also the disk root, and one of them writes to it; give each disk a file of its own"
    );
    let disks: Vec<Value> = (0..16).map(|i| json!({ "id": format!("d{i}"), "path": "x" })).collect();
    assert_eq!(error_with("/disks", json!(disks)), "disks: 16 disks and 1 nics; a VM has room for 16 together");
}

#[test]
fn a_qcow2_file_is_not_written_in_place() {
    refused(
        "/disks/1/format",
        json!("qcow"),
        "disks.data.format: \"qcow\" does not fit; did you mean \"qcow2\"? give \"raw\" or \"qcow2\"",
    );
    refused(
        "/disks/1/format",
        json!("qcow2"),
        "disks.data.mode: \"direct\" does not fit a qcow2 file, which is not written in place; use \"private\", or a raw image: qemu-img convert -O raw /dev/sdb FILE",
    );
    let disk = |mode| json!([{ "id": "a", "path": "x", "format": "qcow2", "mode": mode }]);
    for mode in ["private", "read-only"] {
        let mut config = full();
        config["disks"] = disk(mode);
        assert_eq!(parse(config).unwrap().disks[0].format, Some(DiskFormat::Qcow2), "{mode}");
    }
}

#[test]
fn uplinks_paths_and_times() {
    let tap = "give the name of a TAP interface, at most 15 bytes, like \"tap0\"";
    for bad in ["", "..", "a/b", "sixteen-bytes-xy", "a b", "tap%d"] {
        refused(
            "/nics/0/uplink",
            json!({ "tap": bad }),
            &format!("nics.eth0.uplink.tap: \"{bad}\" is no name of an interface; {tap}"),
        );
    }
    let mend = "give { \"tap\": NAME }, or \"network\" if `ckvmm network` starts the VM";
    refused(
        "/nics/0/uplink",
        json!({ "passt": {} }),
        &format!("nics.eth0.uplink.passt: passt is not there yet; {mend}"),
    );
    assert!(
        error_with("/nics/0/uplink", json!({ "passt": { "forward": ["1:70000"] } }))
            .starts_with("nics.eth0.uplink.passt.forward.0: \"1:70000\"")
    );
    refused(
        "/nics/0",
        json!({ "id": "eth0" }),
        &format!("nics.eth0.uplink: missing, and this VM is in no network; {mend}"),
    );
    refused("/kernel/image", json!(""), "kernel.image: \"\" is no path; give the path of a bzImage or an ELF kernel");
    refused(
        "/kernel/image",
        json!("a\u{0}b"),
        "kernel.image: it holds a control character; give the path of a bzImage or an ELF kernel",
    );
    assert!(error_with("/kernel/image", json!("a".repeat(5000))).starts_with("kernel.image: it is 5000 bytes long; "));
    assert!(
        error_with("/kernel/cmdline", json!("a".repeat(2048))).starts_with("kernel.cmdline: it is 2048 bytes long; ")
    );
    assert!(error_with("/kernel/cmdline", json!("a\u{0}")).starts_with("kernel.cmdline: it holds '\\0'; "));
    assert!(error_with("/serial", json!({ "socket": "a".repeat(108) })).contains("serial.socket: /vms/aaa"));
    let every = "give a time like \"60s\" or \"5m\", at least \"1s\" and at most \"24h\"";
    refused("/checkpoint/every", json!("1ms"), &format!("checkpoint.every: out of range; {every}"));
    refused("/checkpoint/every", json!("60"), &format!("checkpoint.every: \"60\" has no unit of time; {every}"));
    refused("/checkpoint/every", json!(60), &format!("checkpoint.every: 60 does not fit; {every}"));
    let modes = "give \"auto\", \"protect\", \"fork\" or \"stop\"";
    for mode in CheckpointMode::value_variants() {
        assert!(modes.contains(&json!(mode).to_string()), "{mode:?} is one of them");
    }
    refused("/checkpoint/mode", json!("spoon"), &format!("checkpoint.mode: \"spoon\" does not fit; {modes}"));
    assert!(error_with("/stop_timeout", json!("25h")).starts_with("stop_timeout: longer than a day; "));
}
