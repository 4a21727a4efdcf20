//! A new file with the content of another, and its name.

use std::fs::File;
use std::path::Path;

use crate::error::Result;
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

/// Gives a file that is complete its name, replacing what had it. When this returns the name is durable: what is
/// flushed to the file afterwards is found under it.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) and others of the file system.
pub fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    files::rename(from, to)?;
    let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    files::sync_dir(parent.unwrap_or(Path::new(".")))
}

fn make(from: Named<'_>, bytes: u64, to: &Path, settle: impl FnOnce(&File) -> Result<()>) -> Result<CopyMethod> {
    make_with(to, |file| {
        let method = sparse::clone_or_copy(from, Named { file, path: to }, bytes)?;
        settle(file)?;
        Ok(method)
    })
}

/// Makes the file `to` with what `fill` puts into it.
pub(crate) fn make_with<T>(to: &Path, fill: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    let file = files::create(to)?;
    // The first error is the one that counts.
    fill(&file).inspect_err(|_| drop(files::remove(to)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
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
