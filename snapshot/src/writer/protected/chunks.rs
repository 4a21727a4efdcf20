//! Guest RAM in chunks, and where they are in this process's memory.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::memory::PlannedChunk;

/// A chunk.
pub(super) struct Chunk {
    pub(super) host: Range<usize>,
    pub(super) guest_address: u64,
    /// Somebody copies it, or has.
    pub(super) taken: AtomicBool,
}

/// A region of guest RAM.
pub(super) struct Area {
    pub(super) host: Range<usize>,
    /// The number of its first chunk.
    pub(super) first: usize,
}

/// The chunks of `memory`, which are `planned`, by number; and its regions.
pub(super) fn of(memory: &GuestMemoryMmap, planned: &[PlannedChunk]) -> io::Result<(Vec<Chunk>, Vec<Area>)> {
    let chunks = planned.iter().map(|planned| Chunk::new(memory, planned)).collect::<io::Result<Vec<_>>>()?;
    let mut areas: Vec<(usize, Area)> = Vec::new();
    for (number, (chunk, planned)) in chunks.iter().zip(planned).enumerate() {
        match areas.last_mut() {
            Some((region, area)) if *region == planned.region => area.host.end = chunk.host.end,
            _ => areas.push((planned.region, Area { host: chunk.host.clone(), first: number })),
        }
    }
    Ok((chunks, areas.into_iter().map(|(_, area)| area).collect()))
}

impl Chunk {
    fn new(memory: &GuestMemoryMmap, planned: &PlannedChunk) -> io::Result<Chunk> {
        let slice = memory.get_slice(GuestAddress(planned.guest_address), planned.guest_bytes as usize);
        let start = slice.map_err(io::Error::other)?.ptr_guard().as_ptr() as usize;
        Ok(Chunk {
            host: start..start + planned.guest_bytes as usize,
            guest_address: planned.guest_address,
            taken: AtomicBool::new(false),
        })
    }
}

impl Area {
    pub(super) fn advise(&self, advice: libc::c_int) {
        // SAFETY: the area is mapped as long as RAM is; what a child sees of it changes nothing here.
        unsafe { libc::madvise(self.host.start as *mut libc::c_void, self.host.len(), advice) };
    }
}
