//! Removes old checkpoints on a thread of its own: gigabytes take seconds, and nobody waits for that.
//!
//! Invariant: it looks at the store anew each time, so that one request that waits stands for all that come meanwhile.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::config::Id;
use crate::host::terminal::say;
use crate::network::store;

/// The thread.
pub(super) struct Pruner {
    wanted: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl Pruner {
    /// One that keeps the newest `keep` checkpoints of the network `name` in the directory `store`.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(store: PathBuf, name: Id, keep: usize) -> io::Result<Pruner> {
        let (wanted, requests) = sync_channel(1);
        let prune = move || {
            for () in requests {
                if let Err(error) = store::prune(&store, Some(&name), keep) {
                    say(&format!("old checkpoints cannot be removed: {error}"));
                }
            }
        };
        let thread = thread::Builder::new().name("prune".into()).spawn(prune)?;
        Ok(Pruner { wanted, thread })
    }

    /// There may be something to remove.
    pub(super) fn prune(&self) {
        // When one request waits already, that will do.
        let _ = self.wanted.try_send(());
    }

    /// Waits until all is removed that was to be.
    pub(super) fn finish(self) {
        drop(self.wanted);
        // A panic was told.
        let _ = self.thread.join();
    }
}
