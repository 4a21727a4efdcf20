//! What a VM lends to a writer that protects its RAM.

use std::any::Any;
use std::sync::{Arc, Mutex};

use vm_memory::GuestMemoryMmap;

/// Guest RAM to be protected; all of it is anonymous memory.
#[derive(Clone)]
pub struct Lent {
    /// The RAM.
    pub memory: GuestMemoryMmap,
    /// It stays mapped as long as this lives.
    pub mapping: Arc<dyn Any + Send + Sync>,
    /// What the guest is known to do with it.
    pub habits: Arc<Habits>,
    /// What copies may take.
    pub copies: Copies,
}

/// Memory for copies of RAM.
#[derive(Clone)]
pub struct Copies {
    /// So many bytes at most.
    pub most_bytes: u64,
    /// So many bytes of it at most are made ready before the cut, which waits for that: what is not makes the guest wait
    /// after it, a little longer for each copy.
    pub ready_bytes: u64,
    /// For how many more bytes there is room, be they copies or of a file that is in memory: where there is none the guest
    /// waits until the child has written some. In doubt an out-of-memory killer would take the VM, whose memory it is.
    pub room: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// What a guest wrote to while its RAM was last written, or just before. It will write there again.
#[derive(Debug, Default)]
pub struct Habits(Mutex<Vec<usize>>);

impl Habits {
    /// The chunks, in the order in which they were written to.
    pub(in super::super) fn chunks(&self) -> Vec<usize> {
        self.0.lock().map_or_else(|_| Vec::new(), |chunks| chunks.clone())
    }

    /// From now on these.
    pub(super) fn are(&self, chunks: Vec<usize>) {
        self.0.lock().iter_mut().for_each(|known| known.clone_from(&chunks));
    }
}
