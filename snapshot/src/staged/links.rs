//! What an image builds on: the layers of another, linked into its directory.
//!
//! Invariant: what is linked is durable. Who commits an image has made it so, and who restores one that somebody copied
//! calls [`Image::sync`].
//!
//! Invariant: an image needs no directory but its own. Whoever removes the checkpoint that it builds on takes a name from
//! its files, not the files.

use std::sync::Arc;

use super::StagedImage;
use crate::error::Result;
use crate::files;
use crate::image::Image;
use crate::names;

impl StagedImage {
    /// Stores only what is not as in `base`, which must be an image of the same machine, and links the rest. To be called
    /// before anything is written or prepared.
    ///
    /// # Errors
    /// If its files cannot be linked here, as from another file system, or when it has been removed: the image will
    /// be a full one then.
    pub fn build_on(&mut self, base: &Arc<Image>) -> Result<()> {
        let linked = self.link_all(base);
        match linked {
            Ok(()) => self.base = Some(Arc::clone(base)),
            // What is left is not listed in the manifest and does no harm; in this order nothing is.
            Err(_) => drop(self.unlink(|_| true)),
        }
        linked
    }

    fn link_all(&mut self, base: &Image) -> Result<()> {
        for (name, large) in base.large_files() {
            if names::disk_id(&name).is_some() {
                self.make_disks_directory()?;
            }
            let ids = std::iter::once(base.manifest().id).chain(large.layers.ids().iter().copied());
            for (id, layer) in ids.zip(&large.files) {
                let name = names::layer(&name, id);
                files::link(&layer.file, &self.directory.join(&name))?;
                self.linked.insert(name, large.map.file_bytes());
            }
        }
        Ok(())
    }

    /// A disk that the other image has may not be in this one.
    pub(crate) fn unlink_what_was_not_captured(&mut self) -> Result<()> {
        let captured: Vec<String> = self.written.keys().cloned().collect();
        self.unlink(|link| names::layer_of(link).is_none_or(|large| !captured.iter().any(|name| name == large)))
    }

    /// Removes the links of which `is_needless` says so.
    pub(super) fn unlink(&mut self, is_needless: impl Fn(&str) -> bool) -> Result<()> {
        let needless: Vec<String> = self.linked.keys().filter(|name| is_needless(name)).cloned().collect();
        for name in needless {
            files::remove(&self.directory.join(&name))?;
            self.linked.remove(&name);
        }
        Ok(())
    }
}
