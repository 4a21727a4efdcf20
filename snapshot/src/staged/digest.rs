//! The map of a captured disk, and who holds what of it.

use crate::chunk_map::ChunkMap;
use crate::disk::Capture;
use crate::error::Result;
use crate::large::{self, LargeFile, LayeredReader};
use crate::layers::{Changed, Layers, Rebase};
use crate::progress::Progress;
use crate::tag::{Chunk, Tagging};

/// Maps a captured disk, as far as it was captured.
pub(super) fn of(capture: &Capture, progress: &Progress) -> Result<(ChunkMap, Layers)> {
    let own = capture.file();
    let Some((base, image)) = capture.base() else {
        return Ok((large::map(own, capture.bytes(), Tagging::new(), progress)?, Layers::single()));
    };
    let base_id = image.manifest().id;
    let mut changed = capture.changed();
    let rebase = |changed: &[Changed]| {
        let mut rebase = Rebase::new(&base.layers, base_id);
        changed.iter().for_each(|changed| rebase.push(changed));
        rebase.finish()
    };
    let now = LargeFile::over(own, base, base_id, rebase(&changed))?;
    let mut reader = LayeredReader::over(&now, image.path());
    let mut map = ChunkMap::for_file(capture.bytes(), base.map.tagging());
    for ((range, old), changed) in base.map.chunks().zip(&mut changed) {
        let chunk = if *changed == Changed::Nothing { old } else { reader.read(range.clone())? };
        if chunk == Chunk::Zero {
            // It is in no layer.
            *changed = Changed::All;
        }
        map.push(chunk);
        progress.advance(range.end - range.start)?;
    }
    Ok((map, rebase(&changed)))
}
