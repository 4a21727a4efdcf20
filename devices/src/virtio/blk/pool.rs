//! A few threads that serve jobs from one list, first come, first served.
//!
//! Invariant: the threads block all signals from their first instruction on, so that a signal meant for the process
//! reaches the thread that waits for it and never interrupts a transfer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, SigmaskHow};

use crate::sync::{lock, wait};
use crate::{Error, Result};

/// A pool of threads for jobs of type `J`. The list has no bound of its own: who pushes is bound by its queue.
pub(super) struct Pool<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared<J> {
    list: Mutex<List<J>>,
    changed: Condvar,
}

struct List<J> {
    jobs: VecDeque<J>,
    closed: bool,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts `count` threads named `name` that call `serve` for each job.
    pub(super) fn new(name: &str, count: usize, serve: impl Fn(J) + Clone + Send + 'static) -> Result<Self> {
        let list = Mutex::new(List { jobs: VecDeque::new(), closed: false });
        let shared = Arc::new(Shared { list, changed: Condvar::new() });
        // On failure the pool is dropped, which ends the threads that did start.
        let mut pool = Self { shared, threads: Vec::new() };
        let failed = |source| Error::Thread { device: name.to_owned(), source };
        // A thread inherits the mask of the one that starts it.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let mask = mask.map_err(|errno| failed(errno.into()))?;
        let started = (0..count).try_for_each(|_| {
            let (shared, serve) = (pool.shared.clone(), serve.clone());
            let builder = std::thread::Builder::new().name(name.to_owned());
            pool.threads.push(builder.spawn(move || shared.run(serve))?);
            Ok(())
        });
        let restored = mask.thread_set_mask().map_err(|errno| failed(errno.into()));
        started.map_err(failed).and(restored).map(|()| pool)
    }

    /// Adds a job.
    pub(super) fn push(&self, job: J) {
        lock(&self.shared.list).jobs.push_back(job);
        self.shared.changed.notify_one();
    }
}

impl<J> Shared<J> {
    fn run(&self, serve: impl Fn(J)) {
        while let Some(job) = self.next() {
            serve(job);
        }
    }

    /// The next job; `None` when the pool is closed and nothing is left.
    fn next(&self) -> Option<J> {
        let mut list = lock(&self.list);
        loop {
            if let Some(job) = list.jobs.pop_front() {
                return Some(job);
            }
            if list.closed {
                return None;
            }
            list = wait(&self.changed, list);
        }
    }
}

impl<J> Drop for Pool<J> {
    /// Serves what is left, then ends the threads.
    fn drop(&mut self) {
        lock(&self.shared.list).closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A worker that has panicked has said so.
            let _ = thread.join();
        }
    }
}
