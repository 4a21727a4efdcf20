//! A file that is written once: of all who write it, one does, and all know which content it has.
//!
//! ```text
//! .NAME.UUID, fsync │ link(2) to NAME, the one step │ .NAME.UUID goes │ fsync the directory
//! ```
//!
//! Invariant: NAME has all of its content from the moment it exists, and is durable before anybody is told of it, who
//! came too late included. link(2) replaces nothing, so what was written first stays.

use std::path::Path;

use uuid::Uuid;

use crate::copy::make_with;
use crate::error::{Error, Result};
use crate::files;
use crate::staged::write_all;

/// Writes the file `path`, private to its owner, unless it exists: then returns `false`. Either way it is durable.
///
/// # Errors
/// [`Error::NoSpace`], [`Error::Io`] and others of the file system. The file may then have come to exist: only reading
/// it, or writing it again, tells.
pub fn write_once(path: &Path, bytes: &[u8]) -> Result<bool> {
    let parent = files::directory_of(path);
    if path.symlink_metadata().is_ok() {
        files::sync_dir(parent)?;
        return Ok(false);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}", Uuid::new_v4()));
    let linked = make_with(&temporary, |file| {
        write_all(file, &temporary, bytes)?;
        files::sync(file, &temporary)?;
        match files::link(file, path) {
            Err(Error::Exists { .. }) => Ok(false),
            other => other.map(|()| true),
        }
    })?;
    // One that stays costs a name.
    let _ = files::remove(&temporary);
    files::sync_dir(parent)?;
    Ok(linked)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::fault::{Fault, with};

    #[test]
    fn the_first_content_stays() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("decision");
        assert!(write_once(&path, b"first").expect("writes"));
        let (second, steps) = with(Fault::None, || write_once(&path, b"second"));
        assert!(!second.expect("looks"));
        assert_eq!(std::fs::read(&path).expect("read"), b"first");
        assert_eq!(std::fs::read_dir(&directory).expect("list").count(), 1, "nothing else stays");
        let operations: Vec<_> = steps.iter().map(|step| step.operation).collect();
        assert_eq!(operations, ["sync_dir"], "who comes late makes durable what is there");
    }

    #[test]
    fn content_is_durable_before_the_name_and_the_name_before_the_answer() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("decision");
        let (_, steps) = with(Fault::None, || write_once(&path, b"content"));
        let operations: Vec<_> = steps.iter().map(|step| step.operation).collect();
        assert_eq!(operations, ["create", "write", "sync", "link", "remove", "sync_dir"]);
    }

    #[test]
    fn whatever_fails_and_wherever_it_dies_the_file_is_whole_or_not_there() {
        for fault in [|at| Fault::Fail(at, libc::ENOSPC), Fault::Die] {
            let mut seen = Vec::new();
            for at in 0..6 {
                let directory = tempfile::tempdir().expect("directory");
                let path = directory.path().join("decision");
                let (result, _) = with(fault(at), || write_once(&path, b"content"));
                assert!(result.is_err() || path.exists());
                if path.exists() {
                    assert_eq!(std::fs::read(&path).expect("read"), b"content");
                }
                seen.push(path.exists());
                assert_eq!(write_once(&path, b"later").expect("writes"), !seen[at], "operation {at}");
            }
            assert_eq!(seen, [false, false, false, false, true, true], "it exists from the link on");
        }
    }

    #[test]
    fn of_many_at_once_one_writes() {
        const WRITERS: usize = 8;
        let directory = tempfile::tempdir().expect("directory");
        for round in 0..20 {
            let path = directory.path().join(round.to_string());
            let barrier = Barrier::new(WRITERS);
            let write = |writer: usize| {
                barrier.wait();
                write_once(&path, writer.to_string().as_bytes()).expect("writes").then_some(writer)
            };
            let wrote: Vec<usize> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
                threads.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect()
            });
            assert_eq!(wrote.len(), 1, "{wrote:?}");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), wrote[0].to_string());
        }
    }
}
