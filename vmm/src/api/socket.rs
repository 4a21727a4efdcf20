//! The API's unix socket: where it is, and how one VM alone comes to own it.
//!
//! ```text
//!   PATH.lock   flock, held for as long as the server lives; decides between two VMs that start at once
//!   PATH        the socket, 0600 from its first instant (fchmod before bind)
//! ```
//!
//! A socket that is there already is in use if somebody holds the lock or answers a connect; else a dead VM left it
//! and it is replaced. Lock and socket go when the server ends; after a `kill -9` they stay and harm nobody.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

use crate::config::{Id, SOCKET_PATH_MAX};
use crate::host::lock as file_lock;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// How often the lock is tried for when its file is replaced under our hands.
const LOCK_TRIES: usize = 16;

/// Why the API socket cannot be had. The text is the CLI's line.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another VM has it.
    #[error("{}: in use by a running VM; stop that one (`ckvmm stop --api-socket {}`) or give another --api-socket", .0.display(), .0.display())]
    InUse(PathBuf),
    /// Longer than a socket's address can be.
    #[error("{}: {length} bytes long, and a socket's path has room for {SOCKET_PATH_MAX}; give a shorter --api-socket", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Something else has that name.
    #[error("{}: exists and is no socket; give another --api-socket", .0.display())]
    NotASocket(PathBuf),
    /// The directory for sockets belongs to somebody else, or others may write to it.
    #[error("{}: {what}; remove it or set XDG_RUNTIME_DIR", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{}: {what}: {source}; give another --api-socket", path.display())]
    Io {
        /// What it was about.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The directory of sockets that are found by a VM's name: `$XDG_RUNTIME_DIR/ckvmm`, else `/tmp/ckvmm-UID`.
#[must_use]
pub fn default_dir() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|dir| dir.is_absolute() && dir.is_dir()) {
        Some(dir) => dir.join("ckvmm"),
        None => PathBuf::from(format!("/tmp/ckvmm-{}", nix::unistd::getuid())),
    }
}

/// The socket of the VM `name` if no `--api-socket` was given.
#[must_use]
pub fn default_path(name: &Id) -> PathBuf {
    default_dir().join(format!("{name}.sock"))
}

/// A socket that listens, and the lock that makes it ours. Both go when it is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    path: PathBuf,
    listener: UnixListener,
    lock: Option<File>,
}

impl BoundSocket {
    /// Listens at [`default_path`], making its directory (0700) if need be.
    ///
    /// # Errors
    /// Another VM of that name runs, or the directory cannot be used.
    pub fn bind_default(name: &Id) -> Result<Self, SocketError> {
        let dir = default_dir();
        make_private_dir(&dir)?;
        Self::bind(&default_path(name))
    }

    /// Listens at `path`.
    ///
    /// # Errors
    /// It is in use by a live VM, too long, not a socket, or cannot be made.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |what| move |source: io::Error| SocketError::Io { path: path.to_owned(), what, source };
        let length = path.as_os_str().len();
        // the lock's name is longer, but it is no socket
        if length > SOCKET_PATH_MAX {
            return Err(SocketError::TooLong { path: path.to_owned(), length });
        }
        let path = std::path::absolute(path).map_err(failed("no such path"))?;
        let lock = lock(&path)?;
        remove_stale(&path)?;
        let listener = listen_privately(&path)?;
        Ok(Self { path, listener, lock: Some(lock) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to accept connections from.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        // while the lock is held nobody else can have put another socket or lock file here
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(lock_path(&self.path));
        drop(self.lock.take());
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// Takes the lock of `path`. Its file is removed by who holds it, so that after locking we look whether the file that
/// we locked is still the one that has the name.
fn lock(path: &Path) -> Result<File, SocketError> {
    let name = lock_path(path);
    let failed = |what| {
        let path = name.clone();
        move |source: io::Error| SocketError::Io { path, what, source }
    };
    for _ in 0..LOCK_TRIES {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&name).map_err(failed("the socket's lock cannot be made"))?;
        if !file_lock::take(&file).map_err(failed("the socket's lock cannot be taken"))? {
            return Err(SocketError::InUse(path.to_owned()));
        }
        let ours = file.metadata().map_err(failed("the socket's lock cannot be read"))?;
        if fs::metadata(&name).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
    Err(SocketError::InUse(path.to_owned()))
}

/// Removes the socket that a dead VM left. Called with the lock held.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |what| move |source: io::Error| SocketError::Io { path: path.to_owned(), what, source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("cannot be looked at")(e)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("what a dead VM left cannot be removed"))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        // it answers, or its backlog is full, or it is somebody else's: not ours to replace
        _ => Err(SocketError::InUse(path.to_owned())),
    }
}

/// A listening socket that is 0600 from its first instant: Linux gives the file the mode of the unbound socket.
fn listen_privately(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |what| move |e: nix::errno::Errno| SocketError::Io { path: path.to_owned(), what, source: e.into() };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed("no socket"))?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("no socket"))?;
    let address = UnixAddr::new(path).map_err(failed("not an address"))?;
    bind(fd.as_raw_fd(), &address).map_err(failed("a socket cannot be made there"))?;
    let backlog = Backlog::new(BACKLOG).map_err(failed("no socket"))?;
    listen(&fd, backlog).map_err(failed("cannot be listened on"))?;
    Ok(UnixListener::from(fd))
}

/// Makes `dir` with mode 0700, or sees that it is ours alone: anybody can make names in /tmp.
#[expect(clippy::disallowed_methods, reason = "sockets are gone after a power loss, too")]
fn make_private_dir(dir: &Path) -> Result<(), SocketError> {
    let io = |what| move |source: io::Error| SocketError::Io { path: dir.to_owned(), what, source };
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(io("the directory for sockets cannot be made")(e));
        }
        _ => {}
    }
    check_private_dir(dir)
}

/// Sees that [`default_dir`], if it exists, is ours: what answers in somebody else's is not our VM.
///
/// # Errors
/// It belongs to somebody else, is no directory, or others may write to it.
pub fn check_default_dir() -> Result<(), SocketError> {
    match check_private_dir(&default_dir()) {
        Err(SocketError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn check_private_dir(dir: &Path) -> Result<(), SocketError> {
    let unreadable = |source| SocketError::Io { path: dir.to_owned(), what: "cannot be looked at", source };
    let metadata = fs::symlink_metadata(dir).map_err(unreadable)?;
    let wrong = |what| Err(SocketError::UnsafeDirectory { path: dir.to_owned(), what });
    if !metadata.is_dir() {
        return wrong("is no directory");
    }
    if metadata.uid() != nix::unistd::getuid().as_raw() {
        return wrong("belongs to another user");
    }
    if metadata.mode() & 0o022 != 0 {
        return wrong("others may write to it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn the_directory_of_sockets_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ours = dir.path().join("ours");
        make_private_dir(&ours).unwrap();
        assert_eq!(fs::metadata(&ours).unwrap().mode() & 0o777, 0o700);
        make_private_dir(&ours).expect("a second time");
        fs::set_permissions(&ours, fs::Permissions::from_mode(0o777)).unwrap();
        let line = make_private_dir(&ours).unwrap_err().to_string();
        assert!(line.ends_with("others may write to it; remove it or set XDG_RUNTIME_DIR"), "{line}");
        let link = dir.path().join("link");
        symlink("/tmp", &link).unwrap();
        assert!(make_private_dir(&link).unwrap_err().to_string().contains("is no directory"));
        if !nix::unistd::getuid().is_root() {
            assert!(make_private_dir(Path::new("/")).unwrap_err().to_string().contains("belongs to another user"));
        }
    }
}
