//! How `ckvmm network checkpoint`, `status` and `down` reach the supervisor: a socket in its state directory, a line of
//! JSON each way.
//!
//! Invariant: a client that says nothing, or too much, costs a thread and no more.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context as _, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::message::Fault;
use super::supervisor::Event;
use crate::error::{Error, Result};

const SOCKET: &str = "control.sock";
/// Longest question, bytes.
const QUESTION_MAX: u64 = 4096;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Make a checkpoint; the answer is its directory.
    Checkpoint,
    /// How is everybody?
    Status,
    /// Press all power buttons.
    Down,
    /// End all VMs.
    Kill,
    /// Let something go wrong with links.
    Fault(Option<LinkName>, Fault),
    /// Capture what goes over them to this new file; without one, end that.
    Capture(LinkName, Option<PathBuf>),
}

/// Links of a node, as they are named on a command line: `NODE:PEER`, or `NODE` for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkName {
    /// The node at one end.
    pub node: String,
    /// The one at the other.
    pub peer: Option<String>,
}

/// The answer: a value, or the line of an error.
pub type Answer = std::result::Result<Value, String>;

/// Listens in the state directory `state`.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(state: &Path, events: &Sender<Event>) -> Result<()> {
    let failed = |source| Error::Io { path: state.join(SOCKET), what: "cannot be listened on", source };
    let _ = fs::remove_file(state.join(SOCKET));
    let listener = at(state, |path| UnixListener::bind(path)).map_err(failed)?;
    let events = events.clone();
    let serve = move || {
        for client in listener.incoming().filter_map(io::Result::ok) {
            let events = events.clone();
            // A client that cannot be served is gone when this is.
            let _ = thread::Builder::new().spawn(move || answer(&client, &events));
        }
    };
    thread::Builder::new().name("control".into()).spawn(serve).map_err(Error::os("starting a thread"))?;
    Ok(())
}

fn answer(mut client: &UnixStream, events: &Sender<Event>) -> Option<()> {
    let mut line = String::new();
    BufReader::new(client.take(QUESTION_MAX)).read_line(&mut line).ok()?;
    let verb: Verb = serde_json::from_str(&line).ok()?;
    let (reply, answer) = mpsc::channel();
    events.send(Event::Asked(verb, reply)).ok()?;
    let answer: Answer = answer.recv().unwrap_or_else(|_| Err("the network is ending; there is no answer".into()));
    let mut line = serde_json::to_vec(&answer).ok()?;
    line.push(b'\n');
    client.write_all(&line).ok()
}

/// Asks the supervisor whose state is in `state`.
///
/// # Errors
/// There is none, or it says no.
pub fn ask(state: &Path, verb: Verb) -> anyhow::Result<Value> {
    let nobody = || format!("{}: no network runs there; start one with `ckvmm network up`", state.display());
    let mut stream = at(state, |path| UnixStream::connect(path)).with_context(nobody)?;
    writeln!(stream, "{}", serde_json::to_string(&verb)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let answer: Answer = serde_json::from_str(&line).with_context(nobody)?;
    answer.map_err(|line| anyhow!(line))
}

/// The state directory of the one network that runs from the current directory.
///
/// # Errors
/// There is none, or there are several.
pub fn find_state(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given);
    }
    let running = states_here()?.into_iter().filter(|dir| at(dir, |path| UnixStream::connect(path)).is_ok());
    match <[PathBuf; 1]>::try_from(running.collect::<Vec<_>>()) {
        Ok([one]) => Ok(one),
        Err(none) if none.is_empty() => Err(anyhow!(
            "the current directory: no network runs from here; go where its state directory is, or give --state"
        )),
        Err(several) => {
            let names: Vec<_> = several.iter().map(|dir| dir.display().to_string()).collect();
            Err(anyhow!(
                "the current directory: several networks run from here; give --state, one of {}",
                names.join(", ")
            ))
        }
    }
}

/// The state directory of the one network in the current directory that has run and has no supervisor.
///
/// # Errors
/// There is none, or there are several.
pub fn find_orphan(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given);
    }
    let alone = |dir: &PathBuf| super::supervisor::has_run(dir) && at(dir, |path| UnixStream::connect(path)).is_err();
    let orphans: Vec<PathBuf> = states_here()?.into_iter().filter(alone).collect();
    let one = <[PathBuf; 1]>::try_from(orphans);
    let [one] = one.map_err(|found| {
        let found = if found.is_empty() { "no network here lacks" } else { "several networks here lack" };
        anyhow!("the current directory: {found} a supervisor; give --state DIR")
    })?;
    Ok(one)
}

/// What may be state directories in the current directory.
fn states_here() -> anyhow::Result<Vec<PathBuf>> {
    let names = fs::read_dir(".").context("the current directory: cannot be listed; give --state")?;
    Ok(names.filter_map(|entry| Some(entry.ok()?.path())).collect())
}

/// A socket's address is short; a path by way of an open directory is, too.
fn at<T>(state: &Path, make: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    // What is no directory is not opened: a FIFO would be waited for.
    let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(state)?;
    make(&PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(SOCKET))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_fifo_among_what_may_be_state_directories_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let (done, opened) = mpsc::channel();
        thread::spawn(move || done.send(at(&fifo, |path| UnixStream::connect(path)).is_ok()));
        assert_eq!(opened.recv_timeout(Duration::from_secs(10)), Ok(false), "it waits for somebody who writes");
    }
}
