//! Which pages of memory there are.
//!
//! A page that does not exist is zero, and cannot be protected: somebody who writes to it makes it, and nobody hears of
//! that. So it has to be known which ones there were.
//!
//! Invariant: a page that there is, in memory or in swap, stays: nobody gives guest RAM back while the guest lives. So a
//! first look, while the guest runs, leaves little for the second, in its pause.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// `_IOWR('f', 16, struct pm_scan_arg)`: PAGEMAP_SCAN, Linux 6.7 (kernel document `admin-guide/mm/pagemap`).
const PAGEMAP_SCAN: libc::c_ulong =
    3 << 30 | (size_of::<Scan>() as libc::c_ulong) << 16 | (b'f' as libc::c_ulong) << 8 | 16;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// Runs of pages that are told at once.
const RUNS: usize = 4096;

/// More gaps than this are not looked at one by one.
const GAPS: usize = 64;

/// `struct pm_scan_arg`.
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Looks twice. The second time nothing is to be allocated, unless much has come in very many pieces.
#[derive(Debug)]
pub(super) struct Scanner {
    pagemap: File,
    told: Vec<PageRegion>,
    found: Vec<Range<usize>>,
    /// Where there was nothing at the first look.
    gaps: Vec<Range<usize>>,
}

/// The pages that there were, by address.
#[derive(Debug)]
pub(super) struct Present(Vec<Range<usize>>);

impl Scanner {
    pub(super) fn new() -> io::Result<Scanner> {
        let (told, found) = (vec![PageRegion::default(); RUNS], Vec::with_capacity(RUNS));
        let mut scanner = Scanner { pagemap: File::open("/proc/self/pagemap")?, told, found, gaps: Vec::new() };
        // Does the kernel know it?
        scanner.scan(&(0..0))?;
        Ok(scanner)
    }

    /// The first look, at all of these, ascending.
    pub(super) fn look<'a>(&mut self, memory: impl Iterator<Item = &'a Range<usize>> + Clone) -> io::Result<()> {
        memory.clone().try_for_each(|memory| self.scan(memory))?;
        for memory in memory.clone() {
            let mut start = memory.start;
            for run in self.found.iter().filter(|run| memory.contains(&run.start)) {
                self.gaps.extend((start < run.start).then_some(start..run.start));
                start = run.end;
            }
            self.gaps.extend((start < memory.end).then_some(start..memory.end));
        }
        if self.gaps.len() > GAPS {
            self.gaps = memory.cloned().collect();
            self.found.clear();
        }
        Ok(())
    }

    /// The second look, at what was not there.
    pub(super) fn look_again(&mut self) -> io::Result<()> {
        std::mem::take(&mut self.gaps).iter().try_for_each(|gap| self.scan(gap))
    }

    /// Adds what there is in `memory`.
    fn scan(&mut self, memory: &Range<usize>) -> io::Result<()> {
        let anyof = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: 0,
            start: memory.start as u64,
            end: memory.end as u64,
            walk_end: 0,
            vec: self.told.as_mut_ptr() as u64,
            vec_len: self.told.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: anyof,
            return_mask: anyof,
        };
        loop {
            // SAFETY: the kernel reads and writes `scan`, and writes to `told`, which is as long as it says.
            let count = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
            if count < 0 {
                return Err(io::Error::last_os_error());
            }
            for run in &self.told[..count as usize] {
                self.found.push(run.start as usize..run.end as usize);
            }
            if scan.walk_end >= scan.end {
                return Ok(());
            }
            scan.start = scan.walk_end;
        }
    }

    pub(super) fn finish(mut self) -> Present {
        // Two sorted lists, mostly.
        self.found.sort_by_key(|run| run.start);
        Present(self.found)
    }
}

impl Present {
    /// Those of `memory`.
    pub(super) fn of(&self, memory: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = self.0.partition_point(|run| run.end <= memory.start);
        let runs = self.0[first..].iter().take_while(|run| run.start < memory.end);
        runs.map(|run| run.start.max(memory.start)..run.end.min(memory.end))
    }
}
