//! Which CPU a thread is on.
//!
//! Linux wakes a thread where it slept, and looks for an idler CPU only later: where that is a vCPU's, the guest stands
//! still meanwhile, to the next tick of the clock at worst (4 ms with 250 a second).

use std::{fs, io};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// Moves the calling thread, which has something to do that takes a while, off the CPUs that these threads of this process
/// are on, if it may run on one that they leave. It is not bound to any afterwards.
pub fn step_aside(of: &[Pid]) {
    // Where it cannot be done the guest waits a little longer.
    let _ = try_step_aside(of);
}

fn try_step_aside(of: &[Pid]) -> io::Result<()> {
    let allowed = sched_getaffinity(SELF)?;
    let is_allowed = |cpu: &usize| allowed.is_set(*cpu).unwrap_or(false);
    if of.len() >= (0..CpuSet::count()).filter(is_allowed).count() {
        return Ok(());
    }
    let (own, mut left) = (sched_getcpu()?, allowed);
    let taken: Vec<usize> = of.iter().filter_map(|thread| cpu_of(*thread)).collect();
    if taken.contains(&own) {
        taken.iter().try_for_each(|cpu| left.unset(*cpu))?;
        // The move is made by the time that the first call returns.
        sched_setaffinity(SELF, &left)?;
        sched_setaffinity(SELF, &allowed)?;
    }
    Ok(())
}

/// The CPU that a thread ran on last; see proc_pid_stat(5).
fn cpu_of(thread: Pid) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

    use nix::unistd::gettid;

    use super::*;

    #[test]
    fn who_steps_aside_is_where_the_others_are_not_and_may_go_anywhere() {
        let allowed = sched_getaffinity(SELF).unwrap();
        let (other, stop) = (AtomicI32::new(0), AtomicBool::new(false));
        let here = sched_getcpu().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Bound to this CPU, it is busy here.
                let mut only = CpuSet::new();
                only.set(here).unwrap();
                sched_setaffinity(SELF, &only).unwrap();
                other.store(gettid().as_raw(), SeqCst);
                while !stop.load(SeqCst) {
                    std::hint::spin_loop();
                }
            });
            while other.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            let other = Pid::from_raw(other.load(SeqCst));
            assert_eq!(cpu_of(other), Some(here));
            let mut only = CpuSet::new();
            only.set(here).unwrap();
            sched_setaffinity(SELF, &only).unwrap();
            step_aside(&[other]);
            assert_eq!(sched_getcpu().unwrap(), here, "there is no other CPU");
            sched_setaffinity(SELF, &allowed).unwrap();
            step_aside(&[other]);
            let cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).count();
            assert!(cpus == 1 || sched_getcpu().unwrap() != here);
            assert_eq!(sched_getaffinity(SELF).unwrap(), allowed);
            stop.store(true, SeqCst);
        });
    }
}
