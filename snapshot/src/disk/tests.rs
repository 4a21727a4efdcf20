//! Captures of real files while threads change them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use super::*;
use crate::error::Error;
use crate::fault::{Fault, with};
use crate::files;
use crate::limits::CLUSTER_BYTES;
use crate::progress::Progress;

const BYTES: u64 = 40 * CLUSTER_BYTES + 512;

/// Every other pair of clusters holds data.
fn disk() -> (Arc<LiveDisk>, Vec<u8>) {
    let mut content = vec![0; BYTES as usize];
    for (index, byte) in content.iter_mut().enumerate() {
        *byte = if index as u64 / CLUSTER_BYTES % 4 < 2 { (index % 251) as u8 } else { 0 };
    }
    let file = tempfile::tempfile().expect("file");
    file.set_len(BYTES).expect("length");
    for (index, cluster) in content.chunks(CLUSTER_BYTES as usize).enumerate() {
        if cluster.iter().any(|byte| *byte != 0) {
            file.write_all_at(cluster, index as u64 * CLUSTER_BYTES).expect("write");
        }
    }
    (Arc::new(LiveDisk::new(file)), content)
}

fn capture(disk: &LiveDisk, directory: &tempfile::TempDir) -> Arc<Capture> {
    let path = directory.path().join("disk");
    let to = files::create(&path).expect("file");
    let capture = Capture::new(disk, Uuid::new_v4(), PathBuf::from("disk d"), to, path, BYTES).expect("prepares");
    Arc::new(capture)
}

/// A disk that is being captured into a directory.
fn cut() -> (Arc<LiveDisk>, Vec<u8>, Arc<Capture>, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("directory");
    let (disk, content) = disk();
    let capture = capture(&disk, &directory);
    disk.begin(&capture);
    (disk, content, capture, directory)
}

fn captured(capture: &Capture) -> Vec<u8> {
    let mut found = vec![0; BYTES as usize];
    capture.file().file.read_exact_at(&mut found, 0).expect("read");
    found
}

/// Changes `bytes` as a guest does.
fn change(disk: &LiveDisk, start: u64, bytes: &[u8]) {
    disk.before_change(start..start + bytes.len() as u64);
    disk.file().write_all_at(bytes, start).expect("write");
}

#[test]
fn the_image_has_the_disk_as_it_was_at_the_cut_whoever_writes() {
    for round in 0..20_u64 {
        let (disk, content, capture, _directory) = cut();
        thread::scope(|scope| {
            for writer in 1..=4_u64 {
                let disk = &disk;
                scope.spawn(move || {
                    for step in 0..60 {
                        // Odd lengths and places, each writer through the whole disk in an order of its own.
                        let start = (step * 7919 * writer * 512 + round * 4096) % (BYTES - 5000);
                        change(disk, start, &[writer as u8; 4999]);
                    }
                });
            }
            capture.sweep(&Progress::new()).expect("captures");
        });
        disk.end(&capture);
        assert!(captured(&capture) == content, "round {round}");
        let mut live = vec![0; BYTES as usize];
        disk.file().read_exact_at(&mut live, 0).expect("read");
        assert!(live != content, "the writes are in the live disk");
    }
}

#[test]
fn a_write_captures_its_clusters_and_no_more() {
    let directory = tempfile::tempdir().expect("directory");
    let (disk, content) = disk();
    let capture = capture(&disk, &directory);
    change(&disk, 0, b"before the cut");
    disk.begin(&capture);
    change(&disk, 5 * CLUSTER_BYTES + 10, b"after");
    change(&disk, 5 * CLUSTER_BYTES + 10, b"again");
    let found = captured(&capture);
    let range = |cluster: u64| (cluster * CLUSTER_BYTES) as usize..((cluster + 1) * CLUSTER_BYTES) as usize;
    assert!(found[range(5)] == content[range(5)]);
    assert!(found[range(4)].iter().all(|byte| *byte == 0), "its neighbour is nobody's yet");
    capture.sweep(&Progress::new()).expect("captures");
    let mut expected = content;
    expected[..14].copy_from_slice(b"before the cut");
    assert!(captured(&capture) == expected);
}

#[test]
fn a_capture_that_fails_holds_nobody_up_and_says_why() {
    let (disk, _, capture, _directory) = cut();
    let (_, steps) = with(Fault::Fail(0, libc::ENOSPC), || change(&disk, 0, b"the guest goes on"));
    assert_eq!(steps.len(), 1, "the copy that failed: {steps:?}");
    change(&disk, CLUSTER_BYTES, b"and on");
    assert!(matches!(capture.sweep(&Progress::new()), Err(Error::NoSpace { .. })));
    let mut found = [0; 17];
    disk.file().read_exact_at(&mut found, 0).expect("read");
    assert_eq!(&found, b"the guest goes on");
}

#[test]
fn a_cancelled_sweep_ends_and_later_changes_pass() {
    let (disk, _, capture, _directory) = cut();
    let progress = Progress::new();
    progress.cancel();
    assert!(matches!(capture.sweep(&progress), Err(Error::Cancelled)));
    disk.end(&capture);
    let (_, steps) = with(Fault::None, || change(&disk, 30 * CLUSTER_BYTES, b"free"));
    assert_eq!(steps, [], "nothing is copied for a capture that has ended");
}
