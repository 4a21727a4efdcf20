//! Follows the console of the node that runs the network's job, by way of its log: prints what the job says, and hears
//! how it ends.
//!
//! Invariant: the verdict comes once, and after all that was said before it: when the node's VM ends, its log is read to
//! the end first.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc::Sender;
use std::thread;

use ckvmm_net::Node;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;

use super::{Event, Supervisor};
use crate::error::{Error, Result};
use crate::host::terminal::say;
use crate::network::job::{Ear, Job};

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// A job of which is waited for the end.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) job: Job,
    /// Where it runs.
    pub(super) node: Node,
    /// While this is open, its VM runs.
    runs: Option<OwnedFd>,
    /// How it has ended: by itself with a status, or with its VM.
    pub(super) verdict: Option<Option<u8>>,
}

impl Followed {
    /// Begins to follow the console's log `log`, from its present end on.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn start(job: Job, node: Node, log: &Path, ear: Ear, events: &Sender<Event>) -> Result<Followed> {
        let what = "the console cannot be followed; mend that or give another state directory";
        let failed = |source| Error::Io { path: log.into(), what, source };
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(log).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let changes = changes.map_err(|errno| failed(errno.into()))?;
        changes.add_watch(log, AddWatchFlags::IN_MODIFY).map_err(|errno| failed(errno.into()))?;
        let (over, runs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let events = events.clone();
        let follow = move || {
            let verdict = follow(file, &changes, &over, ear).unwrap_or(None);
            // A supervisor that has ended needs no verdict.
            drop(events.send(Event::Job(verdict)));
        };
        thread::Builder::new().name("job".into()).spawn(follow).map_err(Error::os("starting a thread"))?;
        Ok(Followed { job, node, runs: Some(runs), verdict: None })
    }

    /// The VM has ended: no more will be said.
    pub(super) fn ended(&mut self) {
        self.runs = None;
    }
}

impl Supervisor {
    /// A node's process has ended, and the job with it if it ran there.
    pub(super) fn ended(&mut self, node: Node, ended: ExitStatus) {
        if let Some(process) = &mut self.seats[node.index()].process {
            process.ended = Some(ended);
        }
        self.job.iter_mut().filter(|job| job.node == node).for_each(Followed::ended);
    }

    /// With the job, the network ends.
    pub(super) fn job_ended(&mut self, verdict: Option<u8>) {
        let Some(job) = &mut self.job else { return };
        job.verdict = Some(verdict);
        if verdict.is_none() && !self.stopped {
            say(&format!("{}: its VM ended, and did not say how the job did; see docs/network.md", job.job.on));
        }
        self.due = None;
        self.signal_all(Signal::SIGTERM);
    }

    /// What the job has said last is not printed yet.
    pub(super) fn waits_for_job(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.verdict.is_none())
    }
}

fn follow(mut log: File, changes: &Inotify, over: &OwnedFd, mut ear: Ear) -> io::Result<Option<u8>> {
    let (mut said, mut output) = (vec![0; CHUNK], Vec::new());
    loop {
        let mut waited =
            [PollFd::new(changes.as_fd(), PollFlags::POLLIN), PollFd::new(over.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let is_over = waited[1].any() == Some(true);
        // What has changed is seen by reading.
        drop(changes.read_events());
        let mut verdict = None;
        while verdict.is_none() {
            let read = log.read(&mut said)?;
            if read == 0 {
                break;
            }
            verdict = ear.hear(&said[..read], &mut output);
            print(&mut output);
        }
        if verdict.is_some() {
            return Ok(verdict);
        }
        if is_over {
            ear.end(&mut output);
            print(&mut output);
            return Ok(None);
        }
    }
}

/// Whoever read it may have gone; the job goes on.
fn print(output: &mut Vec<u8>) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(output).and_then(|()| stdout.flush());
    output.clear();
}
