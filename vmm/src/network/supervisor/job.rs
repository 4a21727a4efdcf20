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
use std::thread;

use ckvmm_net::Node;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::unistd::pipe2;

use super::{Event, Supervisor, Terms};
use crate::config::Id;
use crate::error::{Error, Result};
use crate::host::state_dir::CONSOLE_LOG;
use crate::host::terminal::say;
use crate::network::job::Ear;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// A job of which is waited for the end.
#[derive(Debug)]
pub(super) struct Followed {
    on: Id,
    /// Where it runs.
    node: Node,
    /// Bytes of the console's log before this life.
    pub(super) from: u64,
    /// While this is open, its VM runs.
    runs: Option<OwnedFd>,
    /// How it has ended: by itself with a status, or with its VM.
    pub(super) verdict: Option<Option<u8>>,
}

impl Followed {
    /// Begins to follow the console's log `log`, from this byte or its present end on.
    ///
    /// # Errors
    /// It cannot be read.
    fn start(
        (on, node): (Id, Node),
        log: &Path,
        from: Option<u64>,
        ear: Ear,
        tell: impl Fn(Option<u8>) + Send + 'static,
    ) -> Result<Followed> {
        let what = "the console cannot be followed; mend that or give another state directory";
        let failed = |source| Error::Io { path: log.into(), what, source };
        let mut file = OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(log).map_err(failed)?;
        let from = file.seek(from.map_or(SeekFrom::End(0), SeekFrom::Start)).map_err(failed)?;
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let changes = changes.map_err(|errno| failed(errno.into()))?;
        changes.add_watch(log, AddWatchFlags::IN_MODIFY).map_err(|errno| failed(errno.into()))?;
        let (over, runs) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
        // The first look finds what is there already.
        let follow = move || tell(follow(file, &changes, &over, ear).unwrap_or(None));
        thread::Builder::new().name("job".into()).spawn(follow).map_err(Error::os("starting a thread"))?;
        Ok(Followed { on, node, from, runs: Some(runs), verdict: None })
    }

    /// The VM has ended: no more will be said.
    fn ended(&mut self) {
        self.runs = None;
    }
}

impl Terms {
    pub(super) fn has_job_on(&self, node: &Id) -> bool {
        self.job.as_ref().is_some_and(|job| job.on == *node)
    }
}

impl Supervisor {
    /// Follows the job in this life, before its node says anything: there is none if that is off. `begun` if it may have
    /// begun before. `from` is where its console's log is read from; absent: from its end.
    pub(super) fn follow(&mut self, on: Option<usize>, begun: bool, from: Option<u64>) -> Result<()> {
        self.job = None;
        let (Some(job), Some(node)) = (&self.terms.job, on) else { return Ok(()) };
        let log = self.state.join(&*job.on).join(CONSOLE_LOG);
        let (life, events) = (self.incarnation, self.sender.clone());
        // A supervisor that has ended needs no verdict.
        let tell = move |verdict| drop(events.send(Event::Job(life, verdict)));
        self.job = Some(Followed::start((job.on.clone(), Node(node as u16)), &log, from, Ear::new(begun), tell)?);
        Ok(())
    }

    /// A node's process has ended, and the job with it if it ran there, unless it goes on in another life.
    pub(super) fn job_is_over_on(&mut self, node: Node) {
        if !self.goes_back {
            self.job.iter_mut().filter(|job| job.node == node).for_each(Followed::ended);
        }
    }

    /// With the job, the network ends.
    pub(super) fn job_ended(&mut self, verdict: Option<u8>) {
        let Some(job) = &mut self.job else { return };
        job.verdict = Some(verdict);
        if verdict.is_none() && !self.stopped {
            say(&format!("{}: its VM ended, and did not say how the job did; see docs/network.md", job.on));
        }
        self.due = None;
        if !self.ending {
            self.end(Signal::SIGTERM);
        }
    }

    /// What the job has said last is not printed yet.
    pub(super) fn waits_for_job(&self) -> bool {
        !self.goes_back && self.job.as_ref().is_some_and(|job| job.verdict.is_none())
    }
}

fn follow(mut log: File, changes: &Inotify, over: &OwnedFd, mut ear: Ear) -> io::Result<Option<u8>> {
    let (mut said, mut output) = (vec![0; CHUNK], Vec::new());
    let mut wait = PollTimeout::ZERO;
    loop {
        let mut waited =
            [PollFd::new(changes.as_fd(), PollFlags::POLLIN), PollFd::new(over.as_fd(), PollFlags::POLLIN)];
        match poll(&mut waited, std::mem::replace(&mut wait, PollTimeout::NONE)) {
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
