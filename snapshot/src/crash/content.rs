//! The bytes of one file, and what of them may survive.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::outcomes::Random;

/// Units in which a disk, or a page cache, writes.
const UNITS: [u64; 2] = [512, 4096];

/// A change of a file's data or length.
#[derive(Debug, Clone)]
pub(super) enum DataChange {
    Write { offset: u64, bytes: Arc<[u8]> },
    SetLength(u64),
}

/// What survives of what was written to each file since it was made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    Nothing,
    All,
    /// The length without the data, as where blocks are allocated late.
    Lengths,
    /// What came first, up to somewhere within a write.
    Torn(u64),
    /// Any parts of it, and any length.
    Mixed(u64),
}

/// A file's length and its data; all else reads as zeros.
#[derive(Debug, Clone, Default, Hash)]
pub(super) struct Content {
    pub(super) bytes: u64,
    /// In the order in which they were written: later ones cover earlier ones.
    pub(super) pieces: Vec<Piece>,
}

/// A part of a write.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) offset: u64,
    source: Arc<[u8]>,
    range: Range<usize>,
}

impl Piece {
    pub(super) fn data(&self) -> &[u8] {
        &self.source[self.range.clone()]
    }
}

/// By the write that it comes from, which is much faster than by its bytes.
impl Hash for Piece {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.offset, self.source.as_ptr() as usize, self.range.clone()).hash(state);
    }
}

impl Content {
    pub(super) fn apply(&mut self, change: &DataChange) {
        match change {
            DataChange::Write { offset, bytes } => self.write(*offset, bytes, 0..bytes.len()),
            DataChange::SetLength(bytes) => self.set_length(*bytes),
        }
    }

    /// What is left of this, durable, and `since`, not durable, of the file `id`.
    pub(super) fn after_power_loss(&self, since: &[DataChange], data: Data, id: usize) -> Content {
        let mut left = self.clone();
        let mut whole = self.clone();
        since.iter().for_each(|change| whole.apply(change));
        match data {
            Data::Nothing => {}
            Data::All => return whole,
            Data::Lengths => left.set_length(whole.bytes),
            Data::Torn(seed) => left.tear(since, &mut Random::new(seed).fork(id as u64)),
            Data::Mixed(seed) => {
                let random = &mut Random::new(seed).fork(id as u64);
                since.iter().for_each(|change| left.mix(change, random));
                let lengths = [self.bytes, left.bytes, whole.bytes];
                left.set_length(lengths[random.below(3) as usize]);
            }
        }
        left
    }

    fn tear(&mut self, since: &[DataChange], random: &mut Random) {
        let whole = random.below(since.len() as u64 + 1) as usize;
        since[..whole].iter().for_each(|change| self.apply(change));
        if let Some(DataChange::Write { offset, bytes }) = since.get(whole) {
            let end = boundary(*offset, random.below(bytes.len() as u64 + 1), random);
            self.write(*offset, bytes, 0..end.min(bytes.len()));
        }
    }

    /// Runs of it, each there or not.
    fn mix(&mut self, change: &DataChange, random: &mut Random) {
        match change {
            DataChange::SetLength(bytes) if random.coin() => self.set_length(*bytes),
            DataChange::SetLength(_) => {}
            DataChange::Write { offset, bytes } => {
                let mut at = 0;
                while at < bytes.len() {
                    let farthest = (bytes.len() / 4).max(UNITS[1] as usize) as u64;
                    let end = boundary(*offset, at as u64 + 1 + random.below(farthest), random);
                    let end = if end <= at { bytes.len() } else { end.min(bytes.len()) };
                    if random.coin() {
                        self.write(*offset, bytes, at..end);
                    }
                    at = end;
                }
            }
        }
    }

    fn write(&mut self, offset: u64, source: &Arc<[u8]>, range: Range<usize>) {
        if !range.is_empty() {
            self.bytes = self.bytes.max(offset + range.end as u64);
            let offset = offset + range.start as u64;
            self.pieces.push(Piece { offset, source: Arc::clone(source), range });
        }
    }

    fn set_length(&mut self, bytes: u64) {
        self.bytes = bytes;
        // What was cut off does not come back when the file grows again.
        self.pieces.retain_mut(|piece| {
            let left = bytes.saturating_sub(piece.offset).min(piece.range.len() as u64) as usize;
            piece.range.end = piece.range.start + left;
            left > 0
        });
    }
}

/// Where a write at `offset` may break near its byte `at`.
fn boundary(offset: u64, at: u64, random: &mut Random) -> usize {
    let unit = UNITS[random.below(2) as usize];
    ((offset + at) / unit * unit).saturating_sub(offset) as usize
}
