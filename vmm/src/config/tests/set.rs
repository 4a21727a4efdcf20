//! `--set`.

use super::*;

fn set(assignment: &str) -> Result<VmConfig, ConfigError> {
    let mut value = full();
    VmConfig::set(&mut value, assignment)?;
    parse(value)
}

#[test]
fn set_changes_fields() {
    assert_eq!(set("disks.root.path=/x").unwrap().disks[0].path, PathBuf::from("/x"));
    assert_eq!(set("disks.1.path=y=z").unwrap().disks[1].path, PathBuf::from("/vms/y=z"));
    assert_eq!(set("vcpus=4").unwrap().vcpus, 4);
    assert_eq!(set("memory=2GiB").unwrap().memory, Bytes(2 << 30));
    assert!(!set("disks.root.capture=false").unwrap().disks[0].is_captured());
    assert_eq!(set("serial.file=log").unwrap().serial, Serial::File("/vms/log".into()));
    assert_eq!(set("serial={\"socket\":\"s\"}").unwrap().serial, Serial::Socket("/vms/s".into()));
    assert_eq!(set("nics=[]").unwrap().nics, []);
    assert_eq!(set("nics.eth0.uplink.tap=tap9").unwrap().nics[0].uplink, Some(Uplink::Tap("tap9".into())));
    assert_eq!(set("kernel.initrd=null").unwrap().kernel.initrd, None);
    let mut bare = json!({ "version": 1, "name": "a", "kernel": { "image": "k" } });
    VmConfig::set(&mut bare, "checkpoint.dir=c").unwrap();
    assert_eq!(parse(bare).unwrap().checkpoint.dir, Some(PathBuf::from("/vms/c")));
}

#[test]
fn set_says_what_is_wrong() {
    let line = |assignment: &str| set(assignment).unwrap_err().to_string();
    let mend = "write --set PATH=VALUE, like --set disks.root.path=/x";
    assert_eq!(line("vcpus"), format!("--set vcpus: has no =; {mend}"));
    assert_eq!(line("=x"), format!("--set =x: has an empty part in its path; {mend}"));
    assert_eq!(line("disks..path=x"), format!("--set disks..path=x: has an empty part in its path; {mend}"));
    assert_eq!(line("disks.rot.path=x"), "--set disks.rot: no such element; did you mean \"root\"?");
    assert_eq!(line("disks.7.path=x"), "--set disks.7: no such element; use one of root, data");
    assert_eq!(line("vcpus.x=1"), "--set vcpus.x: vcpus is a plain value and has no field \"x\"; set vcpus itself");
    assert_eq!(line("disks.root.pth=/x"), "disks.root.pth: no such field; did you mean \"path\"?");
    assert_eq!(line("vcpus=many"), "vcpus: \"many\" does not fit; give a whole number from 1 to 254");
    assert!(line(&"a.".repeat(40)).contains("has no ="));
    assert!(line(&format!("{}a=1", "a.".repeat(40))).ends_with(&format!("is too deep; {mend}")));
}
