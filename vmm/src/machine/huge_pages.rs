//! Huge pages, made again.
//!
//! While a forked writer has guest RAM too, each write of the guest copies a page, and the huge page around it is split.
//! A fork copies page tables, of which 4 KiB pages have 512 times as many: without this the next pause would be several
//! times as long. So when a writer has ended, the pages are collapsed (MADV_COLLAPSE, Linux 6.1), one after the other.
//!
//! While one is, a vCPU that wants a page from the kernel waits, some hundred microseconds; and for as long as whatever
//! takes the CPU from the thread that collapses. So that thread does not stand back behind others, but keeps off the vCPUs'
//! CPUs; it begins when the kernel is done with what the writer has left, and rests after each page, since a vCPU that waits
//! might else wait for all of them.
//!
//! Only anonymous memory is: what a restored guest has not changed yet is the image's file, shared with its clones.
#![allow(unsafe_code)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ckvmm_devices::GuestRam;
use ckvmm_snapshot::Aside;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::error::{Error, Result};

const HUGE_PAGE: usize = 2 << 20;
/// How long the kernel may be busy with what a writer has left: it frees page tables after a grace period of RCU, in
/// interrupts of whichever thread is on the CPU.
const SETTLE: Duration = Duration::from_millis(100);
/// After one page that took longer to collapse than it does to see that there is nothing to collapse.
const REST: Duration = Duration::from_millis(1);
const NOTHING: Duration = Duration::from_micros(50);

/// The thread that collapses, once through all of RAM. It ends early when this goes.
#[derive(Debug)]
pub struct Collapser {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collapser {
    /// Starts it; it keeps off whom `aside` names.
    ///
    /// # Errors
    /// If the host has no thread for it.
    pub fn start(ram: &GuestRam, aside: Aside) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ram, stopped) = (ram.clone(), Arc::clone(&stop));
        let run = move || {
            thread::park_timeout(SETTLE);
            collapse(&ram, &aside, &stopped);
        };
        let thread = thread::Builder::new().name("huge pages".into()).spawn(run);
        Ok(Collapser { stop, thread: Some(thread.map_err(Error::os("starting a thread"))?) })
    }
}

impl Drop for Collapser {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        // It panics nowhere.
        let _ = thread.join();
    }
}

fn collapse(ram: &GuestRam, aside: &Aside, stop: &AtomicBool) {
    for region in ram.iter() {
        let pages = region.len() as usize / HUGE_PAGE;
        for page in 0..pages {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let begun = Instant::now();
            // SAFETY: the huge page lies in the region, which `ram` keeps mapped; collapsing it changes no content. Where
            // it cannot be (nothing is there, a file is mapped, no huge page is free) all stays as it is.
            unsafe {
                let address = region.as_ptr().add(page * HUGE_PAGE);
                libc::madvise(address.cast(), HUGE_PAGE, libc::MADV_COLLAPSE);
            }
            if begun.elapsed() > NOTHING {
                thread::park_timeout(REST);
                aside.step();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::ram::Ram;

    const BYTES: usize = 4 * HUGE_PAGE;

    /// KiB in huge pages of the mapping at `address`.
    fn huge_kib(address: usize) -> usize {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let parse = |hex: &str| usize::from_str_radix(hex, 16).ok();
            let range = range.and_then(|(start, end)| Some(parse(start)?..parse(end)?));
            !range.is_some_and(|range| range.contains(&address))
        });
        let line = lines.find(|line| line.starts_with("AnonHugePages:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn split_pages_become_huge_again_and_keep_their_content() {
        let ram = Ram::zeroed(BYTES as u64).unwrap();
        let memory = ram.memory();
        let address = memory.iter().next().unwrap().as_ptr() as usize;
        // SAFETY: no bytes at all: it asks only whether the kernel knows this advice.
        if unsafe { libc::madvise(address as *mut libc::c_void, 0, libc::MADV_COLLAPSE) } != 0 {
            eprintln!("skipped: this kernel has no MADV_COLLAPSE (Linux 6.1)");
            return;
        }
        let content: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8 | 1).collect();
        memory.write_slice(&content, GuestAddress(0)).unwrap();
        for page in [0, 2] {
            let at = page * HUGE_PAGE + 4096;
            // SAFETY: one page of the mapping goes, which splits the huge page around it; it is written again below.
            unsafe { libc::madvise((address + at) as *mut libc::c_void, 4096, libc::MADV_DONTNEED) };
            memory.write_slice(&content[at..at + 4096], GuestAddress(at as u64)).unwrap();
        }
        assert!(huge_kib(address) <= 2 * HUGE_PAGE / 1024, "two are split");
        collapse(memory, &Aside::default(), &AtomicBool::new(true));
        assert!(huge_kib(address) <= 2 * HUGE_PAGE / 1024, "told to stop");
        collapse(memory, &Aside::default(), &AtomicBool::new(false));
        assert_eq!(huge_kib(address), BYTES / 1024);
        let mut found = vec![0; BYTES];
        memory.read_slice(&mut found, GuestAddress(0)).unwrap();
        assert!(found == content);
    }
}
