//! What mode `auto` is: who writes the guest's RAM, decided from what is known. Pure.
//!
//! RAM that is protected costs the guest least, and takes no more memory than there is. Where it cannot be, a forked child
//! costs the guest a copy of page tables, and memory: the guest's writes are copied until the child has written what was
//! there. If there is not that much, somebody is killed for it, most likely the child, and the checkpoint is lost; a guest
//! that stands still for a while has lost less.

use super::history::{History, Work};
use crate::{checkpoint::Writer, cli::output::bytes, config::CheckpointMode, host::memory::Free};

/// The guest's changes between two checkpoints count so many times: pages that it changed and changed back, and what was
/// quicker than usual.
const MARGIN: u64 = 2;
/// Page tables are a 512th of what they map.
const PAGES_IN_A_TABLE: u64 = 512;
/// What the child itself needs, and what others must find until it is done.
const RESERVE: u64 = 32 << 20;

/// What is known when a checkpoint begins.
#[derive(Debug)]
pub(super) struct Known<'a> {
    /// The VM ends with it.
    pub(super) stop: bool,
    /// Bytes of RAM that the guest has.
    pub(super) resident: u64,
    /// Memory that is left, if that can be known.
    pub(super) free: Option<Free>,
    pub(super) history: &'a History,
}

/// Who writes.
pub(super) fn writer(mode: CheckpointMode, known: &Known<'_>) -> Writer {
    match mode {
        CheckpointMode::Stop => Writer::Stop,
        CheckpointMode::Fork => Writer::Fork,
        CheckpointMode::Protect => Writer::Protect,
        // A guest that will not run again needs no child.
        CheckpointMode::Auto if known.stop => Writer::Stop,
        // What is not known is tried: a fork that is refused costs nothing.
        CheckpointMode::Auto => {
            let free = known.free.as_ref().filter(|free| free.bytes < needed(known));
            Writer::Auto { no_fork: free.map(|free| because(free, known)) }
        }
    }
}

/// Bytes that a forked child may cost. At worst that is all that the guest has; but a guest seldom writes to all of it in the
/// seconds that a child takes, and what it changed lately says what it writes to.
fn needed(known: &Known<'_>) -> u64 {
    copied(known) + known.resident / PAGES_IN_A_TABLE + RESERVE
}

fn copied(&Known { resident, history, .. }: &Known<'_>) -> u64 {
    let writing = history.time_for(Work { resident, ram: resident, disks: 0 });
    let changes = history.changes_in(writing, resident);
    changes.map_or(resident, |changes| changes.saturating_mul(MARGIN).min(resident))
}

fn because(free: &Free, known: &Known<'_>) -> String {
    format!(
        "checkpoint: {} has {} of memory left, and the guest may write to {} of its RAM meanwhile: it stands still until \
         that is written; free memory, or use mode \"fork\" all the same",
        free.whose,
        bytes(free.bytes),
        bytes(copied(known))
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn lately(changed: u64) -> History {
        let (mut history, start) = (History::default(), Instant::now());
        for (after, ram, incremental) in [(0, 2 * GIB, false), (60, changed, true)] {
            history.begin(start + Duration::from_secs(after), Work { resident: 2 * GIB, ram, disks: 0 });
            history.made(ram, incremental, Duration::from_secs(4));
        }
        history
    }

    #[test]
    fn who_writes() {
        use CheckpointMode::{Auto, Fork, Protect, Stop};
        let (nothing, little, much) = (History::default(), lately(50 * MIB), lately(1500 * MIB));
        let free = |bytes| Some(Free { bytes, whose: "this host".into() });
        for (mode, stop, wanted) in [
            // what was asked for, whatever is known
            (Stop, false, Writer::Stop),
            (Fork, false, Writer::Fork),
            (Fork, true, Writer::Fork),
            (Protect, true, Writer::Protect),
            // nobody waits for the guest
            (Auto, true, Writer::Stop),
        ] {
            let known = Known { stop, resident: 2 * GIB, free: free(MIB), history: &nothing };
            assert_eq!(writer(mode, &known), wanted, "{mode:?}, {known:?}");
        }
        for (resident, free, history, may_fork) in [
            // the common case: the worst fits
            (2 * GIB, free(3 * GIB), &nothing, true),
            (2 * GIB, free(3 * GIB), &much, true),
            (2 * GIB, None, &nothing, true),
            // it does not, and nothing says that it will not come
            (2 * GIB, free(2 * GIB), &nothing, false),
            (2 * GIB, free(2 * GIB), &much, false),
            // a guest that changes little
            (2 * GIB, free(GIB), &little, true),
            (2 * GIB, free(100 * MIB), &little, false),
            (16 * MIB, free(49 * MIB), &nothing, true),
            (16 * MIB, free(47 * MIB), &nothing, false),
        ] {
            let known = Known { stop: false, resident, free, history };
            let chosen = writer(Auto, &known);
            assert!(
                matches!(&chosen, Writer::Auto { no_fork } if no_fork.is_none() == may_fork),
                "{chosen:?}, {known:?}"
            );
        }
    }

    #[test]
    fn the_reason_is_one_line_with_figures() {
        let history = lately(200 * MIB);
        let free = Free { bytes: 100 * MIB, whose: "the control group /sys/fs/cgroup/vm".into() };
        let known = Known { stop: false, resident: 2 * GIB, free: Some(free), history: &history };
        let Writer::Auto { no_fork: Some(why) } = writer(CheckpointMode::Auto, &known) else { panic!("there is room") };
        assert!(why.starts_with("checkpoint: the control group /sys/fs/cgroup/vm has 100"), "{why}");
        assert!(why.contains(" 400") && !why.contains('\n'), "{why}");
    }
}
