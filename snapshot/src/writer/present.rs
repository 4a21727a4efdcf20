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
use std::mem;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::slice;

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
    /// Pages of these kinds.
    sought: u64,
    told: Vec<PageRegion>,
    found: Vec<Range<usize>>,
    /// Where there was nothing at the first look, or all of it.
    gaps: Vec<Range<usize>>,
    /// What was found there at the first look.
    before: Vec<Range<usize>>,
}

/// The pages that there were, by address.
#[derive(Debug)]
pub(super) struct Present(Vec<Range<usize>>);

impl Scanner {
    pub(super) fn new() -> io::Result<Scanner> {
        let sought = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let (told, found) = (vec![PageRegion::default(); RUNS], Vec::with_capacity(RUNS));
        let mut scanner = Scanner {
            pagemap: File::open("/proc/self/pagemap")?,
            sought,
            told,
            found,
            gaps: Vec::new(),
            before: Vec::new(),
        };
        // Does the kernel know it?
        scanner.scan(&(0..0))?;
        Ok(scanner)
    }

    /// The first look, at all of these.
    pub(super) fn look<'a>(&mut self, memory: impl Iterator<Item = &'a Range<usize>> + Clone) -> io::Result<()> {
        memory.clone().try_for_each(|memory| self.scan(memory))?;
        self.found.sort_unstable_by_key(|run| run.start);
        for memory in memory.clone() {
            without(slice::from_ref(memory), &self.found, |gap| self.gaps.push(gap));
        }
        if self.gaps.len() > GAPS {
            self.gaps = memory.cloned().collect();
            self.before = mem::replace(&mut self.found, Vec::with_capacity(RUNS));
        }
        Ok(())
    }

    /// The second look, at what was not there; returns what there is by now.
    pub(super) fn look_again(&mut self) -> io::Result<Vec<Range<usize>>> {
        let known = self.found.len();
        mem::take(&mut self.gaps).iter().try_for_each(|gap| self.scan(gap))?;
        let (mut appeared, found) = (Vec::new(), &mut self.found[known..]);
        found.sort_unstable_by_key(|run| run.start);
        without(found, &self.before, |run| appeared.push(run));
        Ok(appeared)
    }

    /// Adds what there is in `memory`.
    fn scan(&mut self, memory: &Range<usize>) -> io::Result<()> {
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
            category_anyof_mask: self.sought,
            return_mask: self.sought,
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
        // Two sorted lists.
        self.found.sort_by_key(|run| run.start);
        Present(self.found)
    }
}

/// What of `runs` is in none of `others`; both are ascending.
fn without(runs: &[Range<usize>], others: &[Range<usize>], mut each: impl FnMut(Range<usize>)) {
    let mut others = others.iter().peekable();
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            while others.next_if(|other| other.end <= start).is_some() {}
            let next = others.peek().map_or(run.end, |other| other.start.clamp(start, run.end));
            if start < next {
                each(start..next);
            }
            start = others.peek().map_or(run.end, |other| if next < run.end { other.end } else { run.end });
        }
    }
}

impl Present {
    /// Those of `memory`, ascending, that are in memory now.
    pub(super) fn now(memory: &[Range<usize>]) -> io::Result<Present> {
        let mut scanner = Scanner { sought: PAGE_IS_PRESENT, ..Scanner::new()? };
        memory.iter().try_for_each(|memory| scanner.scan(memory))?;
        Ok(scanner.finish())
    }

    /// All of them.
    pub(super) fn all(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Those of `memory`.
    pub(super) fn of(&self, memory: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = self.0.partition_point(|run| run.end <= memory.start);
        let runs = self.0[first..].iter().take_while(|run| run.start < memory.end);
        runs.map(|run| run.start.max(memory.start)..run.end.min(memory.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(runs: &[(usize, usize)], others: &[(usize, usize)]) -> Vec<(usize, usize)> {
        let [runs, others] = [runs, others].map(|runs| runs.iter().map(|run| run.0..run.1).collect::<Vec<_>>());
        let mut rest = Vec::new();
        without(&runs, &others, |run| rest.push((run.start, run.end)));
        rest
    }

    /// Which pages of two mappings there are, of which the second is the lower one, after two looks.
    fn seen(pages: usize, holes: usize) {
        const PAGE: usize = 4096;
        let mut memory = vec![0_u8; 2 * pages * PAGE + PAGE];
        let start = memory.as_mut_ptr().align_offset(PAGE);
        let base = memory.as_ptr() as usize + start;
        let halves = [base + pages * PAGE..base + 2 * pages * PAGE, base..base + pages * PAGE];
        let mut write = |page: usize| memory[start + page * PAGE] = 1;
        let written: Vec<usize> = (0..holes).map(|hole| hole * 2).chain([pages + 4]).collect();
        written.iter().for_each(|page| write(*page));
        let mut scanner = Scanner::new().expect("the kernel tells");
        scanner.look(halves.iter()).expect("the kernel tells");
        write(pages + 8);
        let page_of = |run: &Range<usize>| ((run.start - base) / PAGE, run.len() / PAGE);
        let appeared = scanner.look_again().expect("the kernel tells");
        assert_eq!(appeared.iter().map(page_of).collect::<Vec<_>>(), [(pages + 8, 1)]);
        let all: Vec<_> = scanner.finish().all().iter().map(page_of).collect();
        let expected = written.into_iter().chain([pages + 8]).map(|page| (page, 1));
        assert!(all.into_iter().eq(expected));
    }

    #[test]
    fn a_second_look_finds_what_was_written_to_since_the_first() {
        // No huge page where there are fewer than so many.
        seen(200, 3);
        seen(200, GAPS + 1);
    }

    #[test]
    fn what_is_left_of_runs_without_others() {
        assert_eq!(rest(&[(2, 9)], &[]), [(2, 9)]);
        assert_eq!(rest(&[(2, 9)], &[(0, 2), (9, 12)]), [(2, 9)]);
        assert_eq!(rest(&[(2, 9)], &[(0, 3), (4, 5), (8, 12)]), [(3, 4), (5, 8)]);
        assert_eq!(
            rest(&[(2, 4), (5, 9), (12, 20)], &[(1, 6), (7, 13), (15, 16), (19, 30)]),
            [(6, 7), (13, 15), (16, 19)]
        );
        assert_eq!(rest(&[(2, 4), (5, 9)], &[(0, 10)]), []);
        assert_eq!(rest(&[(2, 4), (5, 9)], &[(3, 6)]), [(2, 3), (6, 9)]);
    }
}
