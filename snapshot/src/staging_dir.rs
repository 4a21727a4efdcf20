//! The directory that an image is staged in: making it, and removing one, whether it ever was a checkpoint or not.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::files;
use crate::limits::NAME_TRIES_MAX;
use crate::names;

/// Makes the directory of checkpoints if it is missing, and its name durable.
pub(crate) fn make_parent(parent: &Path) -> Result<()> {
    let refuse = |path: &Path, why| Error::NoParent { path: path.to_path_buf(), why };
    match std::fs::metadata(parent) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(refuse(parent, "it is not a directory")),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) if source.raw_os_error() == Some(libc::ENOTDIR) => {
            return Err(refuse(parent, "it lies in something that is not a directory"));
        }
        Err(source) => return Err(Error::io(parent, "look at it", source)),
    }
    if !parent.parent().is_some_and(Path::is_dir) {
        return Err(refuse(parent, "it does not exist, nor does the directory above"));
    }
    files::make_dirs(parent).map_err(|source| Error::io(parent, "make the directory", source))
}

/// Removes a directory with all that is in it, the manifest first: what has one is whole for as long as it has it.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    let manifest = directory.join(names::MANIFEST);
    if manifest.symlink_metadata().is_ok() {
        files::remove(&manifest)?;
        files::sync_dir(directory)?;
    }
    files::remove_tree(directory)
}

/// Makes a staging directory and locks it. A sweep may find it before the lock does; then another name is tried.
pub(crate) fn make(parent: &Path) -> Result<(Uuid, PathBuf, Flock<File>)> {
    for _ in 0..NAME_TRIES_MAX {
        let id = Uuid::new_v4();
        let directory = parent.join(names::staging(id));
        files::create_dir(&directory)?;
        match files::try_lock_dir(&directory) {
            Ok(Some(lock)) if files::is_at(&lock, &directory) => return Ok((id, directory, lock)),
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                let _ = files::remove_tree(&directory);
                return Err(error);
            }
        }
    }
    Err(Error::NoParent { path: parent.to_path_buf(), why: "what is made in it disappears at once" })
}
