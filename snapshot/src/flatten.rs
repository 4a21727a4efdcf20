//! An image that builds on no other, made of one that does.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::files;
use crate::image::Image;
use crate::large;
use crate::layers::Layers;
use crate::manifest::ManifestHead;
use crate::names;
use crate::progress::{Phase, Progress};
use crate::sparse::Named;
use crate::staged::StagedImage;

impl Image {
    /// Makes the new checkpoint `to` of the same instant, with all of RAM and disks in files of its own, sharing extents
    /// where the file system can. All is compared with its digests on the way. It has an id of its own.
    ///
    /// # Errors
    /// As [`StagedImage::create`], and what is wrong with this image: [`Error::Digest`], [`Error::Damaged`]; then
    /// nothing of the new one is left.
    pub fn flatten(mut self, to: &Path, progress: &Progress) -> Result<PathBuf> {
        let started = Instant::now();
        let mut staged = StagedImage::create(to)?;
        staged.write_state(&self.take_state()?)?;
        for id in self.network_ids() {
            if let Some(bytes) = self.network(id)? {
                staged.write_network(id, &bytes)?;
            }
        }
        progress.begin(Phase::Verify, self.large_files().map(|(_, large)| large.map.file_bytes()).sum());
        for (name, large) in self.large_files() {
            if names::disk_id(&name).is_some() {
                staged.make_disks_directory()?;
                staged.wanted_disks.insert(name.clone());
            }
            let path = staged.directory.join(&name);
            let file = files::create(&path)?;
            let copy = Named { file: &file, path: &path };
            large.fill(copy)?;
            let map = large::map(copy, large.map.file_bytes(), large.map.tagging(), progress)?;
            let differs = large.map.chunks().zip(map.chunks()).find(|((_, old), (_, new))| old != new);
            if let Some(((range, _), _)) = differs {
                let (offset, bytes) = (range.start, range.end - range.start);
                return Err(Error::Digest { path: large.holder(&range), offset, bytes });
            }
            // With the regions of RAM, which only the old map knows.
            staged.record_large(&name, file, &large.map, &Layers::single())?;
        }
        let manifest = self.manifest().clone();
        staged.memory_bytes = manifest.memory_bytes;
        staged.commit(ManifestHead {
            name: manifest.name,
            lineage: manifest.lineage,
            parent: manifest.parent,
            created: manifest.created,
            mode: manifest.mode,
            config: manifest.config,
            host: manifest.host,
            pause_us: manifest.pause_us,
            started,
        })
    }
}
