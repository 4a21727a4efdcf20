//! A layer between this crate and the file system, for its tests: it records the operations of a thread in order, and
//! can fail one of them or, like a crash, let none happen from some point on. It can also keep a journal of all that
//! they changed.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use crate::change::Change;
use crate::crash::journal::{Journal, Mark, Op};

/// An operation and what it was to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) operation: &'static str,
    pub(crate) path: PathBuf,
}

/// What goes wrong, counting operations from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    None,
    /// The operation with this number fails with this errno and does nothing.
    Fail(usize, i32),
    /// The same in a child process, which counts on from where it was forked.
    FailInChild(usize, i32),
    /// The process dies before this operation: neither it nor any later one happens.
    Die(usize),
    /// This operation and what comes after it take for ever.
    Hang(usize),
}

#[derive(Debug)]
struct Layer {
    fault: Fault,
    steps: Vec<Step>,
    journal: Option<Journal>,
    process: u32,
}

/// Room made beforehand, since a forked writer takes steps too and cannot allocate.
const STEPS: usize = 1024;

thread_local! {
    static LAYER: RefCell<Option<Layer>> = const { RefCell::new(None) };
}

/// Runs `work` with `fault` and returns what it did.
pub(crate) fn with<T>(fault: Fault, work: impl FnOnce() -> T) -> (T, Vec<Step>) {
    let (result, layer) = under(fault, None, work);
    (result, layer.steps)
}

/// Runs `work` and returns all that it changed, everything in the directory `root`.
pub(crate) fn recorded<T>(root: &Path, work: impl FnOnce() -> T) -> (T, Vec<Op>) {
    let (result, layer) = under(Fault::None, Some(Journal::new(root)), work);
    (result, layer.journal.expect("it was put there").into_ops())
}

fn under<T>(fault: Fault, journal: Option<Journal>, work: impl FnOnce() -> T) -> (T, Layer) {
    let layer = Layer { fault, steps: Vec::with_capacity(STEPS), journal, process: std::process::id() };
    LAYER.set(Some(layer));
    let result = work();
    (result, LAYER.take().expect("nobody else takes it"))
}

/// Notes in the journal how far the run is.
pub(crate) fn mark(mark: Mark) {
    LAYER.with_borrow_mut(|layer| {
        if let Some(journal) = layer.as_mut().and_then(|layer| layer.journal.as_mut()) {
            journal.mark(mark);
        }
    });
}

/// Does `operation`, which makes `change`; see [`crate::files`].
pub(crate) fn perform<T>(change: Change<'_>, operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    step(change.name(), change.path())?;
    let result = operation()?;
    LAYER.with_borrow_mut(|layer| match layer {
        // A child has a copy of the journal, and cannot allocate.
        Some(Layer { journal: Some(journal), process, .. }) if *process == std::process::id() => journal.note(change),
        _ => {}
    });
    Ok(result)
}

fn step(operation: &'static str, path: &Path) -> io::Result<()> {
    LAYER.with_borrow_mut(|layer| {
        let Some(layer) = layer else { return Ok(()) };
        let now = layer.steps.len();
        layer.steps.push(Step { operation, path: path.to_path_buf() });
        let in_child = layer.process != std::process::id();
        match layer.fault {
            Fault::Fail(at, errno) if at == now && !in_child => Err(io::Error::from_raw_os_error(errno)),
            Fault::FailInChild(at, errno) if at == now && in_child => Err(io::Error::from_raw_os_error(errno)),
            Fault::Die(at) if at <= now && !in_child => Err(io::Error::from_raw_os_error(libc::EIO)),
            Fault::Hang(at) if at <= now => loop {
                std::thread::park();
            },
            _ => Ok(()),
        }
    })
}
