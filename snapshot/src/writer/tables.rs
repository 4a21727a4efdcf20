//! Page tables for a fork, made ready while the guest still runs.
//!
//! For each huge page a fork takes a page table, against the day on which the page is split, and clears it, which takes
//! long if no cache has it. What was given back last is given out first (the per-CPU lists of the page allocator). So as
//! many are taken and given back just before: buffers of pipes, which come from the same lists and go back to them at once.
//!
//! It is only ever about time: where there are no pipes, or another CPU forks, a fork takes what it takes.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe2, write};

use crate::limits::PAGE_BYTES;

/// More than this no core's own cache holds, and what the shared one saves is soon less than this takes.
const MOST: usize = 1024;
/// As large as anybody may make one (`fs.pipe-max-size`).
const PIPE_BYTES: i32 = 1 << 20;
const MOST_PIPES: usize = MOST * PAGE_BYTES as usize / PIPE_BYTES as usize;
static CONTENT: [u8; 64 << 10] = [0; 64 << 10];

/// Makes ready as many page tables as are worth it, of `tables` that the next fork of this thread takes.
pub(super) fn make_ready(tables: usize) {
    let mut left = tables.min(MOST) * PAGE_BYTES as usize;
    let mut pipes = Vec::with_capacity(MOST_PIPES);
    while left > 0 && pipes.len() < MOST_PIPES {
        let Ok((reader, writer)) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC) else { return };
        // Who may have no more has smaller ones.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        while left > 0 {
            let Ok(written) = write(&writer, &CONTENT[..CONTENT.len().min(left)]) else { break };
            left -= written;
        }
        pipes.push((reader, writer));
    }
}
