//! What a checkpoint *is*: saved states, the image on disk, its commit and its verification.
//!
//! An image is a directory (`names.rs` has its picture). It is made by a [`StagedImage`], which becomes visible in one
//! atomic step, whole and durable, and it is read through an [`Image`], which exists only after manifest, state and
//! chunk maps have been compared with their digests. A [`Store`] is a directory of images.
//!
//! This crate knows nothing of KVM, event loops or virtio: guest RAM is memory, a disk is a file, a device is a name
//! with a versioned [`Saved`] value.

mod aside;
mod change;
mod chunk_map;
mod chunk_writer;
mod commit;
mod copy;
#[cfg(test)]
mod crash;
mod digest;
mod direct;
mod disk;
mod error;
#[cfg(test)]
mod fault;
mod files;
mod flatten;
mod image;
mod large;
mod layers;
pub mod limits;
mod manifest;
mod memory;
mod names;
mod once;
mod pagemap;
mod progress;
mod reflink;
mod saved;
mod seal;
mod sparse;
mod staged;
mod staging_dir;
mod store;
mod tag;
mod wire;
mod write_out;
mod writer;

pub use aside::Aside;
pub use chunk_map::{ChunkMap, Region};
pub use copy::{NotedCopy, copy_file, rename_durably, write_file};
pub use digest::{Digest, FileDigest};
pub use disk::LiveDisk;
pub use error::{Error, Result, Versions};
pub use files::{make_dir, make_dir_unsynced, make_dirs, sync_name};
pub use image::Image;
pub use manifest::{FORMAT_VERSIONS, FileEntry, Manifest, ManifestHead};
pub use memory::{MemoryImage, RamPlan, Run};
pub use once::write_once;
pub use pagemap::OwnPages;
pub use progress::{Phase, Progress};
pub use saved::{Saved, Snapshot, StateMap};
pub use seal::{is_sealed, sealed};
pub use sparse::CopyMethod;
pub use staged::StagedImage;
pub use store::{Entry, Store};
pub use tag::{Chunk, Tag, Tagging};
pub use writer::{Copies, ForkedWriter, Habits, Lent, PreparedWriter, Refused, can_protect};
