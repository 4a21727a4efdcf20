//! A host that is itself a guest, and gives memory that was freed back to its hypervisor (free page reporting: virtio 1.2,
//! 5.5.6.7).
//!
//! For seconds after a large file or process is gone its CPUs stand still for up to tens of milliseconds, whatever runs
//! there; and memory that is used for the first time afterwards has to be had from the hypervisor again, at twenty times the
//! price of what is there. Both would be counted as a checkpoint's. So nothing is given back during a run, and what a run
//! needs is had before.

use std::fs;

use crate::memory;

/// The least block of memory that is reported, as a power of two of pages. Free memory has none as large as [`NEVER`].
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
const NEVER: &str = "11";
/// Bytes that are left to others, and that a short run needs.
const OTHERS: u64 = 1 << 30;
const SHORT: u64 = 3 << 30;
const PIECE: u64 = 64 << 20;

/// Commands that undo what [`settle`] does.
pub(crate) fn undo() -> String {
    let order = fs::read_to_string(ORDER).unwrap_or_default();
    let order = order.trim();
    if order.is_empty() { String::new() } else { format!("echo {order} 2>/dev/null >{ORDER}") }
}

/// Sees that memory is there and stays, if this host gives any back. Says so.
pub(crate) fn settle(quick: bool) {
    if !fs::exists(ORDER).unwrap_or_default() {
        return;
    }
    if let Err(error) = fs::write(ORDER, NEVER) {
        println!("This machine gives freed memory to its hypervisor, which stops it for moments; {ORDER}: {error}");
        return;
    }
    let bytes = memory::available().saturating_sub(OTHERS).min(if quick { SHORT } else { u64::MAX });
    println!("Free page reporting is off during the run, and {} MiB of memory are used once.", bytes >> 20);
    let pieces: Vec<Vec<u8>> = (0..bytes / PIECE).map(|_| vec![1; PIECE as usize]).collect();
    assert!(pieces.iter().all(|piece| piece[0] == 1), "so that nobody leaves it out");
}
