//! Names of the files in a checkpoint directory and of what stands beside it.
//!
//! ```text
//! STORE/000042/manifest.json
//! STORE/000042/state
//! STORE/000042/memory           STORE/000042/memory.map
//! STORE/000042/disks/ID         STORE/000042/disks/ID.map
//! STORE/000042/network/NIC        frames that were under way to the guest, in an image of a network's VM
//! STORE/000042/memory.layers    STORE/000042/memory.UUID     in an image that builds on others; also of disks
//! STORE/latest -> 000042        a hint
//! STORE/.STAGING-UUID/          not yet, or no longer, a checkpoint
//! ```
//!
//! Invariant: a disk's id has no dot and no slash, so no id can name another file.

use std::path::Path;

use uuid::Uuid;

use crate::limits::ID_BYTES_MAX;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const MANIFEST_TEMPORARY: &str = ".manifest.json.tmp";
pub(crate) const STATE: &str = "state";
pub(crate) const MEMORY: &str = "memory";
pub(crate) const DISKS: &str = "disks";
pub(crate) const NETWORK: &str = "network";
pub(crate) const LATEST: &str = "latest";
const MAP_SUFFIX: &str = ".map";
const LAYERS_SUFFIX: &str = ".layers";
const STAGING_PREFIX: &str = ".STAGING-";
const LATEST_TEMPORARY_PREFIX: &str = ".latest-";

/// How a file of an image is digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// Read and digested as a whole: state, maps, frames of a network.
    Small,
    /// Digested by chunks, in its map.
    Large,
    /// What another checkpoint wrote of a large file; digested with it.
    Layer,
}

/// The path of the disk `id` in an image.
pub(crate) fn disk(id: &str) -> String {
    format!("{DISKS}/{id}")
}

/// The path of the map of the large file `name`.
pub(crate) fn map_of(name: &str) -> String {
    format!("{name}{MAP_SUFFIX}")
}

/// The path of the table of layers of the large file `name`.
pub(crate) fn layers_of(name: &str) -> String {
    format!("{name}{LAYERS_SUFFIX}")
}

/// The path of what the checkpoint `id` wrote of the large file `name`.
pub(crate) fn layer(name: &str, id: Uuid) -> String {
    format!("{name}.{id}")
}

/// The large file of which `name` is a layer that another checkpoint wrote.
pub(crate) fn layer_of(name: &str) -> Option<&str> {
    let (large, id) = name.rsplit_once('.')?;
    is_uuid(id).then_some(large)
}

/// The id of the disk whose contents are in the file `name`.
pub(crate) fn disk_id(name: &str) -> Option<&str> {
    name.strip_prefix(DISKS)?.strip_prefix('/').filter(|id| is_id(id))
}

/// The path of what was under way to the network card `id`.
pub(crate) fn network(id: &str) -> String {
    format!("{NETWORK}/{id}")
}

/// The id of the network card whose frames are in the file `name`.
pub(crate) fn network_id(name: &str) -> Option<&str> {
    name.strip_prefix(NETWORK)?.strip_prefix('/').filter(|id| is_id(id))
}

/// True for `[a-z0-9][a-z0-9-]{0,62}`.
pub(crate) fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && !id.starts_with('-')
        && id.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// What a file named in a manifest is; `None` if this build knows no such file.
pub(crate) fn classify(name: &str) -> Option<FileKind> {
    let is_large = |name: &str| name == MEMORY || disk_id(name).is_some();
    let of_large = |suffix| name.strip_suffix(suffix).is_some_and(is_large);
    if name == STATE || network_id(name).is_some() || of_large(MAP_SUFFIX) || of_large(LAYERS_SUFFIX) {
        return Some(FileKind::Small);
    }
    if layer_of(name).is_some_and(is_large) {
        return Some(FileKind::Layer);
    }
    is_large(name).then_some(FileKind::Large)
}

/// A new name for a staging directory.
pub(crate) fn staging(id: Uuid) -> String {
    format!("{STAGING_PREFIX}{id}")
}

/// A new name for a link on its way to being `latest`.
pub(crate) fn latest_temporary() -> String {
    format!("{LATEST_TEMPORARY_PREFIX}{}", Uuid::new_v4())
}

/// True for names that [`staging`] makes and no others, so that a sweep removes nothing of anybody else's.
pub(crate) fn is_staging(name: &str) -> bool {
    name.strip_prefix(STAGING_PREFIX).is_some_and(is_uuid)
}

/// True for names that [`latest_temporary`] makes and no others.
pub(crate) fn is_latest_temporary(name: &str) -> bool {
    name.strip_prefix(LATEST_TEMPORARY_PREFIX).is_some_and(is_uuid)
}

fn is_uuid(text: &str) -> bool {
    Uuid::parse_str(text).is_ok_and(|id| id.to_string() == text)
}

/// The number of a checkpoint that a store named: six digits, more when they run out.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = (6..=18).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = name.len() == 6 || !name.starts_with('0');
    if digits && canonical { name.parse().ok() } else { None }
}

/// The name of the checkpoint with this number.
pub(crate) fn numbered(number: u64) -> String {
    format!("{number:06}")
}

/// True if the last component of `path` is a store's own kind of name.
pub(crate) fn is_numbered(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).and_then(number).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_files_are_known() {
        for small in ["state", "memory.map", "disks/root.map", "disks/a-1.map", "memory.layers", "disks/a.layers"] {
            assert_eq!(classify(small), Some(FileKind::Small), "{small}");
        }
        assert_eq!(classify(&network("eth0")), Some(FileKind::Small));
        for large in ["memory", "disks/root", "disks/map", "disks/0"] {
            assert_eq!(classify(large), Some(FileKind::Large), "{large}");
        }
        let id = Uuid::new_v4();
        for large in ["memory", "disks/root"] {
            assert_eq!(classify(&layer(large, id)), Some(FileKind::Layer), "{large}");
            assert_eq!(layer_of(&layer(large, id)), Some(large));
        }
        assert_eq!(classify(&layer("state", id)), None);
        assert_eq!(classify(&layer("memory", id).to_uppercase()), None);
        let long = format!("disks/{}", "a".repeat(64));
        for unknown in [
            "",
            "manifest.json",
            "state.map",
            "memory.map.map",
            "/memory",
            "disks/",
            "disks/..",
            "disks/.map",
            "../memory",
            "disks/../memory",
            "disks/a/b",
            "disks/A",
            "disks/-a",
            "disks/a\0",
            "disks",
            "network",
            "network/",
            "network/../memory",
            "network/eth0.map",
            &long,
        ] {
            assert_eq!(classify(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn only_our_own_temporary_names_are_swept() {
        let id = Uuid::new_v4();
        assert!(is_staging(&staging(id)));
        assert!(is_latest_temporary(&latest_temporary()));
        for other in [
            ".STAGING-",
            ".STAGING-mine",
            "STAGING-x",
            &id.to_string(),
            &format!(".STAGING-{}", id.simple()),
            &format!(".STAGING-{}", id.to_string().to_uppercase()),
        ] {
            assert!(!is_staging(other), "{other}");
        }
    }

    #[test]
    fn numbers_have_one_spelling() {
        for n in [0, 1, 42, 999_999, 1_000_000, 999_999_999_999_999_999] {
            assert_eq!(number(&numbered(n)), Some(n));
        }
        for other in ["", "42", "0000042", "00004a", "-00042", "+00042", "9999999999999999999"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
