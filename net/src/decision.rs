//! Intents and decisions about a network's cuts, as files of one directory on one host.
//!
//! ```text
//! LINEAGE/   000007.intent      cut 7 was begun
//!            000007             its decision: the manifest, which is the commit; or "ABORT" and the reason
//! ```
//!
//! Invariants: each file is written once, and of all who write it, one does: see [`write_once`]. A lineage has a
//! directory of its own, so that a coordinator of an older life decides nothing of a newer one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ckvmm_snapshot::write_once;

use crate::coordinator::Decision;
use crate::packet::Colour;
use crate::{Error, Result};

/// Largest decision, bytes.
const DECISION_BYTES_MAX: u64 = 16 << 20;
/// Most names that are looked at in a directory of decisions.
const NAMES_MAX: usize = 1 << 20;

const ABORT: &[u8] = b"ABORT";
const INTENT: &str = ".intent";

/// The decisions of a lineage.
#[derive(Debug, Clone)]
pub struct Decisions {
    directory: PathBuf,
}

impl Decisions {
    /// Those in `directory`, which exists and is the lineage's own.
    pub fn new(directory: impl Into<PathBuf>) -> Decisions {
        Decisions { directory: directory.into() }
    }

    /// Records that a cut begins; `false` if somebody has recorded that before. Durable either way.
    ///
    /// # Errors
    /// [`Error::Store`]; it may then be recorded.
    pub fn record_intent(&self, cut: Colour) -> Result<bool> {
        Ok(write_once(&self.intent(cut), b"")?)
    }

    /// Writes the decision that a cut is a checkpoint, with its manifest; returns what is decided, by whomever. Durable
    /// either way.
    ///
    /// # Errors
    /// [`Error::Store`]; it may then be decided. [`Error::Decision`] if it cannot be read.
    pub fn commit(&self, cut: Colour, manifest: &[u8]) -> Result<Decision> {
        assert!(!manifest.starts_with(ABORT) && !manifest.is_empty(), "a manifest is told from an abort");
        self.decide(cut, manifest, Decision::Commit)
    }

    /// Writes the decision that a cut is none; returns what is decided, as [`Decisions::commit`] does.
    ///
    /// # Errors
    /// As there.
    pub fn abort(&self, cut: Colour, reason: &str) -> Result<Decision> {
        self.decide(cut, &[ABORT, b" ", reason.as_bytes(), b"\n"].concat(), Decision::Abort)
    }

    /// What is decided about a cut, if anything is.
    ///
    /// # Errors
    /// [`Error::Decision`] if it cannot be read.
    pub fn read(&self, cut: Colour) -> Result<Option<Decision>> {
        Ok(self
            .content(cut)?
            .map(|content| if content.starts_with(ABORT) { Decision::Abort } else { Decision::Commit }))
    }

    /// The manifest of a cut that is a checkpoint.
    ///
    /// # Errors
    /// [`Error::Decision`] if it cannot be read.
    pub fn manifest(&self, cut: Colour) -> Result<Option<Vec<u8>>> {
        Ok(self.content(cut)?.filter(|content| !content.starts_with(ABORT)))
    }

    /// The newest cut that was begun, with its decision, if there is one: what a coordinator takes over.
    ///
    /// # Errors
    /// [`Error::Decision`] if it cannot be read.
    pub fn newest(&self) -> Result<Option<(Colour, Option<Decision>)>> {
        let newest = self.cuts()?.into_iter().max();
        newest.map(|cut| Ok((cut, self.read(cut)?))).transpose()
    }

    /// Removes what is older than `cut`, and what interrupted writes of it left. The newest stays: its number is not
    /// to be used again.
    ///
    /// # Errors
    /// [`Error::Decision`] if it cannot be.
    pub fn forget_before(&self, cut: Colour) -> Result<()> {
        for name in self.names()? {
            if cut_of(name.trim_start_matches('.')).is_some_and(|of| of < cut) {
                let path = self.directory.join(name);
                fs::remove_file(&path).map_err(|source| Error::Decision { path, source })?;
            }
        }
        Ok(())
    }

    fn decide(&self, cut: Colour, content: &[u8], wish: Decision) -> Result<Decision> {
        if write_once(&self.decision(cut), content)? {
            return Ok(wish);
        }
        let lost = || io::Error::new(io::ErrorKind::NotFound, "it was there and is gone");
        self.read(cut)?.ok_or_else(|| Error::Decision { path: self.decision(cut), source: lost() })
    }

    fn content(&self, cut: Colour) -> Result<Option<Vec<u8>>> {
        let path = self.decision(cut);
        match read_bounded(&path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Decision { path, source }),
        }
    }

    fn cuts(&self) -> Result<Vec<Colour>> {
        let names = self.names()?;
        Ok(names.iter().filter(|name| name.ends_with(INTENT)).filter_map(|name| cut_of(name)).collect())
    }

    fn names(&self) -> Result<Vec<String>> {
        let names = || -> io::Result<Vec<String>> {
            let entries = fs::read_dir(&self.directory)?.take(NAMES_MAX);
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        names().map_err(|source| Error::Decision { path: self.directory.clone(), source })
    }

    fn decision(&self, cut: Colour) -> PathBuf {
        self.directory.join(format!("{:06}", cut.0))
    }

    fn intent(&self, cut: Colour) -> PathBuf {
        self.directory.join(format!("{:06}{INTENT}", cut.0))
    }
}

/// The cut that a file is about. What does not begin with a number is nobody's.
fn cut_of(name: &str) -> Option<Colour> {
    name.split('.').next()?.parse().ok().map(Colour)
}

/// Written by [`write_once`], a decision is never empty: what is, a disk has lost.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(DECISION_BYTES_MAX + 1).read_to_end(&mut content)?;
    match content.len() as u64 {
        1..=DECISION_BYTES_MAX => Ok(content),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty or far too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Colour = Colour(7);

    fn decisions() -> (tempfile::TempDir, Decisions) {
        let directory = tempfile::tempdir().unwrap();
        let decisions = Decisions::new(directory.path());
        (directory, decisions)
    }

    #[test]
    fn the_first_decision_is_what_all_learn() {
        let (_directory, decisions) = decisions();
        assert_eq!(decisions.read(CUT).unwrap(), None);
        assert_eq!(decisions.commit(CUT, b"{}").unwrap(), Decision::Commit);
        assert_eq!(decisions.abort(CUT, "too late").unwrap(), Decision::Commit);
        assert_eq!(decisions.manifest(CUT).unwrap().unwrap(), b"{}");
        let next = Colour(8);
        assert_eq!(decisions.abort(next, "node 1: no space").unwrap(), Decision::Abort);
        assert_eq!(decisions.commit(next, b"{}").unwrap(), Decision::Abort);
        assert_eq!((decisions.read(next).unwrap(), decisions.manifest(next).unwrap()), (Some(Decision::Abort), None));
    }

    #[test]
    fn an_intent_is_one_s_own() {
        let (_directory, decisions) = decisions();
        assert_eq!(decisions.newest().unwrap(), None);
        assert!(decisions.record_intent(Colour(9)).unwrap());
        assert!(decisions.record_intent(Colour(1_000_000)).unwrap());
        assert!(!decisions.record_intent(Colour(9)).unwrap());
        assert_eq!(decisions.newest().unwrap(), Some((Colour(1_000_000), None)), "by number, not by name");
        decisions.abort(Colour(1_000_000), "").unwrap();
        assert_eq!(decisions.newest().unwrap(), Some((Colour(1_000_000), Some(Decision::Abort))));
    }

    #[test]
    fn what_is_forgotten_is_older() {
        let (directory, decisions) = decisions();
        for cut in 6..=8 {
            decisions.record_intent(Colour(cut)).unwrap();
            decisions.commit(Colour(cut), b"{}").unwrap();
        }
        fs::write(directory.path().join(".000006.left-by-a-crash"), "").unwrap();
        fs::write(directory.path().join("notes"), "somebody's").unwrap();
        decisions.forget_before(Colour(8)).unwrap();
        let mut names = decisions.names().unwrap();
        names.sort();
        assert_eq!(names, ["000008", "000008.intent", "notes"]);
    }

    #[test]
    fn a_decision_that_a_disk_has_lost_is_no_decision() {
        let (directory, decisions) = decisions();
        fs::write(directory.path().join("000007"), "").unwrap();
        let error = decisions.read(CUT).unwrap_err().to_string();
        assert!(error.contains("000007") && error.contains("empty"), "{error}");
        assert!(decisions.commit(CUT, b"{}").is_err());
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_decided() {
        let decisions = Decisions::new("/proc/self");
        assert!(decisions.record_intent(CUT).is_err());
        assert!(decisions.abort(CUT, "").is_err());
    }
}
