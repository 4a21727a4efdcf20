//! Somebody else who writes to a file system.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// Bytes that are written and then asked to be on the disk.
const BLOCK: usize = 1 << 20;
/// Blocks of the file, written one after the other, over and over.
const BLOCKS: u64 = 64;

/// Writes until it is dropped.
pub(crate) struct Busy {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    /// Begins to write to a file in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let file = File::create(dir.join("busy")).expect("there is room for a file");
        let done = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&done);
        let thread = thread::spawn(move || {
            let block = vec![0x5a; BLOCK];
            for number in (0..BLOCKS).cycle() {
                if asked.load(Ordering::Relaxed) {
                    return;
                }
                file.write_all_at(&block, number * BLOCK as u64).expect("there is room for a file");
                file.sync_data().expect("a file can be written");
            }
        });
        Busy { done, thread: Some(thread) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
