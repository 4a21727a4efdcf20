//! Which CPU a thread is on.
//!
//! Linux wakes a thread where it slept, and looks for an idler CPU only later. Where that is a vCPU's, the guest stands
//! still until the next tick of the clock looks again: for 4 ms with 250 a second, more than the pause of a checkpoint.
//! So who has something to do that takes a while moves when it has got such a CPU.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);
/// Of more threads than these nobody keeps off: it takes a look at each, and where so many run there is an idle CPU.
const MOST: usize = 8;
/// What a line of proc_pid_stat(5) has at most, and the place in it of the CPU, counted from behind the name.
const STAT_BYTES: usize = 1024;
const CPU_FIELD: usize = 36;
/// For so long a thread that was not moved does not look again: the kernel writes a whole line for each look. A vCPU that
/// comes to its CPU meanwhile waits as long.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Threads that come first: others keep off the CPUs that they are on. Once made it allocates nothing, so that a child that
/// was forked from a threaded process can use it.
#[derive(Debug, Clone, Default)]
pub struct Aside {
    /// Where the kernel says which CPU each was on last.
    stats: Vec<CString>,
}

impl Aside {
    /// Keeps off the CPUs of these threads of this process.
    pub fn of(threads: &[Pid]) -> Aside {
        let path = |thread| CString::new(format!("/proc/{}/task/{thread}/stat", std::process::id())).ok();
        Aside { stats: if threads.len() > MOST { Vec::new() } else { threads.iter().filter_map(path).collect() } }
    }

    /// Moves the calling thread off their CPUs if it is on one, and may run on one that they leave. It is not bound to any
    /// afterwards.
    pub fn step(&self) {
        // Where it cannot be done the guest waits a little longer.
        let _ = self.try_step();
    }

    /// Moves the calling thread to the CPU of the only one of them: of several, one would be in the way of another. It is not
    /// bound to any afterwards.
    pub(crate) fn join(&self) {
        // Where it cannot be done the guest waits a little longer.
        let _ = self.try_join();
    }

    /// For a thread with much to do, which steps aside before each part of it.
    pub(crate) fn steps(&self) -> Steps<'_> {
        Steps { aside: self, looked: None }
    }

    fn try_step(&self) -> io::Result<()> {
        let own = sched_getcpu()?;
        if !self.taken().any(|cpu| cpu == own) {
            return Ok(());
        }
        let allowed = sched_getaffinity(SELF)?;
        let mut left = allowed;
        self.taken().try_for_each(|cpu| left.unset(cpu))?;
        move_to(&left, &allowed)
    }

    fn try_join(&self) -> io::Result<()> {
        let (own, Some(cpu), 1) = (sched_getcpu()?, self.taken().next(), self.stats.len()) else { return Ok(()) };
        let (allowed, mut only) = (sched_getaffinity(SELF)?, CpuSet::new());
        if cpu != own && allowed.is_set(cpu)? {
            only.set(cpu)?;
            move_to(&only, &allowed)?;
        }
        Ok(())
    }

    /// The CPUs that the threads were on last.
    fn taken(&self) -> impl Iterator<Item = usize> {
        self.stats.iter().filter_map(|path| {
            let mut line = [0; STAT_BYTES];
            // SAFETY: a path that ends with zero; a buffer as long as it is said to be; a descriptor that is ours.
            let count = unsafe {
                let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
                let count = libc::read(file, line.as_mut_ptr().cast(), line.len());
                libc::close(file);
                count
            };
            let line = std::str::from_utf8(line.get(..usize::try_from(count).ok()?)?).ok()?;
            line.rsplit_once(") ")?.1.split(' ').nth(CPU_FIELD)?.parse().ok()
        })
    }
}

/// Moves the calling thread to one of these CPUs, if there are any; it is bound to what it is `allowed`.
fn move_to(cpus: &CpuSet, allowed: &CpuSet) -> io::Result<()> {
    if (0..CpuSet::count()).any(|cpu| cpus.is_set(cpu).unwrap_or(false)) {
        // The move is made by the time that the first call returns.
        sched_setaffinity(SELF, cpus)?;
        sched_setaffinity(SELF, allowed)?;
    }
    Ok(())
}

/// The steps of one thread.
#[derive(Debug)]
pub(crate) struct Steps<'a> {
    aside: &'a Aside,
    /// When it looked last, and the CPU that it was on then.
    looked: Option<(Instant, usize)>,
}

impl Steps<'_> {
    /// As [`Aside::step`], if the thread was moved since it looked last, or that is a while ago.
    pub(crate) fn step(&mut self) {
        let now = Instant::now();
        let is_due = |(then, cpu): (Instant, usize)| now - then >= LOOK_EVERY || sched_getcpu() != Ok(cpu);
        if self.looked.is_none_or(is_due) {
            self.aside.step();
            self.looked = sched_getcpu().ok().map(|cpu| (now, cpu));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

    use nix::unistd::gettid;

    use super::*;

    fn only(cpu: usize) -> CpuSet {
        let mut only = CpuSet::new();
        only.set(cpu).expect("a CPU");
        only
    }

    #[test]
    fn who_steps_aside_is_where_the_others_are_not_and_may_go_anywhere() {
        let allowed = sched_getaffinity(SELF).expect("there are CPUs");
        let here = sched_getcpu().expect("we are on one");
        let (other, stop) = (AtomicI32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sched_setaffinity(SELF, &only(here)).expect("it is allowed");
                other.store(gettid().as_raw(), SeqCst);
                while !stop.load(SeqCst) {
                    std::hint::spin_loop();
                }
            });
            while other.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            let aside = Aside::of(&[Pid::from_raw(other.load(SeqCst))]);
            assert_eq!(aside.taken().collect::<Vec<_>>(), [here]);
            sched_setaffinity(SELF, &only(here)).expect("it is allowed");
            aside.step();
            let stayed = sched_getcpu();
            sched_setaffinity(SELF, &allowed).expect("it is allowed");
            aside.step();
            let moved = (sched_getcpu(), sched_getaffinity(SELF));
            let mut steps = aside.steps();
            steps.step();
            sched_setaffinity(SELF, &only(here)).expect("it is allowed");
            sched_setaffinity(SELF, &allowed).expect("it is allowed");
            steps.step();
            let moved_again = sched_getcpu();
            // Unless the kernel moves it on at once, because there are two now.
            let joined = (0..1000).any(|_| {
                aside.join();
                sched_getcpu() == Ok(here)
            });
            let after = sched_getaffinity(SELF);
            stop.store(true, SeqCst);
            assert_eq!(stayed, Ok(here), "there is no other CPU");
            let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true)).count();
            assert!(cpus == 1 || moved.0 != Ok(here));
            assert!(cpus == 1 || moved_again != Ok(here), "it looks again at once where it was moved to");
            assert_eq!(moved.1, Ok(allowed));
            assert!(joined);
            assert_eq!(after, Ok(allowed), "who joins another may go anywhere, too");
        });
    }

    #[test]
    fn nobody_keeps_off_very_many() {
        assert!(Aside::of(&[gettid(); MOST + 1]).stats.is_empty());
        assert_eq!(Aside::of(&[gettid()]).taken().count(), 1);
        assert_eq!(Aside::of(&[Pid::from_raw(-5)]).taken().count(), 0, "a thread that is gone is nowhere");
    }
}
