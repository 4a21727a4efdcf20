//! Huge pages, made again.
//!
//! While a forked writer has guest RAM too, each write of the guest copies a page, and the huge page around it is split.
//! A fork copies page tables, of which 4 KiB pages have 512 times as many: without this the next pause would be several
//! times as long. So when a writer has ended, the pages are collapsed (MADV_COLLAPSE, Linux 6.1), one after the other, at
//! low priority: while one is, a write to it waits some hundred microseconds.
//!
//! Only anonymous memory is: what a restored guest has not changed yet is the image's file, shared with its clones.
#![allow(unsafe_code)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use ckvmm_devices::GuestRam;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::error::{Error, Result};

const HUGE_PAGE: usize = 2 << 20;
/// Niceness of the thread: the guest's vCPUs come first.
const NICE: libc::c_int = 10;

/// The thread that collapses, once through all of RAM. It ends early when this goes.
#[derive(Debug)]
pub struct Collapser {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collapser {
    /// Starts it.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub fn start(ram: &GuestRam) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ram, stopped) = (ram.clone(), Arc::clone(&stop));
        let run = move || {
            // SAFETY: a system call on this thread's own priority; without it the thread works all the same.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
            collapse(&ram, &stopped);
        };
        let thread = thread::Builder::new().name("huge pages".into()).spawn(run);
        Ok(Collapser { stop, thread: Some(thread.map_err(Error::os("starting a thread"))?) })
    }
}

impl Drop for Collapser {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It panics nowhere.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn collapse(ram: &GuestRam, stop: &AtomicBool) {
    for region in ram.iter() {
        let pages = region.len() as usize / HUGE_PAGE;
        for page in 0..pages {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the huge page lies in the region, which `ram` keeps mapped; collapsing it changes no content. Where
            // it cannot be (nothing is there, a file is mapped, no huge page is free) all stays as it is.
            unsafe {
                let address = region.as_ptr().add(page * HUGE_PAGE);
                libc::madvise(address.cast(), HUGE_PAGE, libc::MADV_COLLAPSE);
            }
        }
    }
}
