//! Who hands all chunks to the child: those that nobody writes to, which it copies, and the copies of the others. Of what
//! it can write itself it only tells.

use std::io;
use std::mem;
use std::sync::atomic::Ordering::Acquire;

use super::Shared;
use super::kept::KeptCopy;
use super::order::{Copied, Order};
use super::slots::Sender;
use super::straight::Straight;
use crate::tag::{ChunkTagger, Tagging};

/// What a copier is to do.
pub(in super::super) struct Task {
    pub(in super::super) order: Order,
    pub(in super::super) tagging: Tagging,
    /// Its own way to the memory file, if it has one.
    pub(in super::super) straight: Option<Straight>,
}

struct Copier<'a> {
    shared: &'a Shared,
    child: Sender<'a>,
    straight: Option<Straight>,
    tagger: ChunkTagger,
    copied: Copied,
}

/// Why it ends early.
enum End {
    /// Nobody takes chunks any more.
    Hopeless,
    /// It could not write.
    Trouble(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Trouble(error)
    }
}

impl Shared {
    /// The copier's work, once the guest runs again.
    pub(super) fn copy_all(&self, task: Task) {
        let Task { order, tagging, straight } = task;
        self.begun.wait();
        let (tagger, copied) = (ChunkTagger::new(tagging), Copied::default());
        let mut copier = Copier { shared: self, child: self.slots.sender(), straight, tagger, copied };
        if let Err(End::Trouble(error)) = copier.copy_all(&order) {
            copier.child.hand_trouble(&error);
        }
    }
}

impl Copier<'_> {
    fn copy_all(&mut self, order: &Order) -> Result<(), End> {
        let (shared, mut aside) = (self.shared, self.shared.aside.steps());
        for (nth, number) in order.chunks.iter().enumerate() {
            while !shared.chunks[*number].is_taken() {
                if shared.over.load(Acquire) {
                    return Err(End::Hopeless);
                }
                aside.step();
                // The guest may wait for the memory that a kept copy is in.
                match shared.kept.next() {
                    Some(kept) => self.hand_kept(kept)?,
                    None => self.hand(*number, nth < order.habits)?,
                }
            }
        }
        mem::take(&mut self.copied).finish().iter().for_each(|memory| shared.unprotect(memory));
        // All others are taken, and kept or about to be.
        while self.child.handed() < shared.chunks.len() {
            let kept = shared.kept.await_next(|| shared.is_hopeless()).ok_or(End::Hopeless)?;
            self.hand_kept(kept)?;
        }
        Ok(())
    }

    /// Hands over a chunk, unless somebody else takes it meanwhile.
    fn hand(&mut self, number: usize, is_habit: bool) -> Result<(), End> {
        let (shared, chunk) = (self.shared, &self.shared.chunks[number]);
        let present = shared.present();
        if present.of(&chunk.host).next().is_none() {
            // Nobody waits for it either.
            if chunk.take() {
                self.child.hand_zero(number);
            }
            return Ok(());
        }
        self.look()?;
        if let Some(straight) = &self.straight {
            // What somebody else has taken need not be written to its end.
            let pieces = chunk.pieces(present).take_while(|_| !chunk.is_taken());
            let held = straight.write(chunk, pieces, &mut self.tagger)?;
            if chunk.take() {
                self.copied.add(&chunk.host, is_habit).for_each(|memory| shared.unprotect(&memory));
                self.child.hand_written(number, held);
            } else {
                // Who has taken it keeps a copy.
                straight.undo(chunk)?;
            }
        } else {
            let mut slot = self.child.slot(|| shared.is_hopeless()).ok_or(End::Hopeless)?;
            let held = chunk.copy_tagging(present, slot.content(), &mut self.tagger);
            if chunk.take() {
                self.copied.add(&chunk.host, is_habit).for_each(|memory| shared.unprotect(&memory));
                slot.hand(number, held);
            }
        }
        Ok(())
    }

    /// Looks, before each chunk, whether it is still wanted, and whether there is room to write it here.
    fn look(&mut self) -> Result<(), End> {
        let shared = self.shared;
        if shared.is_hopeless() {
            return Err(End::Hopeless);
        }
        self.straight.take_if(|straight| !straight.may_take_one(&*shared.room));
        Ok(())
    }

    /// Hands over a copy of what somebody else has taken.
    fn hand_kept(&mut self, kept: KeptCopy) -> Result<(), End> {
        let (shared, number) = (self.shared, kept.chunk);
        let chunk = &shared.chunks[number];
        self.look()?;
        if let Some(straight) = &self.straight {
            let held = straight.write(chunk, chunk.pieces_of(shared.kept.memory(&kept)), &mut self.tagger);
            shared.kept.give_back(kept);
            self.child.hand_written(number, held?);
            return Ok(());
        }
        let mut slot = self.child.slot(|| shared.is_hopeless()).ok_or(End::Hopeless)?;
        let held = chunk.copy_again(shared.kept.content(&kept), slot.content(), &mut self.tagger);
        // The guest may wait for that.
        shared.kept.give_back(kept);
        slot.hand(number, held);
        Ok(())
    }
}
