//! The directory of a network's checkpoints.
//!
//! ```text
//! STORE/000042/            made when the cut is begun: the intent
//!     .cut                 it is of a cut: what has neither this nor a manifest is somebody else's
//!     NODE/                a node's image, whole
//!     manifest.json        written once: the commit; or empty, until it is swept: the abort
//! STORE/.network.lock      held by the supervisor that makes checkpoints here; the number of its newest cut
//! ```
//!
//! Invariants: a directory is begun by one coordinator, and of all who decide about it one does, see [`write_once`]. A
//! number is not used again. What is not committed is swept by the next supervisor, which holds the lock.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt as _, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use ckvmm_net::Colour;
use ckvmm_net::coordinator::Decision;
use ckvmm_snapshot::{Store, make_dirs, write_once};
use uuid::Uuid;

use super::manifest::{self, ABORT, Manifest, NAME};
use crate::error::{Error, Result};
use crate::host::{self, terminal::say};

const LOCK: &str = ".network.lock";
/// The file of a directory that says that it was made for a cut.
const MARK: &str = ".cut";
/// A number is read from a file: no more of it than this.
const NUMBER_BYTES_MAX: usize = 20;

/// A store that this process has for itself.
#[derive(Debug)]
pub struct NetStore {
    path: PathBuf,
    /// The number of the checkpoint before the first cut.
    before: u64,
    /// Its content is the number of the newest cut, for a supervisor that takes over.
    lock: File,
}

/// The newest cut that was begun, and what is decided about it, if anything is.
pub type Newest = (Colour, Option<Decision>);

/// Where the parts of a cut are.
pub fn directory(store: &Path, before: u64, cut: Colour) -> PathBuf {
    store.join(format!("{:06}", before + cut.0))
}

impl NetStore {
    /// Opens the store, makes it if it is not there, and removes what is not committed.
    ///
    /// # Errors
    /// It cannot be made, read or written, or another supervisor has it.
    pub fn open(path: &Path) -> Result<NetStore> {
        let failed =
            |source| io_error(path, "cannot hold checkpoints; mend that, or give another checkpoint.dir", source);
        make_dirs(path).map_err(failed)?;
        let lock = lock(&path.join(LOCK))?;
        let mut store = NetStore { path: path.into(), before: 0, lock };
        store.begin_life().map_err(failed)?;
        Ok(store)
    }

    /// Takes over from a supervisor that is gone, in whose life `before` was the number before the first cut; says which cut is
    /// the newest, and what is decided about it.
    ///
    /// # Errors
    /// It cannot be read or written, or another supervisor has it.
    pub fn take_over(path: &Path, before: u64) -> Result<(NetStore, Option<Newest>)> {
        let store = NetStore { path: path.into(), before, lock: lock(&path.join(LOCK))? };
        let failed = |source| io_error(path, "cannot be read; mend the file system", source);
        let there = numbers(path).map_err(failed)?.last().copied();
        let newest = store.noted().map_err(failed)?.max(there).filter(|newest| *newest > before);
        let newest = newest.map(|newest: u64| {
            let dir = path.join(format!("{newest:06}"));
            let decision = match fs::read(dir.join(NAME)) {
                Ok(bytes) if manifest::is_of_network(&bytes) => Some(Decision::Commit),
                Err(_) if dir.exists() => None,
                // It was aborted, and is perhaps removed; or it is somebody else's, and nobody can begin a cut of its number.
                _ => Some(Decision::Abort),
            };
            (Colour(newest - before), decision)
        });
        Ok((store, newest))
    }

    /// The last checkpoint of this life. A single VM's, which may be here too, is none.
    pub fn newest_committed(&self) -> Option<PathBuf> {
        let numbers = numbers(&self.path).unwrap_or_default().into_iter().rev();
        let dirs =
            numbers.take_while(|number| *number > self.before).map(|number| self.path.join(format!("{number:06}")));
        dirs.into_iter().find(|dir| manifest::is_one(dir))
    }

    /// Another life of the network begins, and no VM of the one before runs any more: what is not committed goes, and cuts
    /// are counted anew.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn begin_life(&mut self) -> io::Result<()> {
        let numbers = numbers(&self.path)?;
        for number in &numbers {
            let dir = self.path.join(format!("{number:06}"));
            match fs::read(dir.join(NAME)).map(|bytes| decision(&bytes)) {
                Ok(Decision::Commit) => {}
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    say(&format!("{}: left as it is, since its manifest cannot be read: {error}", dir.display()));
                }
                Err(_) if !is_of_a_cut(&dir) => {
                    say(&format!("{}: left as it is, since it is of no cut", dir.display()));
                }
                Ok(Decision::Abort) | Err(_) => {
                    if let Err(error) = remove(&dir) {
                        say(&format!("{}: no checkpoint, and cannot be removed: {error}", dir.display()));
                    }
                }
            }
        }
        if let Err(error) = Store::new(&self.path).sweep_staging() {
            say(&format!("what unfinished checkpoints left cannot be removed: {error}"));
        }
        self.before = numbers.last().copied().unwrap_or(0);
        Ok(())
    }

    /// The number of the newest cut that was ever intended here.
    fn noted(&self) -> io::Result<Option<u64>> {
        let mut noted = [0; NUMBER_BYTES_MAX];
        let bytes = self.lock.read_at(&mut noted, 0)?;
        Ok(str::from_utf8(&noted[..bytes]).ok().and_then(|text| text.trim().parse().ok()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the checkpoint before the first cut.
    pub fn before(&self) -> u64 {
        self.before
    }

    /// Where the parts of a cut are.
    pub fn directory(&self, cut: Colour) -> PathBuf {
        directory(&self.path, self.before, cut)
    }

    /// Records that a cut is begun, durably; `false` if somebody else has.
    ///
    /// # Errors
    /// It cannot be, or something else has its number: the next cut has another one.
    #[expect(clippy::disallowed_methods, reason = "its name is made durable when the number is noted")]
    pub fn begin(&self, cut: Colour) -> Result<bool> {
        let dir = self.directory(cut);
        let failed = |source| io_error(&dir, "cannot be made; make room, or mend the file system", source);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists && is_of_a_cut(&dir) => return Ok(false),
            other => other.map_err(failed)?,
        }
        File::create(dir.join(MARK)).map_err(failed)?;
        // Always as long: where there is no room any more, there is room for this.
        let number = format!("{:020}", self.before + cut.0);
        self.lock.write_all_at(number.as_bytes(), 0).map_err(failed)?;
        File::open(&self.path).and_then(|store| store.sync_all()).map_err(failed)?;
        Ok(true)
    }

    /// Commits a cut, unless it is aborted; says what is decided.
    ///
    /// # Errors
    /// It may be decided or not.
    pub fn commit(&self, cut: Colour, manifest: &Manifest) -> Result<Decision> {
        let dir = self.directory(cut);
        // The names of the parts, before what says that they are there.
        let sync = File::open(&dir).and_then(|dir| dir.sync_all());
        sync.map_err(|source| io_error(&dir, "cannot be made durable; mend the file system", source))?;
        let decided = self.decide(&dir, manifest.encode().as_bytes())?;
        if decided == Decision::Commit {
            self.point_latest_at(&dir);
        }
        Ok(decided)
    }

    /// Aborts a cut, unless it is committed; says what is decided. What there is of an aborted one goes.
    ///
    /// # Errors
    /// It may be decided or not.
    pub fn abort(&self, cut: Colour) -> Result<Decision> {
        let dir = self.directory(cut);
        let failed = |source| io_error(&dir, "cannot be looked at; mend the file system", source);
        if dir.try_exists().map_err(failed)? && !is_of_a_cut(&dir) {
            // Somebody else's: nobody can begin a cut of its number.
            return Ok(Decision::Abort);
        }
        // One that nobody has begun, or whose beginning failed, is nobody's from now on.
        self.begin(cut)?;
        let decided = self.decide(&dir, ABORT)?;
        if decided == Decision::Abort {
            // What stays is no checkpoint, and is swept.
            let _ = remove(&dir);
        }
        Ok(decided)
    }

    fn decide(&self, dir: &Path, bytes: &[u8]) -> Result<Decision> {
        let path = dir.join(NAME);
        if write_once(&path, bytes)? {
            return Ok(decision(bytes));
        }
        let there =
            fs::read(&path).map_err(|source| io_error(&path, "cannot be read; mend the file system", source))?;
        Ok(decision(&there))
    }

    /// Only a hint: that it cannot be made is no matter.
    fn point_latest_at(&self, dir: &Path) {
        let temporary = self.path.join(format!(".latest-{}", Uuid::new_v4()));
        if symlink(dir.file_name().unwrap_or_default(), &temporary).is_ok() {
            let _ = fs::rename(&temporary, self.path.join("latest"));
        }
    }
}

/// Takes the lock that is the file `path`.
///
/// # Errors
/// It cannot be made, or somebody else holds it.
pub fn lock(path: &Path) -> Result<File> {
    let failed =
        |source| io_error(path, "cannot be locked; stop the network that uses it, or use another directory", source);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match host::lock::take(&file).map_err(failed)? {
        true => Ok(file),
        false => Err(failed(io::Error::other("a running network has it"))),
    }
}

/// Removes the oldest checkpoints of networks beyond the newest `keep`, of the network `name` if one is given, and returns
/// where they were. One that is damaged stays, and counts for nothing. What the others have of those that go stays with
/// them.
///
/// # Errors
/// The first that cannot be removed.
pub fn prune(store: &Path, name: Option<&str>, keep: usize) -> Result<Vec<PathBuf>> {
    let failed = |source| io_error(store, "cannot be listed; name a directory of checkpoints", source);
    let dirs = numbers(store).map_err(failed)?.into_iter().map(|number| store.join(format!("{number:06}")));
    let is_meant =
        |dir: &PathBuf| Manifest::load(dir).is_ok_and(|manifest| name.is_none_or(|name| *manifest.name == *name));
    let mut old: Vec<PathBuf> = dirs.filter(is_meant).collect();
    old.truncate(old.len().saturating_sub(keep));
    for dir in &old {
        remove(dir).map_err(|source| io_error(dir, "cannot be removed; mend the file system", source))?;
    }
    Ok(old)
}

/// All numbers in use in a store, in order.
fn numbers(store: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(store)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_digit()) {
            numbers.extend(name.parse::<u64>().ok());
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whether nothing is lost with a directory that has no manifest: a crash may come before the mark is made.
fn is_of_a_cut(dir: &Path) -> bool {
    dir.join(MARK).exists() || fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// What a file with this content decides.
fn decision(bytes: &[u8]) -> Decision {
    if bytes == ABORT { Decision::Abort } else { Decision::Commit }
}

/// Removes a checkpoint; it is whole or has a name that is swept. What cannot be removed now is swept at the next start.
fn remove(dir: &Path) -> io::Result<()> {
    let doomed = dir.with_file_name(format!(".STAGING-{}", Uuid::new_v4()));
    fs::rename(dir, &doomed)?;
    fs::remove_dir_all(&doomed)
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> Error {
    Error::Io { path: path.into(), what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_somebody_else_s_costs_the_cut_of_its_number_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = NetStore::open(dir.path()).unwrap();
        fs::create_dir(dir.path().join("000001")).unwrap();
        fs::write(dir.path().join("000001/result"), "42").unwrap();
        let error = store.begin(Colour(1)).unwrap_err().to_string();
        assert!(error.contains("000001: cannot be made"), "{error}");
        assert_eq!(store.abort(Colour(1)).unwrap(), Decision::Abort);
        assert_eq!(fs::read_to_string(dir.path().join("000001/result")).unwrap(), "42", "and stays where it is");
        assert!(store.begin(Colour(2)).unwrap());
        assert!(!store.begin(Colour(2)).unwrap(), "another supervisor has begun it");
        assert_eq!(store.abort(Colour(2)).unwrap(), Decision::Abort);
        assert_eq!(store.abort(Colour(3)).unwrap(), Decision::Abort, "nobody has begun it");
        let before = store.before();
        drop(store);
        let (_, newest) = NetStore::take_over(dir.path(), before).unwrap();
        assert_eq!(newest, Some((Colour(3), Some(Decision::Abort))), "and nobody will");
    }

    #[test]
    fn a_single_vm_s_checkpoint_is_no_cut_of_who_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = NetStore::open(dir.path()).unwrap();
        let before = store.before();
        assert!(store.begin(Colour(1)).unwrap());
        let own = store.directory(Colour(1));
        fs::write(own.join(NAME), "{\n  \"format\": \"ckvmm-network\",").unwrap();
        drop(store);
        let (store, newest) = NetStore::take_over(dir.path(), before).unwrap();
        assert_eq!(newest, Some((Colour(1), Some(Decision::Commit))));
        drop(store);
        fs::create_dir(dir.path().join("000002")).unwrap();
        fs::write(dir.path().join("000002").join(NAME), "{\n  \"format\": \"ckvmm\",").unwrap();
        let (store, newest) = NetStore::take_over(dir.path(), before).unwrap();
        assert_eq!(newest, Some((Colour(2), Some(Decision::Abort))), "nobody can begin a cut of its number");
        assert_eq!(store.newest_committed(), Some(own));
        assert!(dir.path().join("000002").exists(), "and stays where it is");
    }

    #[test]
    fn only_what_is_left_of_a_cut_of_its_own_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let there = |name: &str| dir.path().join(name).exists();
        let foreign = ["20261127/result", "000009/result"];
        for file in foreign {
            fs::create_dir(dir.path().join(file).parent().unwrap()).unwrap();
            fs::write(dir.path().join(file), "42").unwrap();
        }
        // A manifest that cannot be read.
        fs::create_dir_all(dir.path().join("000001").join(NAME)).unwrap();
        let mut store = NetStore::open(dir.path()).unwrap();
        assert!(store.begin(Colour(1)).unwrap());
        fs::create_dir(store.directory(Colour(1)).join("n-0")).unwrap();
        let open = store.directory(Colour(1));
        assert!(open.exists());
        fs::create_dir(dir.path().join("000002")).unwrap();
        store.begin_life().unwrap();
        assert!(!open.exists() && !there("000002"), "a cut that nobody decides any more");
        assert!(there("000001"), "it may be a checkpoint");
        assert!(foreign.into_iter().all(there));
    }
}
