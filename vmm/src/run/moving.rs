//! When a restored guest's RAM is moved from the image's file into memory of its own, so that its checkpoints cost it less:
//! what it has changed, soon; and all of it, once it has had a checkpoint or is to have one regularly. Until then it
//! shares the rest with its clones.

use std::time::{Duration, Instant};

use super::main_loop::Life;
use crate::{
    error::Result,
    host::memory,
    machine::{
        Machine,
        moving::{AT_ONCE, Moving, Wanted},
    },
};

/// A guest that has just begun to run is left alone for so long.
const AFTER_START: Duration = Duration::from_millis(250);
/// Between two moments for which the guest stands still.
const PAUSE_EVERY: Duration = Duration::from_millis(5);
/// While a checkpoint is made or the guest stands still for another reason, it is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How often somebody looks for what the guest has changed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// It takes one part in so many of the memory that is left, then asks again how much is,
const SPARE: u64 = 4;
/// and stops while that is less: bytes.
const RESERVE: u64 = 256 << 20;

/// A move that is under way.
#[derive(Debug)]
pub(super) struct Move {
    moving: Moving,
    wanted: Wanted,
    /// Bytes that it may take.
    room: u64,
    /// When it goes on.
    pub(super) next: Instant,
}

impl Life<'_> {
    /// Begins to move, if there is something to move.
    pub(super) fn begin_moving(&mut self) {
        let ram = self.machine.ram();
        if ram.mapped().is_empty() {
            return;
        }
        match Moving::new(ram) {
            Ok(moving) => {
                let wanted = if self.due.is_some() { Wanted::All } else { Wanted::Changed };
                self.moving = Some(Move { moving, wanted, room: 0, next: Instant::now() + AFTER_START });
            }
            Err(error) => tracing::info!(%error, "restored RAM stays in the image's file"),
        }
    }

    /// From now on all of it is moved: more checkpoints will come.
    pub(super) fn move_all(&mut self) {
        self.moving.iter_mut().for_each(|this| (this.wanted, this.next) = (Wanted::All, Instant::now()));
    }

    /// Moves some of it.
    pub(super) fn move_some(&mut self) -> Result<()> {
        let Some(mut this) = self.moving.take() else { return Ok(()) };
        let mut wait = ASK_AGAIN;
        if self.machine.is_running() && !self.session.shared.operations().is_running() {
            self.machine.aside().step();
            match this.some(&mut self.machine) {
                Ok(after) => wait = after,
                Err(error) => {
                    tracing::warn!(%error, "restored RAM stays in the image's file");
                    return self.machine.resume();
                }
            }
        }
        if !self.machine.ram().mapped().is_empty() {
            this.next = Instant::now() + wait;
            self.moving = Some(this);
            return Ok(());
        }
        self.session.finisher.let_go(self.machine.release_layers());
        if let Err(error) = self.machine.collapse_huge_pages() {
            // Of other pages, which were split while a forked writer had them too.
            tracing::warn!(%error, "the next pause may be longer");
        }
        Ok(())
    }
}

impl Move {
    /// How long to wait afterwards.
    fn some(&mut self, machine: &mut Machine) -> Result<Duration> {
        if self.room < AT_ONCE {
            let free = memory::free().map_or(u64::MAX, |free| free.bytes);
            self.room = if free < RESERVE { 0 } else { free / SPARE };
        }
        self.room = self.room.saturating_sub(AT_ONCE);
        if self.room == 0 {
            return Ok(LOOK_EVERY);
        }
        let more = machine.move_ram(&mut self.moving, self.wanted)?;
        Ok(if more || self.wanted == Wanted::All { PAUSE_EVERY } else { LOOK_EVERY })
    }
}
