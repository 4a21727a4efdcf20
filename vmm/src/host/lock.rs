//! Locks by flock(2): who holds one has something for himself until his process ends, however it ends.
//!
//! Invariant: a process that is killed lets go of its locks only when all of its memory is gone. So a lock that is held
//! is waited for, a moment, before it is said to be held; the kernel wakes who waits.

use std::{
    fs::{File, TryLockError},
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

/// How long somebody who holds a lock may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes the lock of `file`, which it keeps until it is closed; `false` if somebody else holds it and does not let go.
///
/// # Errors
/// The file system has no locks, or the system no thread.
pub fn take(file: &File) -> io::Result<bool> {
    take_within(file, PATIENCE)
}

fn take_within(file: &File, patience: Duration) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => return Ok(true),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let (done, taken) = mpsc::channel();
    // The lock belongs to what both descriptors are of. If it comes too late it goes again with the last of them.
    let same = file.try_clone()?;
    let wait = move || {
        let taken = same.lock();
        // Before anybody knows: who closes `file` then has let go of the lock.
        drop(same);
        drop(done.send(taken));
    };
    thread::Builder::new().name("lock".into()).spawn(wait)?;
    match taken.recv_timeout(patience) {
        Ok(taken) => taken.map(|()| true),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_let_go_is_had_and_one_that_is_kept_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let open = || File::options().create(true).append(true).open(dir.path().join("lock")).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert!(take(&first).unwrap());
        assert!(!take_within(&second, Duration::from_millis(1)).unwrap(), "it is kept");
        // The one who waits in vain must not have it when it comes.
        drop(second);
        let waits = thread::spawn(move || (take_within(&third, Duration::from_secs(60)).unwrap(), third));
        drop(first);
        assert!(waits.join().unwrap().0, "it was let go");
    }
}
