//! How many requests a device's own threads hold, and a way to wait until there are none.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::sync::{lock, wait};

/// A count of requests, shared by a device and its threads.
#[derive(Clone, Default)]
pub struct InFlight(Arc<Shared>);

#[derive(Default)]
struct Shared {
    count: Mutex<usize>,
    idle: Condvar,
}

/// One request in flight, until it is dropped: by its completion, or by a panic on the way to it.
pub(crate) struct Ticket(Arc<Shared>);

impl InFlight {
    /// Counts one more.
    pub(crate) fn ticket(&self) -> Ticket {
        *lock(&self.0.count) += 1;
        Ticket(self.0.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        *lock(&self.0.count)
    }

    /// Waits until there are none.
    pub fn wait(&self) {
        let mut count = lock(&self.0.count);
        while *count > 0 {
            count = wait(&self.0.idle, count);
        }
    }

    /// Waits until there are none, but not longer than `limit`. Returns whether there are none.
    pub fn wait_for(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut count = lock(&self.0.count);
        while *count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            count = match self.0.idle.wait_timeout(count, left) {
                Ok((count, _)) => count,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut count = lock(&self.0.count);
        *count -= 1;
        if *count == 0 {
            self.0.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_last_ticket() {
        let in_flight = InFlight::default();
        in_flight.wait();
        let (first, second) = (in_flight.ticket(), in_flight.ticket());
        assert_eq!(in_flight.count(), 2);
        assert!(!in_flight.wait_for(Duration::from_millis(1)));
        let waiter = std::thread::spawn({
            let in_flight = in_flight.clone();
            move || in_flight.wait_for(Duration::from_secs(60))
        });
        drop(first);
        drop(second);
        assert!(waiter.join().unwrap());
        assert_eq!(in_flight.count(), 0);
    }

    #[test]
    fn a_panic_gives_its_ticket_back() {
        let in_flight = InFlight::default();
        let ticket = in_flight.ticket();
        let panicked = std::thread::spawn(move || {
            let _ticket = ticket;
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(panicked.join().is_err());
        assert!(in_flight.wait_for(Duration::ZERO));
    }
}
