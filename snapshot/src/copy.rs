//! A new file with the content of another or of somebody's pieces, and its name.

use std::fs::File;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;
use crate::sparse::{self, CopyMethod, Named};

/// Makes the file `to`, private to its owner, with the content of `from` (whose name for errors is `from_path`),
/// sharing extents where the file system can; holes stay holes. Its content is durable when it returns, and its name
/// once it has its last one: see [`rename_durably`]. Moves the offset of `from`.
///
/// # Errors
/// [`Error::Exists`](crate::Error::Exists), [`Error::NoSpace`](crate::Error::NoSpace) and others of the file system;
/// `to` is then not left behind.
pub fn copy_file(from: &File, from_path: &Path, to: &Path) -> Result<CopyMethod> {
    let source = Named { file: from, path: from_path };
    make(source, sparse::length(source)?, to, |copy| files::sync(copy, to))
}

/// Makes the file `to` with the `bytes` bytes of `from`. Its content will be durable when somebody flushes it, its name
/// as that of any [`copy_file`].
pub(crate) fn make_copy(from: Named<'_>, bytes: u64, to: &Path) -> Result<CopyMethod> {
    make(from, bytes, to, |_| Ok(()))
}

/// Makes the file `to`, private to its owner: `bytes` zeros, and the pieces that `fill` puts there at their offsets.
/// Pages of zeros stay holes. It is as durable as one of [`copy_file`].
///
/// # Errors
/// Those of `fill`, and those of [`copy_file`]; `to` is then not left behind.
pub fn write_file<E: From<Error>>(
    to: &Path,
    bytes: u64,
    fill: impl FnOnce(&dyn Fn(&[u8], u64) -> Result<()>) -> Result<(), E>,
) -> Result<(), E> {
    make_with(to, |file| {
        files::set_len(file, to, bytes)?;
        fill(&|piece, offset| {
            sparse::write_data(file, piece, offset).map_err(|source| Error::io_wanting(to, "write it", bytes, source))
        })?;
        Ok(files::sync(file, to)?)
    })
}

/// Gives a file that is complete its name, replacing what had it. When this returns the name is durable: what is
/// flushed to the file afterwards is found under it.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) and others of the file system.
pub fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    files::rename(from, to)?;
    files::sync_dir(files::directory_of(to))
}

/// The working copy of a file, and a note beside it that says what it was made from.
///
/// Invariant: at any moment, after a power loss too, where the copy is there the note is there that was made with it.
#[derive(Debug, Clone, Copy)]
pub struct NotedCopy<'a> {
    /// Its name.
    pub path: &'a Path,
    /// Its name until it is whole, in the same directory.
    pub unfinished: &'a Path,
    /// The note's name, in the same directory.
    pub note: &'a Path,
}

impl NotedCopy<'_> {
    /// Has `write` make the file that it is given, durable as one of [`copy_file`] is, and notes `text`. A copy that is
    /// there is replaced, but not before all of the new one is on the disk.
    ///
    /// # Errors
    /// Those of `write` and of the file system.
    pub fn make<E: From<Error>>(&self, write: impl FnOnce(&Path) -> Result<(), E>, text: &str) -> Result<(), E> {
        remove_if_there(self.unfinished)?;
        write(self.unfinished)?;
        Ok(self.name(text)?)
    }

    /// The copy is whole: its note, then its name.
    fn name(&self, text: &str) -> Result<()> {
        if remove_if_there(self.path)? {
            // Or the old copy might come back beside the new note.
            files::sync_dir(files::directory_of(self.path))?;
        }
        remove_if_there(self.note)?;
        let note = files::create(self.note)?;
        let written = files::write_at(&note, text.as_bytes(), 0);
        written.map_err(|source| Error::io_wanting(self.note, "write it", text.len() as u64, source))?;
        files::sync(&note, self.note)?;
        files::sync_dir(files::directory_of(self.note))?;
        rename_durably(self.unfinished, self.path)
    }
}

/// True if it was.
fn remove_if_there(path: &Path) -> Result<bool> {
    match files::remove(path) {
        Err(error) if error.is_not_found() => Ok(false),
        other => other.map(|()| true),
    }
}

fn make(from: Named<'_>, bytes: u64, to: &Path, settle: impl FnOnce(&File) -> Result<()>) -> Result<CopyMethod> {
    make_with(to, |file| {
        let method = sparse::clone_or_copy(from, Named { file, path: to }, bytes)?;
        settle(file)?;
        Ok(method)
    })
}

/// Makes the file `to` with what `fill` puts into it.
pub(crate) fn make_with<T, E: From<Error>>(to: &Path, fill: impl FnOnce(&File) -> Result<T, E>) -> Result<T, E> {
    let file = files::create(to)?;
    // The first error is the one that counts.
    fill(&file).inspect_err(|_| drop(files::remove(to)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::fault::{Fault, with};

    #[test]
    fn a_failed_copy_leaves_no_file() {
        let directory = tempfile::tempdir().expect("directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::write(&from, [7; 9000]).expect("write");
        let file = File::open(&from).expect("open");
        for at in 0.. {
            let (result, steps) = with(Fault::Fail(at, libc::ENOSPC), || copy_file(&file, &from, &to));
            if steps.len() <= at {
                result.expect("nothing failed");
                break;
            }
            assert!(matches!(result, Err(Error::NoSpace { .. })), "{:?}", steps[at]);
            assert!(!to.exists(), "{:?}", steps[at]);
        }
        assert_eq!(std::fs::read(&to).expect("read"), [7; 9000]);
        assert!(matches!(copy_file(&file, &from, &to), Err(Error::Exists { .. })));
        assert_eq!(std::fs::read(&to).expect("read"), [7; 9000], "what exists stays as it is");
    }

    #[test]
    fn a_file_of_pieces_is_sparse_and_durable_or_not_there() {
        let directory = tempfile::tempdir().expect("directory");
        let to = directory.path().join("to");
        let piece: Vec<u8> = [vec![7; 4096], vec![0; 64 << 10], vec![8; 4096]].concat();
        let write = || write_file(&to, 1 << 20, |put| put(&piece, 512 << 10));
        for at in 0.. {
            let (result, steps) = with(Fault::Fail(at, libc::ENOSPC), write);
            if steps.len() <= at {
                result.expect("nothing failed");
                assert_eq!(steps.last().map(|step| step.operation), Some("sync"));
                break;
            }
            assert!(matches!(result, Err(Error::NoSpace { .. })), "{:?}", steps[at]);
            assert!(!to.exists(), "{:?}", steps[at]);
        }
        let mut wanted = vec![0; 1 << 20];
        wanted[512 << 10..][..piece.len()].copy_from_slice(&piece);
        assert!(std::fs::read(&to).expect("read") == wanted);
        let metadata = to.metadata().expect("metadata");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(metadata.blocks() * 512 <= 32 << 10, "{} sectors are no holes", metadata.blocks());
        assert!(matches!(write(), Err(Error::Exists { .. })));
    }

    #[test]
    fn a_name_that_was_given_is_durable() {
        let directory = tempfile::tempdir().expect("directory");
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        std::fs::write(&from, "new").expect("write");
        std::fs::write(&to, "old").expect("write");
        let (result, steps) = with(Fault::None, || rename_durably(&from, &to));
        result.expect("no fault, no failure");
        let operations: Vec<_> = steps.iter().map(|step| (step.operation, step.path.as_path())).collect();
        assert_eq!(operations, [("rename", to.as_path()), ("sync_dir", directory.path())]);
        assert_eq!(std::fs::read(&to).expect("read"), b"new");
    }
}
