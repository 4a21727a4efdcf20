//! Files that are written once. What somebody was told is written stays, whole, whoever wrote it.
//!
//! ```text
//! 1: one is written │ its writer dies before it is told │ 2: another finds what that one has written
//! ```

use std::fs;
use std::path::Path;

use super::journal::{Mark, Promises};
use crate::fault::mark;
use crate::files;
use crate::once::write_once;
use crate::staged::write_all;

/// Longer than what a file system writes at once.
const CONTENT: [u8; 9000] = [0xcc; 9000];

/// All that the journal is kept of.
pub(super) fn run(root: &Path) {
    let name = |number: u64| root.join(number.to_string());

    mark(Mark::Begun(1));
    assert!(write_once(&name(1), &CONTENT).expect("writes"));
    mark(Mark::Committed(1));

    mark(Mark::Begun(2));
    let unfinished = root.join(".2");
    let file = files::create(&unfinished).expect("creates");
    write_all(&file, &unfinished, &CONTENT).expect("writes");
    files::sync(&file, &unfinished).expect("flushes");
    files::link(&file, &name(2)).expect("links");
    assert!(!write_once(&name(2), b"something else").expect("looks"));
    mark(Mark::Committed(2));
}

/// Sees that what has a name is whole, and that what must have one does.
pub(super) fn check(root: &Path, promises: &Promises) -> Result<(), String> {
    for number in 1..=2 {
        let kept = match fs::read(root.join(number.to_string())) {
            Err(_) => !promises.must.contains(&number),
            Ok(bytes) => bytes == CONTENT,
        };
        if !kept {
            return Err(format!("{number} is not what was promised"));
        }
    }
    Ok(())
}
