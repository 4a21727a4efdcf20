//! The files that hold a guest's disks, made as the program makes them. A copy that is durable is whole or not there;
//! and once a guest has been told that a flush is done, its disk is found under its name with what it has flushed.
//!
//! ```text
//! 1: a durable copy │ 2: a copy that is durable once the guest flushes │ 3: a copy with a note │ 4: the same, made anew
//! ```

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::journal::{Mark, Promises};
use super::scenario::scatter;
use crate::copy::{NotedCopy, copy_file, make_copy, rename_durably};
use crate::fault::mark;
use crate::files;
use crate::sparse::Named;

const BYTES: usize = 100_000;
/// Where the guest writes to the second.
const WRITTEN: u64 = 50_000;
/// Of the same length: a torn note must not be a whole one.
const NOTE: &str = "made from the first";
const OTHER_NOTE: &str = "made from the other";

fn disk() -> Vec<u8> {
    let mut disk = vec![0; BYTES];
    scatter(&mut disk[..30_000], 1);
    scatter(&mut disk[80_000..], 2);
    disk
}

fn other_disk() -> Vec<u8> {
    let mut disk = vec![0; BYTES];
    scatter(&mut disk[10_000..60_000], 5);
    disk
}

/// All that the journal is kept of.
pub(super) fn run(root: &Path) {
    let from = tempfile::tempfile().expect("file");
    from.write_all_at(&disk(), 0).expect("write");
    let label = Path::new("base");
    let name = |number: u64| root.join(number.to_string());
    let unfinished = root.join("unfinished");

    mark(Mark::Begun(1));
    copy_file(&from, label, &unfinished).expect("copies");
    rename_durably(&unfinished, &name(1)).expect("renames");
    mark(Mark::Committed(1));

    mark(Mark::Begun(2));
    make_copy(Named { file: &from, path: label }, BYTES as u64, &unfinished).expect("copies");
    rename_durably(&unfinished, &name(2)).expect("renames");
    let live = OpenOptions::new().write(true).open(name(2)).expect("open");
    files::write_at(&live, &[0xee; 512], WRITTEN).expect("the guest writes");
    files::sync(&live, &name(2)).expect("and flushes");
    mark(Mark::Committed(2));

    let other = tempfile::tempfile().expect("file");
    other.write_all_at(&other_disk(), 0).expect("write");
    let copy = NotedCopy { path: &root.join("noted"), unfinished: &unfinished, note: &root.join("note") };
    for (number, from, text) in [(3, &from, NOTE), (4, &other, OTHER_NOTE)] {
        mark(Mark::Begun(number));
        if number == 4 {
            // Who wants it anew gives the old one up.
            mark(Mark::Removing(3));
        }
        copy.make(|to| crate::copy_file(from, label, to).map(drop), text).expect("copies");
        mark(Mark::Committed(number));
    }
}

/// Sees that a copy is what the note beside it says.
fn check_noted(root: &Path, promises: &Promises) -> Result<(), String> {
    let promised = promises.must.iter().any(|number| *number > 2);
    let Ok(found) = fs::read(root.join("noted")) else {
        return if promised { Err("the noted copy is gone".into()) } else { Ok(()) };
    };
    let note = fs::read_to_string(root.join("note")).map_err(|error| format!("a copy without its note: {error}"))?;
    let wanted = match note.as_str() {
        NOTE if !promises.must.contains(&4) => disk(),
        OTHER_NOTE => other_disk(),
        _ => return Err(format!("a note that says {note:?}")),
    };
    if found == wanted { Ok(()) } else { Err(format!("it is not what the note {note:?} says")) }
}

/// Sees that what has a name is whole, and that what must have one does.
pub(super) fn check(root: &Path, promises: &Promises) -> Result<(), String> {
    for number in 1..=2 {
        let mut wanted = disk();
        if number == 2 {
            wanted[WRITTEN as usize..][..512].fill(0xee);
        }
        let promised = promises.must.contains(&number);
        let kept = match fs::read(root.join(number.to_string())) {
            Err(_) => !promised,
            // Nobody was told yet that anything is durable.
            Ok(_) if number == 2 && !promised => true,
            Ok(bytes) => bytes == wanted,
        };
        if !kept {
            return Err(format!("{number} is not what was promised"));
        }
    }
    check_noted(root, promises)
}
