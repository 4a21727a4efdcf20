//! Files that are missing, empty, too large, no JSON, or no files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn load(text: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    fs::write(&path, text).unwrap();
    let error = VmConfig::load(&path).unwrap_err().to_string();
    error.strip_prefix(path.to_str().unwrap()).expect("the error names the file").to_owned()
}

#[test]
fn bad_files_are_named() {
    assert_eq!(load(b""), ": is empty; give the right file, or make it again");
    let mend = "mend the JSON there (// and /* */ comments are allowed)";
    assert_eq!(load(b"  "), format!(": line 1, column 2: EOF while parsing a value; {mend}"));
    assert_eq!(load(b"{\n  /* a\n comment */ \"a\": }"), format!(": line 3, column 18: expected value; {mend}"));
    assert_eq!(load(b"{\n  /* a"), format!(": line 2, column 3: a comment is opened and not closed; {mend}"));
    assert_eq!(
        load(b"{ \"name\": \"a\", \"name\": \"b\" }"),
        format!(": line 1, column 21: \"name\" stands twice in one object; {mend}")
    );
    assert_eq!(load(b"{} {}"), format!(": line 1, column 4: trailing characters; {mend}"));
    assert!(load(b"{ \"a\": \"\xff\" }").starts_with(": line 1, column "));
    let object = "give an object with \"version\": 1, \"name\" and \"kernel\"";
    for (text, shown) in [("[]", "a list"), ("1", "1"), ("null", "null"), ("\"x\"", "\"x\"")] {
        assert_eq!(load(text.as_bytes()), format!(": configuration: {shown} does not fit; {object}"));
    }
    assert_eq!(
        load(b"{ \"version\": 1, \"name\": \"a\" }"),
        ": kernel: missing; give an object like { \"image\": \"vmlinuz\", \"initrd\": \"initrd.img\", \"cmdline\": \"console=ttyS0\" }"
    );
    assert_eq!(load(&vec![b' '; (1 << 20) + 1]), ": is too large (1048577 bytes); give a file of at most 1MiB");
    let deep = "[".repeat(100_000);
    assert!(load(deep.as_bytes()).contains("recursion limit"));
}

#[test]
fn comments_and_a_byte_order_mark_are_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    let text = "\u{feff}// a VM\n{ \"version\": 1, /* its */ \"name\": \"a\", // name\n \"kernel\": { \"image\": \"http://not-a-comment /*\" } } //";
    fs::write(&path, text).unwrap();
    let config = VmConfig::load(&path).unwrap();
    assert_eq!(config.kernel.image, dir.path().join("http://not-a-comment /*"));
}

#[test]
fn bad_paths_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        VmConfig::load(&dir.path().join(name)).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "D")
    };
    assert_eq!(at("missing"), "D/missing: does not exist; make it, or give another path");
    assert_eq!(at(""), "D/: is a directory; give a file");
    fs::write(dir.path().join("file"), "x").unwrap();
    assert_eq!(at("file/vm.json"), "D/file/vm.json: does not exist: a part of it is no directory; give another path");
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(at("fifo"), "D/fifo: is no regular file; give a file");
    let secret = dir.path().join("secret");
    fs::write(&secret, "{}").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o0)).unwrap();
    if fs::File::open(&secret).is_err() {
        assert!(at("secret").starts_with("D/secret: may not be read by this user; "), "root may read everything");
    }
}

#[test]
fn files_of_fields_name_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.raw");
    fs::write(&path, "").unwrap();
    let file = InputFile { field: "disks.root.path", path: &path, max: 10, block_device: true, write: false };
    assert!(file.open().unwrap_err().to_string().ends_with("root.raw is empty; give the right file, or make it again"));
    fs::write(&path, "0123456789a").unwrap();
    let line = file.open().unwrap_err().to_string();
    assert!(
        line.starts_with("disks.root.path: ")
            && line.ends_with("is too large (11 bytes); give a file of at most 10 bytes"),
        "{line}"
    );
    fs::write(&path, "0123456789").unwrap();
    assert_eq!(file.read().unwrap(), b"0123456789");
}
