//! Decoders of untrusted bytes allocate in proportion to the bytes, never to the numbers in them.
#![allow(unsafe_code, reason = "an allocator is unsafe to implement")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ckvmm_snapshot::{ChunkMap, Manifest, StateMap};

/// The system's allocator, counting for each thread what is in use and the most that ever was.
struct Counting;

thread_local! {
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let now = IN_USE.get() + bytes;
    IN_USE.set(now);
    MOST.set(MOST.get().max(now));
}

// SAFETY: every call goes to the system's allocator as it is; counting touches only thread-local cells, which neither
// allocate nor unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: `pointer` is from `System`, as all of this allocator's are.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` has in use at one time beyond what was before, bytes.
fn most<T>(work: impl FnOnce() -> T) -> usize {
    let before = IN_USE.get();
    MOST.set(before);
    let result = work();
    let most = (MOST.get() - before) as usize;
    drop(result);
    most
}

const SLACK: usize = 4096;

#[test]
fn lengths_that_lie_cost_nothing() {
    let store = tempfile::tempdir().expect("directory");
    let path = common::checkpoint(&store.path().join("a")).expect("commits");
    for name in ["state", "memory.map", "disks/root.map"] {
        let whole = std::fs::read(path.join(name)).expect("read");
        for at in 0..whole.len() {
            for width in [1, 2, 4, 8] {
                let mut bytes = whole.clone();
                bytes[at..].iter_mut().take(width).for_each(|byte| *byte = 0xff);
                let state = most(|| StateMap::decode(&bytes));
                let map = most(|| ChunkMap::decode(&bytes));
                let limit = 8 * bytes.len() + SLACK;
                assert!(state < limit && map < limit, "{width} bytes at {at} of {name}: {state}, {map}");
            }
        }
    }
}

#[test]
fn contents_that_lie_cost_nothing() {
    let mut map = StateMap::new();
    map.put("counter/0", &common::counter()).expect("new");
    let whole = map.encode();
    for at in 0..whole.len() {
        // The MessagePack markers of the longest strings, binaries, arrays and maps, and lengths of 4 GiB.
        for marker in [0xc6, 0xdb, 0xdd, 0xdf, 0xc9] {
            let mut bytes = whole.clone();
            bytes[at] = marker;
            bytes[at + 1..].iter_mut().take(4).for_each(|byte| *byte = 0xff);
            let Ok(mut map) = StateMap::decode(&bytes) else { continue };
            let used = most(|| map.take::<common::Counter>("counter/0"));
            assert!(used < 8 * bytes.len() + SLACK, "{marker:#x} at {at}: {used}");
        }
    }
}

#[test]
fn the_densest_inputs_cost_a_small_multiple() {
    let mut state = StateMap::new();
    for index in 0..ckvmm_snapshot::limits::STATE_ENTRIES_MAX {
        state.put(&index.to_string(), &common::Counter { count: 0, buffer: Vec::new() }).expect("room");
    }
    let bytes = state.encode();
    let used = most(|| StateMap::decode(&bytes).expect("decodes"));
    assert!(used < 8 * bytes.len(), "{used} for {}", bytes.len());

    // Not sealed, so nothing of it is kept, however much it would become.
    let bytes = format!("{{\"format_version\": 1, \"config\": [{}0]}}", "0,".repeat(1 << 20));
    let used = most(|| Manifest::decode(bytes.as_bytes()).expect_err("not sealed"));
    assert!(used < SLACK, "{used} for {}", bytes.len());
}
