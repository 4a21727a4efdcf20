//! Every operation of this crate that changes a file system, and the guarded ways of opening what is in one. Each
//! [`perform`]s a [`Change`], so that a test can see their order, fail one, stop the world there, or keep a journal of
//! them and ask what a disk may hold if the power fails.
//!
//! Invariants: no file of an image is ever overwritten; what is created is private to its owner (0700, 0600); of an
//! image only regular files are opened, never through a symbolic link of their own and never blocking on a pipe.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, FallocateFlags, Flock, FlockArg, RenameFlags, copy_file_range, fallocate, renameat2,
};
use nix::unistd::linkat;
use vm_memory::{VolatileMemoryError, VolatileSlice, WriteVolatile};

use crate::change::Change;
use crate::error::{Error, Result};
#[cfg(test)]
use crate::fault::perform;
use crate::reflink::reflink;

/// Does `operation`, which makes `change`.
#[cfg(not(test))]
#[inline(always)]
fn perform<T>(_change: Change<'_>, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    operation()
}

/// Makes a directory that only its owner can use. Its name is durable when this returns: what is flushed to files in it
/// is found after a power loss.
///
/// # Errors
/// Those of mkdir(2) and fsync(2), for the caller to say what the directory is.
pub fn make_dir(path: &Path) -> io::Result<()> {
    make_dir_unsynced(path)?;
    sync_name(path)
}

/// [`make_dir`] without waiting for the disk: whoever makes something in it that is to last calls [`sync_name`] first.
///
/// # Errors
/// Those of mkdir(2).
#[expect(clippy::disallowed_methods, reason = "who calls it sees to the name")]
pub fn make_dir_unsynced(path: &Path) -> io::Result<()> {
    perform(Change::MakeDirectory(path), || DirBuilder::new().mode(0o700).create(path))
}

/// Waits until the name of `path` is durable.
///
/// # Errors
/// Those of open(2) and fsync(2), of the directory that has it.
pub fn sync_name(path: &Path) -> io::Result<()> {
    sync_names(directory_of(path))
}

/// [`make_dir`] for those above that are missing too. One that is there already stays as it is.
///
/// # Errors
/// As there.
pub fn make_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_dirs(directory_of(path))?;
    match make_dir(path) {
        // Somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// The directory that has the name `path`.
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a directory that only its owner can use.
pub(crate) fn create_dir(path: &Path) -> Result<()> {
    make_dir_unsynced(path).map_err(|source| Error::io(path, "make the directory", source))
}

/// Makes an empty file that only its owner can use, open for reading and writing.
pub(crate) fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    perform(Change::Create(path), || options.open(path)).map_err(|source| Error::io(path, "make the file", source))
}

/// Opens a file of an image for reading, and says how long it is.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ELOOP) => Error::Damaged { path: path.to_path_buf(), why: "it is a symbolic link".to_owned() },
        _ => Error::io(path, "open it", source),
    };
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let why = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
        return Err(Error::Damaged { path: path.to_path_buf(), why: why.to_owned() });
    }
    Ok((file, metadata.len()))
}

/// Reads a whole file of an image of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, bytes) = open(path)?;
    if bytes > limit {
        return Err(Error::TooLarge { path: path.to_path_buf(), bytes, limit });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    // It may grow while it is read: the bound holds for what is read, not only for what fstat(2) said.
    file.take(limit).read_to_end(&mut content).map_err(|source| Error::io(path, "read it", source))?;
    Ok(content)
}

/// Fills `buf` from `offset` on; a file that ends before that was truncated.
pub(crate) fn read_at(file: &File, path: &Path, buf: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buf, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => Error::Damaged {
            path: path.to_path_buf(),
            why: format!("it ends before offset {}", offset + buf.len() as u64),
        },
        _ => Error::io(path, "read it", source),
    })
}

/// Writes all of `bytes` at `offset`, without a copy or an allocation: the caller makes an [`Error`] of a failure.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    perform(Change::Write { file, bytes, offset }, || file.write_all_at(bytes, offset))
}

/// Writes all of `memory`, which somebody may change meanwhile, at `offset`, and moves the file's position.
pub(crate) fn write_memory_at(file: &File, memory: &VolatileSlice<'_>, offset: u64) -> io::Result<()> {
    perform(Change::Copy { to: file, offset, count: memory.len() }, || {
        let mut there = file;
        there.seek(SeekFrom::Start(offset))?;
        there.write_all_volatile(memory).map_err(|error| match error {
            VolatileMemoryError::IOError(source) => source,
            error => io::Error::other(error),
        })
    })
}

/// Has the file hold nothing there, which reads as zeros (fallocate(2)).
pub(crate) fn punch_hole(file: &File, offset: u64, count: usize) -> io::Result<()> {
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    perform(Change::Punch { file, offset, count }, || retry(|| Ok(fallocate(file, mode, offset as i64, count as i64)?)))
}

/// Has `begin` begin to write all of `bytes` at `offset`, likewise.
pub(crate) fn begin_write_at(
    file: &File,
    bytes: &[u8],
    offset: u64,
    begin: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    perform(Change::Write { file, bytes, offset }, begin)
}

/// Gives a file its length. What was not written reads as zeros and takes no space.
pub(crate) fn set_len(file: &File, path: &Path, bytes: u64) -> Result<()> {
    perform(Change::SetLength { file, path, bytes }, || file.set_len(bytes))
        .map_err(|source| Error::io_wanting(path, "give it its length", bytes, source))
}

/// Makes the empty file `to` share all of `from`; see [`reflink`](crate::reflink).
pub(crate) fn share_extents(from: &File, to: &File) -> io::Result<()> {
    perform(Change::Share { to }, || reflink(from, to))
}

/// Copies up to `count` bytes at `offset` to the same place of `to`, inside the kernel (copy_file_range(2)).
pub(crate) fn copy_range(from: &File, to: &File, offset: u64, count: usize) -> io::Result<usize> {
    let copy = || {
        let (mut source, mut target) = (offset as i64, offset as i64);
        Ok(copy_file_range(from, Some(&mut source), to, Some(&mut target), count)?)
    };
    perform(Change::Copy { to, offset, count }, || retry(copy))
}

/// Waits until a file's content and length are durable.
pub(crate) fn sync(file: &File, path: &Path) -> Result<()> {
    perform(Change::Sync { file, path }, || retry(|| file.sync_all()))
        // Space may be found missing only now, where it is allocated late.
        .map_err(|source| {
            let bytes = file.metadata().map_or(0, |metadata| metadata.len());
            Error::io_wanting(path, "make it durable", bytes, source)
        })
}

/// Waits until the names in a directory are durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    sync_names(path).map_err(|source| Error::io(path, "make its entries durable", source))
}

fn sync_names(path: &Path) -> io::Result<()> {
    let directory = open_names(path)?;
    perform(Change::SyncDirectory(path), || retry(|| directory.sync_all()))
}

/// Opens a directory, following a symbolic link to it.
pub(crate) fn open_dir(path: &Path) -> Result<File> {
    open_names(path).map_err(|source| Error::io(path, "open the directory", source))
}

fn open_names(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// Renames within a directory, replacing what had the name.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    perform(Change::Rename { from, to }, || std::fs::rename(from, to))
        .map_err(|source| Error::io(to, "rename to it", source))
}

/// Renames a directory to a name that nothing has: in one atomic step it exists, or the name was taken and it does not.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    let flags = RenameFlags::RENAME_NOREPLACE;
    let renamed =
        perform(Change::RenameNew { from, to }, || retry(|| Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)));
    match renamed {
        // A file system without the flag (NFS and some others). rename(2) replaces an empty directory at most.
        Err(source) if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            if to.symlink_metadata().is_ok() {
                return Err(Error::Exists { path: to.to_path_buf() });
            }
            rename(from, to)
        }
        other => other.map_err(|source| Error::io(to, "rename to it", source)),
    }
}

/// Gives an open file one more name, if it has any still, on the same file system.
pub(crate) fn link(file: &File, to: &Path) -> Result<()> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = || Ok(linkat(AT_FDCWD, Path::new(&open), AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW)?);
    perform(Change::Link { file, to }, link).map_err(|source| Error::io(to, "link it", source))
}

/// Makes a symbolic link.
pub(crate) fn symlink(target: &Path, link: &Path) -> Result<()> {
    perform(Change::Symlink { target, link }, || std::os::unix::fs::symlink(target, link))
        .map_err(|source| Error::io(link, "make the link", source))
}

/// Removes a file or link.
pub(crate) fn remove(path: &Path) -> Result<()> {
    perform(Change::Remove(path), || std::fs::remove_file(path)).map_err(|source| Error::io(path, "remove it", source))
}

/// Removes a directory with all that is in it, following no link.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    perform(Change::RemoveTree(path), || std::fs::remove_dir_all(path))
        .map_err(|source| Error::io(path, "remove the directory", source))
}

/// A lock on a directory, for as long as this value lives; `None` if somebody else has it.
pub(crate) fn try_lock_dir(path: &Path) -> Result<Option<Flock<File>>> {
    let mut directory = open_dir(path)?;
    loop {
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((again, Errno::EINTR)) => directory = again,
            Err((_, errno)) => {
                return Err(Error::io(path, "lock the directory, which needs a local file system", errno.into()));
            }
        }
    }
}

/// True if the open directory is still the one at `path`.
pub(crate) fn is_at(directory: &File, path: &Path) -> bool {
    match (directory.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Bytes that the file system of `path`, or of the nearest directory above that exists, has left for this user; 0 if
/// that cannot be had.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    path.ancestors()
        .find_map(|ancestor| nix::sys::statvfs::statvfs(ancestor).ok())
        .map_or(0, |stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Repeats a system call for as long as signals interrupt it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, with};

    #[test]
    fn a_directory_is_where_it_is_and_nowhere_else() {
        let above = tempfile::tempdir().expect("directory");
        let (path, other) = (above.path().join("a"), above.path().join("b"));
        create_dir(&path).expect("mkdir");
        let open = open_dir(&path).expect("open");
        assert!(is_at(&open, &path));
        rename(&path, &other).expect("rename");
        assert!(!is_at(&open, &path), "gone");
        create_dir(&path).expect("mkdir");
        assert!(!is_at(&open, &path), "another one");
        remove_tree(&path).expect("rm");
        symlink(&other, &path).expect("symlink");
        assert!(!is_at(&open, &path), "a link to it is not it");
        assert!(is_at(&open, &other));
    }

    #[test]
    fn the_name_of_a_directory_that_was_made_is_durable() {
        let above = tempfile::tempdir().expect("directory");
        let (a, b) = (above.path().join("a"), above.path().join("a/b"));
        let (made, steps) = with(Fault::None, || make_dirs(&b));
        made.expect("makes both");
        let operations: Vec<_> = steps.iter().map(|step| (step.operation, step.path.as_path())).collect();
        assert_eq!(operations, [("mkdir", &*a), ("sync_dir", above.path()), ("mkdir", &b), ("sync_dir", &a)]);
        let (made, steps) = with(Fault::None, || make_dirs(&b));
        made.expect("it is there");
        assert_eq!(steps, []);
        assert_eq!(make_dir(&b).expect_err("it is there").kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_lock_is_one_s_own() {
        let above = tempfile::tempdir().expect("directory");
        let lock = try_lock_dir(above.path()).expect("locks").expect("free");
        assert!(try_lock_dir(above.path()).expect("looks").is_none());
        drop(lock);
        assert!(try_lock_dir(above.path()).expect("locks").is_some());
    }

    #[test]
    fn free_bytes_are_known_for_what_does_not_exist_yet() {
        let above = tempfile::tempdir().expect("directory");
        assert!(free_bytes(&above.path().join("a/b/c")) > 0);
    }
}
