//! Which file holds which page of a large file, when an image stores only what has changed since another image.
//!
//! ```text
//! memory         layer 0: what this checkpoint wrote itself
//! memory.UUID    layers 1…: what the checkpoint UUID wrote; a hard link, so that the image needs no other directory
//! memory.layers  this table: a layer for each chunk, or for each page of a chunk
//! ```
//!
//! Every layer is as long as the whole file, and a page lies at the same place in each, whether it is data there or a
//! hole. A file whose pages are all in layer 0 has no table.
//!
//! Invariants: every layer that is listed holds a page; the table names a layer that is listed.

use std::ops::Range;

use uuid::Uuid;

use crate::chunk_map::chunk_count;
use crate::error::{Flaw, Versions};
use crate::limits::{CHUNK_BYTES, IMAGE_FILE_BYTES_MAX, LAYERS_MAX, PAGE_BYTES};
use crate::wire::Reader;

/// Pages in a chunk.
pub(crate) const PAGES: usize = (CHUNK_BYTES / PAGE_BYTES) as usize;

const MAGIC: &[u8; 8] = b"CKVMMLYR";
const LAYERS_FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: u64 = 40;
/// In place of a layer's number: the chunk's pages are of several.
const MIXED: u8 = u8::MAX;
const _: () = assert!(LAYERS_MAX < MIXED as usize);

/// Some of the pages of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PageSet([u64; PAGES / 64]);

impl PageSet {
    pub(crate) const BYTES: usize = PAGES / 8;

    pub(crate) fn insert(&mut self, page: usize) {
        self.0[page / 64] |= 1 << (page % 64);
    }

    pub(crate) fn contains(&self, page: usize) -> bool {
        self.0[page / 64] >> (page % 64) & 1 != 0
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    pub(crate) fn to_bytes(self) -> [u8; PageSet::BYTES] {
        let mut bytes = [0; PageSet::BYTES];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(self.0) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; PageSet::BYTES]) -> PageSet {
        let mut set = PageSet::default();
        for (word, bytes) in set.0.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        set
    }
}

/// What of a chunk is an image's own, and not as in the image that it builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// All of it.
    All,
    /// Nothing.
    Nothing,
    /// These pages.
    Pages(PageSet),
}

/// Who holds the pages of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    One(u8),
    Mixed(Box<[u8; PAGES]>),
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Layers {
    /// The checkpoints that wrote the layers from 1 on.
    ids: Vec<Uuid>,
    /// One for each chunk; none if all is in layer 0.
    chunks: Vec<Holder>,
}

impl Layers {
    /// The table of a file that has one layer.
    pub(crate) fn single() -> Layers {
        Layers::default()
    }

    pub(crate) fn is_single(&self) -> bool {
        self.ids.is_empty()
    }

    /// The checkpoints that wrote the layers from 1 on.
    pub(crate) fn ids(&self) -> &[Uuid] {
        &self.ids
    }

    /// The layer of one page of a chunk.
    fn layer(&self, chunk: usize, page: usize) -> u8 {
        match self.chunks.get(chunk) {
            None => 0,
            Some(Holder::One(layer)) => *layer,
            Some(Holder::Mixed(layers)) => layers[page],
        }
    }

    /// The runs of pages of one layer in `bytes` of the file, which lie in one chunk and begin at a page. Allocates
    /// nothing.
    pub(crate) fn runs(&self, bytes: Range<u64>) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        let chunk = (bytes.start / CHUNK_BYTES) as usize;
        let base = chunk as u64 * CHUNK_BYTES;
        let mut at = bytes.start;
        std::iter::from_fn(move || {
            let start = at;
            if start >= bytes.end {
                return None;
            }
            let page_of = |at: u64| ((at - base) / PAGE_BYTES) as usize;
            let layer = self.layer(chunk, page_of(start));
            at = match self.chunks.get(chunk) {
                Some(Holder::Mixed(layers)) => {
                    let first = page_of(start);
                    let pages = layers[first..].iter().take_while(|other| **other == layer).count();
                    (base + (first + pages) as u64 * PAGE_BYTES).min(bytes.end)
                }
                _ => bytes.end,
            };
            Some((usize::from(layer), start..at))
        })
    }

    /// True if `layer` holds a page of the chunk.
    pub(crate) fn holds(&self, chunk: usize, layer: u8) -> bool {
        match self.chunks.get(chunk) {
            None => layer == 0,
            Some(Holder::One(holder)) => *holder == layer,
            Some(Holder::Mixed(layers)) => layers.contains(&layer),
        }
    }

    /// True if `layer` holds this page of the chunk.
    pub(crate) fn holds_page(&self, chunk: usize, page: usize, layer: u8) -> bool {
        self.layer(chunk, page) == layer
    }

    /// The layer to be written anew so that there is room for one more: the one with the fewest pages, if there is none.
    pub(crate) fn to_fold(&self, chunks: usize) -> Option<u8> {
        if self.ids.len() < LAYERS_MAX {
            return None;
        }
        let mut pages = vec![0_u64; self.ids.len() + 1];
        for chunk in 0..chunks {
            match self.chunks.get(chunk) {
                None => pages[0] += PAGES as u64,
                Some(Holder::One(layer)) => pages[usize::from(*layer)] += PAGES as u64,
                Some(Holder::Mixed(layers)) => layers.iter().for_each(|layer| pages[usize::from(*layer)] += 1),
            }
        }
        let fewest = (0..pages.len()).min_by_key(|layer| pages[*layer])?;
        u8::try_from(fewest).ok()
    }

    /// The bytes of the table's file. Equal tables give equal bytes.
    pub(crate) fn encode(&self, file_bytes: u64) -> Vec<u8> {
        let mixed = self.chunks.iter().filter_map(|holder| match holder {
            Holder::Mixed(layers) => Some(layers),
            Holder::One(_) => None,
        });
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&u32::from(LAYERS_FORMAT_VERSION).to_le_bytes());
        out.extend_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&file_bytes.to_le_bytes());
        out.extend_from_slice(&(self.ids.len() as u64).to_le_bytes());
        out.extend_from_slice(&(mixed.clone().count() as u64).to_le_bytes());
        self.ids.iter().for_each(|id| out.extend_from_slice(id.as_bytes()));
        out.extend(self.chunks.iter().map(|holder| match holder {
            Holder::One(layer) => *layer,
            Holder::Mixed(_) => MIXED,
        }));
        mixed.for_each(|layers| out.extend_from_slice(&layers[..]));
        out
    }

    /// Largest file of a table for a file of `file_bytes`.
    pub(crate) fn bytes_max(file_bytes: u64) -> u64 {
        HEADER_BYTES + 16 * LAYERS_MAX as u64 + chunk_count(file_bytes) * (1 + PAGES as u64)
    }

    /// Reads what [`Layers::encode`] wrote for a file of `file_bytes`.
    pub(crate) fn parse(bytes: &[u8], file_bytes: u64) -> Result<Layers, Flaw> {
        let mut reader = Reader::new(bytes);
        reader.header(MAGIC, Versions::only(LAYERS_FORMAT_VERSION), "table of layers")?;
        let (page_bytes, of_bytes, id_count, mixed_count) =
            (reader.u32()?, reader.u64()?, reader.u64()?, reader.u64()?);
        if u64::from(page_bytes) != PAGE_BYTES || of_bytes != file_bytes || file_bytes > IMAGE_FILE_BYTES_MAX {
            return Err(Flaw::broken("its header holds values that do not belong to this file"));
        }
        let count = chunk_count(file_bytes);
        if id_count == 0 || id_count > LAYERS_MAX as u64 || mixed_count > count {
            return Err(Flaw::broken("it states more or fewer layers than there can be"));
        }
        let ids: Vec<Uuid> =
            (0..id_count).map(|_| reader.array().map(Uuid::from_bytes)).collect::<Result<_, Flaw>>()?;
        let kinds = reader.bytes(count as usize)?;
        // Before anything is allocated for them: what is left must be just the pages of the mixed chunks.
        let mixed = kinds.iter().filter(|kind| **kind == MIXED).count();
        if mixed as u64 != mixed_count || reader.left() != mixed * PAGES {
            return Err(Flaw::broken("its chunks are not what its header states"));
        }
        let mut used = vec![false; ids.len() + 1];
        let mut check = |layer: u8| match used.get_mut(usize::from(layer)) {
            Some(used) => {
                *used = true;
                Ok(layer)
            }
            None => Err(Flaw::broken(format!("it names the layer {layer} of {}", ids.len()))),
        };
        let mut chunks = Vec::with_capacity(kinds.len());
        for kind in kinds {
            chunks.push(match *kind {
                MIXED => {
                    let layers = reader.array::<PAGES>()?;
                    layers.iter().try_for_each(|layer| check(*layer).map(drop))?;
                    Holder::Mixed(Box::new(layers))
                }
                layer => Holder::One(check(layer)?),
            });
        }
        reader.end()?;
        if used[1..].contains(&false) {
            return Err(Flaw::broken("it lists a layer that holds nothing"));
        }
        Ok(Layers { ids, chunks })
    }
}

/// Makes the table of an image that builds on another, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Rebase<'a> {
    base: &'a Layers,
    /// The image that is built on: its layer 0 is one of the older ones now.
    base_id: Uuid,
    chunks: Vec<Holder>,
}

impl<'a> Rebase<'a> {
    pub(crate) fn new(base: &'a Layers, base_id: Uuid) -> Self {
        Rebase { base, base_id, chunks: Vec::new() }
    }

    /// Says what of the next chunk is the new image's own.
    pub(crate) fn push(&mut self, changed: &Changed) {
        let chunk = self.chunks.len();
        // The base's layer n is n + 1 here until the end: at most LAYERS_MAX + 1, which a u8 holds.
        let holder = match (changed, self.base.chunks.get(chunk)) {
            (Changed::All, _) => Holder::One(0),
            (Changed::Nothing, None) => Holder::One(1),
            (Changed::Nothing, Some(Holder::One(layer))) => Holder::One(layer + 1),
            (Changed::Nothing, Some(Holder::Mixed(layers))) => Holder::Mixed(Box::new(layers.map(|layer| layer + 1))),
            (Changed::Pages(set), _) => {
                let layer = |page| if set.contains(page) { 0 } else { self.base.layer(chunk, page) + 1 };
                let layers: [u8; PAGES] = std::array::from_fn(layer);
                if layers.iter().all(|layer| *layer == layers[0]) {
                    Holder::One(layers[0])
                } else {
                    Holder::Mixed(Box::new(layers))
                }
            }
        };
        self.chunks.push(holder);
    }

    /// The table, without the layers that hold nothing any more.
    pub(crate) fn finish(self) -> Layers {
        let old_ids = [self.base_id].into_iter().chain(self.base.ids.iter().copied());
        let mut used = vec![false; self.base.ids.len() + 2];
        for holder in &self.chunks {
            match holder {
                Holder::One(layer) => used[usize::from(*layer)] = true,
                Holder::Mixed(layers) => layers.iter().for_each(|layer| used[usize::from(*layer)] = true),
            }
        }
        let mut new_numbers = vec![0_u8; used.len()];
        let mut ids = Vec::new();
        for (old, id) in (1..).zip(old_ids) {
            if used[old] {
                ids.push(id);
                new_numbers[old] = ids.len() as u8;
            }
        }
        if ids.is_empty() {
            return Layers::single();
        }
        let renumber = |layer: u8| new_numbers[usize::from(layer)];
        let chunks = self.chunks.into_iter().map(|holder| match holder {
            Holder::One(layer) => Holder::One(renumber(layer)),
            Holder::Mixed(layers) => Holder::Mixed(Box::new(layers.map(renumber))),
        });
        Layers { ids, chunks: chunks.collect() }
    }
}

#[cfg(test)]
mod tests;
