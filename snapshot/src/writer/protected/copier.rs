//! Who hands all chunks to the child: those that nobody writes to, which it copies, and the copies of the others.

use std::sync::atomic::Ordering::Acquire;

use super::Shared;
use super::kept::KeptCopy;
use super::order::{Copied, Order};
use super::slots::FreeSlot;
use crate::tag::ChunkTagger;

impl Shared {
    /// The copier's work, once the guest runs again.
    pub(super) fn copy_all(&self, order: &Order) {
        self.begun.wait();
        let (mut aside, mut copied, mut child) = (self.aside.steps(), Copied::default(), self.slots.sender());
        let mut tagger = ChunkTagger::new(self.tagging);
        for (nth, number) in order.chunks.iter().enumerate() {
            if self.over.load(Acquire) {
                return;
            }
            let chunk = &self.chunks[*number];
            while !chunk.is_taken() {
                if self.present().of(&chunk.host).next().is_none() {
                    // Nobody waits for it either.
                    if chunk.take() {
                        child.hand_zero(*number);
                    }
                    break;
                }
                let Some(mut slot) = child.slot(|| self.is_hopeless()) else { return };
                aside.step();
                // The guest may wait for the memory that a kept copy is in.
                if let Some(kept) = self.kept.next() {
                    self.hand_over(kept, slot, &mut tagger);
                    continue;
                }
                let held = chunk.copy_tagging(self.present(), slot.content(), &mut tagger);
                if chunk.take() {
                    copied.add(&chunk.host, nth < order.habits).for_each(|memory| self.unprotect(&memory));
                    slot.hand(*number, held);
                }
            }
        }
        copied.finish().iter().for_each(|memory| self.unprotect(memory));
        // All others are taken, and kept or about to be.
        while child.handed() < self.chunks.len() {
            let Some(kept) = self.kept.await_next(|| self.is_hopeless()) else { return };
            let Some(slot) = child.slot(|| self.is_hopeless()) else { return };
            self.hand_over(kept, slot, &mut tagger);
        }
    }

    fn hand_over(&self, kept: KeptCopy, mut slot: FreeSlot<'_, '_>, tagger: &mut ChunkTagger) {
        let (number, chunk) = (kept.chunk, &self.chunks[kept.chunk]);
        let held = chunk.copy_again(self.kept.content(&kept), slot.content(), tagger);
        // The guest may wait for that.
        self.kept.give_back(kept);
        slot.hand(number, held);
    }
}
