//! What QEMU's own tools make is read as QEMU reads it, or refused in one line; and so is whatever is made of it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const MIB: usize = 1 << 20;

/// A directory with images.
struct Images(TempDir);

impl Images {
    /// With a raw disk of 5 MiB in it, `raw`.
    fn new() -> Self {
        let images = Images(tempfile::tempdir().unwrap());
        let mut disk = vec![0; 5 * MIB];
        for (at, byte) in disk[MIB / 2..MIB].iter_mut().enumerate() {
            *byte = ((at * at) >> 7) as u8;
        }
        disk[2 * MIB..3 * MIB].fill(7);
        disk[5 * MIB - 700..].fill(9);
        fs::write(images.path("raw"), disk).unwrap();
        images
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a tool of qemu-utils here.
    fn run(&self, line: &str) {
        let mut words = line.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        let output = command.args(words).current_dir(self.0.path()).output().expect("make deps installs qemu-utils");
        assert!(output.status.success(), "{line}: {output:?}");
    }

    /// `raw` as a qcow2 file with these options.
    fn convert(&self, options: &str, name: &str) {
        self.run(&format!("qemu-img convert -q -O qcow2 {options} raw {name}"));
    }

    fn io(&self, name: &str, commands: &[&str]) {
        for command in commands {
            let mut io = Command::new("qemu-io");
            let output = io.args(["-f", "qcow2", "-c", command]).arg(self.path(name)).output().unwrap();
            assert!(output.status.success(), "{command}: {output:?}");
        }
    }

    fn change(&self, name: &str, offset: u64, bytes: &[u8]) {
        OpenOptions::new().write(true).open(self.path(name)).unwrap().write_all_at(bytes, offset).unwrap();
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let to = self.path("found");
        Chain::open("disks.a.path", &self.path(name))?.write_out(&to)?;
        let found = fs::read(&to).unwrap();
        fs::remove_file(to).unwrap();
        Ok(found)
    }

    fn same_as_qemu(&self, name: &str) {
        self.run(&format!("qemu-img convert -f qcow2 -O raw {name} wanted"));
        let wanted = fs::read(self.path("wanted")).unwrap();
        assert!(self.read(name).unwrap() == wanted, "{name}");
    }

    fn refused(&self, name: &str, what: &str, mend: &str) {
        let line = self.read(name).unwrap_err().to_string();
        let file = self.path(name).display().to_string();
        let begin = format!("disks.a.path: {file} ");
        assert!(line.starts_with(&begin) && !line.contains('\n'), "{line}");
        let (found, rest) = line[begin.len()..].split_once("; ").unwrap();
        assert!(found.contains(what) && rest.contains(mend), "{line}");
    }
}

#[test]
fn every_kind_of_file_is_read_as_qemu_reads_it() {
    let images = Images::new();
    let kinds = [
        "-o compat=0.10",
        "-o compat=1.1",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-c -o compat=0.10",
        "-c -o cluster_size=512",
        "-c -o cluster_size=2M",
        "-o lazy_refcounts=on",
        "-o refcount_bits=1",
        "-o preallocation=metadata",
    ];
    for kind in kinds {
        images.convert(kind, "file");
        images.same_as_qemu("file");
        assert!(images.read("file").unwrap() == fs::read(images.path("raw")).unwrap(), "{kind}");
    }
}

#[test]
fn what_was_written_later_is_read_as_qemu_reads_it() {
    let images = Images::new();
    images.convert("-c", "a");
    images.io("a", &["write -P 3 600k 3k", "write -z 2M 64k", "write -zu 2112k 64k", "discard 2560k 128k"]);
    images.same_as_qemu("a");
    images.run("qemu-img snapshot -c one a");
    images.io("a", &["write -P 4 512k 200k", "write -P 5 4M 1k"]);
    images.run("qemu-img snapshot -c two a");
    images.io("a", &["write -P 6 512k 2k"]);
    images.same_as_qemu("a");
    images.run("qemu-img snapshot -a one a");
    images.same_as_qemu("a");
}

#[test]
fn a_chain_is_read_as_qemu_reads_it() {
    let images = Images::new();
    fs::create_dir(images.path("sub")).unwrap();
    images.convert("-o compat=0.10,cluster_size=4k", "base");
    images.run("qemu-img create -q -f qcow2 -o compat=0.10 -b ../base -F qcow2 sub/mid 8M");
    images.io("sub/mid", &["write -P 1 600k 70k", "write -P 2 7M 100k"]);
    images.same_as_qemu("sub/mid");
    images.run("qemu-img create -q -f qcow2 -o cluster_size=512 -b sub/mid -F qcow2 top 20M");
    images.io("top", &["write -P 3 620k 3k", "write -z 2M 700k", "write -P 4 18M 1k"]);
    images.same_as_qemu("top");
    images.run("qemu-img create -q -f qcow2 -b sub/mid -F qcow2 shorter 700k");
    images.same_as_qemu("shorter");
    images.run("qemu-img create -q -f qcow2 -b raw -F raw on-raw 6M");
    images.io("on-raw", &["write -P 5 2100k 9k"]);
    images.same_as_qemu("on-raw");
}

#[test]
fn what_is_zero_takes_no_room() {
    let images = Images::new();
    images.run("qemu-img create -q -f qcow2 big 1T");
    images.io("big", &["write -P 1 700G 64k", "write -P 0 800G 1M"]);
    let to = images.path("found");
    Chain::open("disks.a.path", &images.path("big")).unwrap().write_out(&to).unwrap();
    let metadata = to.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() * 512 < MIB as u64, "{} sectors", metadata.blocks());
}

#[test]
fn what_cannot_be_read_is_refused() {
    let images = Images::new();
    images.refused("raw", "is no qcow2 file", "leave \"format\" out");
    images.convert("-o extended_l2=on,cluster_size=128k", "a");
    images.refused("a", "uses extended L2 entries", "qemu-img convert");
    images.convert("-c -o compression_type=zstd", "a");
    images.refused("a", "uses a compression other than zlib", "qemu-img convert");
    images.convert("-o data_file=data", "a");
    images.refused("a", "uses an external data file", "qemu-img convert");
    images.convert("--object secret,id=s,data=x -o encrypt.format=aes,encrypt.key-secret=s", "a");
    images.refused("a", "is encrypted", "qemu-img convert");
    images.run("qemu-img create -q -f qcow2 a 1000k");
    images.change("a", 24, &1_024_001u64.to_be_bytes());
    images.refused("a", "has a disk of 1024001 bytes", "qemu-img resize");
    images.change("a", 24, &(1u64 << 40).to_be_bytes());
    images.refused("a", "is damaged: its L1 table is too short", "fetch it again");
    images.run("qemu-img create -q -f qcow2 a 16T");
    images.refused("a", "has a disk of 17592186044416 bytes", "8 TiB at most");
    for (bit, what) in ["was not closed", "is marked as corrupt"].into_iter().enumerate() {
        images.convert("", "a");
        images.change("a", 79, &[1 << bit]);
        images.refused("a", what, "qemu-img check -r all");
    }
    images.change("a", 79, &[1 << 5]);
    images.refused("a", "uses what only a newer QEMU knows", "qemu-img convert");
}

#[test]
fn a_backing_file_that_is_none_is_refused() {
    let images = Images::new();
    let rebase = |backing: &str, name: &str| images.run(&format!("qemu-img rebase -u -b {backing} {name}"));
    images.convert("", "base");
    images.run("qemu-img create -q -f qcow2 -b base -F qcow2 top");
    rebase("top -F qcow2", "base");
    images.refused("base", "is a backing file of itself", "qemu-img rebase -u");
    rebase("raw -F raw", "top");
    // Its type is one that nobody knows: as QEMU made files before 6.1.
    let file = fs::read(images.path("top")).unwrap();
    let extension = file.windows(4).position(|bytes| bytes == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    images.change("top", extension as u64, &[7; 4]);
    images.refused("top", "does not say what format its backing file \"raw\" has", "qemu-img rebase -u");
    rebase("raw -F vmdk", "top");
    images.refused("top", "has a backing file \"raw\" of the format \"vmdk\"", "qemu-img rebase -u");
    for no_path in ["nbd://host/disk -F raw", "json:{\"driver\":\"nbd\"} -F raw"] {
        rebase(no_path, "top");
        images.refused("top", "which is no path", "qemu-img rebase -u");
    }
    let line = |name| images.read(name).unwrap_err().to_string();
    let of_top = format!("(the backing file of {})", images.path("top").display());
    rebase("gone -F raw", "top");
    let gone = line("top");
    assert!(gone.contains("/gone does not exist") && gone.contains(&of_top), "{gone}");
    rebase("raw -F qcow2", "top");
    let no_qcow2 = line("top");
    assert!(no_qcow2.contains("/raw is no qcow2 file") && no_qcow2.contains(&of_top), "{no_qcow2}");
    // A guest that writes a header to its raw disk names no file of the host's.
    images.convert("", "fake");
    rebase("fake -F raw", "top");
    assert!(images.read("top").unwrap().starts_with(b"QFI\xfb"));
}

#[test]
fn a_chain_has_an_end() {
    let images = Images::new();
    let mut below = "raw -F raw".to_owned();
    for file in 1..FILES_MAX {
        images.run(&format!("qemu-img create -q -f qcow2 -b {below} {file} 5M"));
        below = format!("{file} -F qcow2");
    }
    let longest = (FILES_MAX - 1).to_string();
    assert!(images.read(&longest).unwrap() == fs::read(images.path("raw")).unwrap());
    images.run(&format!("qemu-img create -q -f qcow2 -b {below} top 5M"));
    images.refused("top", "builds on more than 32 files", "qemu-img convert");
}

#[test]
fn a_file_that_is_cut_off_is_refused_wherever_it_ends() {
    let images = Images::new();
    for kind in ["-o cluster_size=64k", "-c -o cluster_size=64k", "-o compat=0.10,cluster_size=64k"] {
        images.convert(kind, "whole");
        let whole = fs::read(images.path("whole")).unwrap();
        let mut ends: Vec<usize> = (0..whole.len()).step_by(64 << 10).chain([10, 71, 100, 113, 600]).collect();
        ends.retain(|end| *end > 0);
        for end in ends {
            fs::write(images.path("cut"), &whole[..end]).unwrap();
            assert!(images.read("cut").is_err(), "{kind}: {end} of {} bytes", whole.len());
        }
    }
}

/// A change to a file: where, and what stands there then.
fn any_change() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let header = prop_oneof![0..112usize, 112..1024usize];
    // Of clusters of 4 KiB: header, tables, data.
    let at = prop_oneof![header, 1024..64usize << 10];
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..9),
        proptest::collection::vec(prop_oneof![Just(0), Just(0xff), Just(1), Just(0x80)], 1..9),
    ];
    (at, bytes)
}

#[test]
fn a_file_that_is_damaged_anyhow_is_read_or_refused() {
    let images = Images::new();
    images.run("qemu-img create -q -f qcow2 -o cluster_size=4k -b raw -F raw top 6M");
    images.io("top", &["write -P 1 700k 20k", "write -P 2 2M 4k", "write -z 3M 8k"]);
    images.convert("-c -o cluster_size=4k", "zipped");
    let files = ["top", "zipped"].map(|name| fs::read(images.path(name)).unwrap());
    let changes = proptest::collection::vec(any_change(), 1..4);
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(which in 0..files.len(), changes in changes)| {
        let mut bytes = files[which].clone();
        for (at, change) in changes {
            let end = bytes.len().min(at + change.len());
            if at < end {
                bytes[at..end].copy_from_slice(&change[..end - at]);
            }
        }
        fs::write(images.path("damaged"), &bytes).unwrap();
        if let Err(error) = images.read("damaged") {
            let line = error.to_string();
            prop_assert!(line.starts_with("disks.a.path: ") && line.contains("; "), "{}", line);
        }
    });
}

#[test]
fn imago_is_not_shown_what_it_panics_on() {
    let images = Images::new();
    images.convert("", "a");
    images.change("a", 0x70 + 4, &385u32.to_be_bytes());
    images.refused("a", "its feature name table ends in half an entry", "fetch it again");
}

proptest! {
    #[test]
    fn any_bytes_are_a_header_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..4096), version in 2..4u8) {
        let _ = header::parse(&bytes);
        let mut bytes = bytes;
        bytes.splice(0..bytes.len().min(8), [b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        let _ = header::parse(&bytes);
    }
}
