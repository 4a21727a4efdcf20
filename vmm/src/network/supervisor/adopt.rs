//! A supervisor that takes over: the VMs of one that was killed run on, and are found by what it has written down.
//!
//! ```text
//! STATE/network.json              what the network is, written when a life of it begins
//! STATE/NODE/supervisor.sock      where a VM hears a supervisor, one at a time
//! STATE/NODE/left                 its guest is off; the status with which its VM has ended
//! ```
//!
//! Invariant: there is one supervisor, since it holds `network.lock` and the store's, and a VM listens to no second one while
//! it hears the first. Frames go on meanwhile: links are between VMs. A VM of which nobody can hear is ended: it would keep
//! its lock and its names for ever.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ckvmm_net::Node;
use ckvmm_net::coordinator::{Coordinator, Member};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::end::Ended;
use super::start::hear;
use super::state;
use super::terms::Terms;
use super::{Event, Heard, Process, Seat, Supervisor};
use crate::cli::ExitStatus;
use crate::config::Id;
use crate::error::{Error, Result};
use crate::host::terminal::say;
use crate::host::{self, signals::Signals, state_dir};
use crate::network::channel::Channel;
use crate::network::control;
use crate::network::failure::Failures;
use crate::network::member::LeftNote;
use crate::network::store::NetStore;

/// What is written down of a life of a network.
const RECORD: &str = "network.json";
/// How long VMs may take to listen: one that is being started copies its disks before.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often is looked whether one does.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    terms: Terms,
    lineage: Uuid,
    incarnation: u64,
    /// How often it has gone back by itself.
    restores: u32,
    store: PathBuf,
    /// The number of the checkpoint before the first cut.
    before: u64,
    /// The checkpoint that it began from.
    from: Option<PathBuf>,
    /// The instant that its guests go on from, and what of the time since then they do not see, once all were told to go.
    instant: Option<Timestamp>,
    less_ns: Option<i64>,
    /// Bytes of the job's console log before this life.
    job_from: Option<u64>,
    nodes: Vec<RecordedNode>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordedNode {
    name: Id,
    nic: Id,
    mac: [u8; 6],
    /// It has a VM in this life.
    is_on: bool,
}

/// True for the state of a network that has run.
pub fn has_run(state: &Path) -> bool {
    state.join(RECORD).is_file()
}

/// Takes over the VMs of the network with its state in `state`, and stays until it ends.
///
/// # Errors
/// It has a supervisor, or no VM of it runs any more.
pub fn adopt(state: &Path) -> anyhow::Result<ExitStatus> {
    let signals = Signals::block()?;
    let path = state.join(RECORD);
    let none = || format!("{}: of no network that has run; give its state directory", path.display());
    let record: Record = serde_json::from_slice(&fs::read(&path).with_context(none)?).with_context(none)?;
    let (state, _lock) = state::open(state)?;
    let (store, newest) = NetStore::take_over(&record.store, record.before)?;
    let failures = Failures::new(record.terms.on_failure, record.terms.max_restores, record.restores);
    let mut supervisor = Supervisor::new(record.terms, store, state, signals);
    supervisor.failures = failures;
    (supervisor.lineage, supervisor.incarnation) = (record.lineage, record.incarnation);
    // A job of a network that goes on from a checkpoint has begun before.
    let begun = record.from.is_some();
    supervisor.last = supervisor.store.newest_committed().or(record.from);
    supervisor.instant = record.instant;
    supervisor.less_ns = Some(record.less_ns.unwrap_or_else(|| supervisor.passed_ns()));
    let (mut members, until) = (Vec::new(), Instant::now() + PATIENCE);
    for (node, index) in record.nodes.into_iter().zip(0..) {
        let dir = supervisor.state.join(&*node.name);
        let is_on = node.is_on && !LeftNote::has_left(&dir);
        let process = if is_on { supervisor.reach(Node(index), &dir, until) } else { None };
        members.push(match &process {
            Some(_) => Member::On,
            None if is_on => Member::Lost,
            None => Member::Off,
        });
        let before = LeftNote::read(&dir);
        supervisor.seats.push(Seat { process, before, ..Seat::new(node.name, node.nic, node.mac) });
    }
    let running = members.iter().filter(|member| **member == Member::On).count();
    let mend = "`ckvmm network restore` continues its last checkpoint";
    ensure!(running > 0, "{}: no VM of the network runs any more; {mend}", supervisor.state.display());
    say(&format!("{}: {running} VMs taken over", supervisor.terms.name));
    let runs = |seat: &Seat| seat.process.is_some() && supervisor.terms.has_job_on(&seat.name);
    let on = supervisor.seats.iter().position(runs);
    let listened = supervisor.follow(on, begun, record.job_from);
    if let Err(error) = listened.and_then(|()| control::listen(&supervisor.state, &supervisor.sender)) {
        // It has started none of them.
        supervisor.seats.clear();
        return Err(error.into());
    }
    let mut outputs = Vec::new();
    let lost = members.iter().position(|member| *member == Member::Lost);
    supervisor.coordinator = Coordinator::succeed(members, newest, &mut outputs);
    supervisor.perform_all(outputs);
    if let Some(node) = lost {
        supervisor.lost(Node(node as u16))?;
    }
    supervisor.plan_next();
    supervisor.run()
}

impl Supervisor {
    /// Writes down what another supervisor needs to take over.
    pub(super) fn write_record(&self) -> Result<()> {
        let nodes = self.seats.iter().zip(self.coordinator.members()).map(|(seat, member)| RecordedNode {
            name: seat.name.clone(),
            nic: seat.nic.clone(),
            mac: seat.mac,
            is_on: *member != Member::Off,
        });
        let record = Record {
            terms: self.terms.clone(),
            lineage: self.lineage,
            incarnation: self.incarnation,
            restores: self.failures.restores(),
            store: self.store.path().into(),
            before: self.store.before(),
            from: self.last.clone(),
            instant: self.instant,
            less_ns: self.less_ns,
            job_from: self.job.as_ref().map(|job| job.from),
            nodes: nodes.collect(),
        };
        let bytes = serde_json::to_vec_pretty(&record).expect("every path is UTF-8, and nothing else can fail");
        let (path, temporary) = (self.state.join(RECORD), self.state.join(".network.json"));
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| Error::Io { path, what: "cannot be written; make room", source })
    }

    /// Nobody has anything to take over any more.
    pub(super) fn remove_record(&self) {
        // That it stays does no harm.
        let _ = fs::remove_file(self.state.join(RECORD));
    }

    /// The VM with its state in `dir`, if it runs.
    fn reach(&self, node: Node, dir: &Path, until: Instant) -> Option<Process> {
        let lock = File::open(dir.join("lock")).ok()?;
        let (channel, pid) = connect(dir, &lock, until)?;
        let channel = Arc::new(channel);
        let (life, said, ended) = (self.incarnation, self.sender.clone(), self.sender.clone());
        hear(&channel, move |heard| drop(said.send(Event::Member(life, node, heard)))).ok()?;
        // Its lock goes when its process ends: while that is held, the number is its own.
        let process = host::process::Process::open(pid).ok()?;
        if lock.try_lock().is_ok() {
            return None;
        }
        let dir = dir.to_path_buf();
        let wait = move || {
            let _ = lock.lock();
            let end = LeftNote::read(&dir).map_or(Ended::Unknown, Ended::With);
            drop(ended.send(Event::Member(life, node, Heard::End(end))));
        };
        thread::Builder::new().name("node".into()).spawn(wait).ok()?;
        Some(Process { process, channel, silent: false, ended: None })
    }
}

/// To the VM with its state in `dir`, whose lock this is, and the number of its process. One that has the lock and does not
/// listen yet is waited for, and one that does not until then is ended.
fn connect(dir: &Path, lock: &File, until: Instant) -> Option<(Channel, Pid)> {
    loop {
        if let Ok(there) = Channel::connect(dir) {
            return Some(there);
        }
        if lock.try_lock().is_ok() {
            return None;
        }
        if Instant::now() >= until {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    let shown = dir.display();
    match state_dir::holder(lock) {
        Some(vm) => {
            say(&format!("{shown}: its VM does not listen for a supervisor; it is ended"));
            vm.signal(Signal::SIGKILL);
            // When its memory is gone its names are free.
            let _ = host::lock::take(lock);
        }
        None => {
            say(&format!("{shown}: its VM does not listen, and who it is cannot be told; end who has {shown}/lock"))
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

    use super::*;
    use crate::network::channel;

    #[test]
    fn a_vm_that_does_not_listen_yet_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::create(dir.path().join("lock")).unwrap();
        held.lock().unwrap();
        let lock = File::open(dir.path().join("lock")).unwrap();
        let looks = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        looks.add_watch(dir.path(), AddWatchFlags::IN_OPEN).unwrap();
        let path = dir.path().to_path_buf();
        let vm = thread::spawn(move || {
            // It has looked in vain, and looks again.
            (0..2).for_each(|_| drop(looks.read_events().unwrap()));
            channel::listen(&path).unwrap()
        });
        let (_, pid) = connect(dir.path(), &lock, Instant::now() + PATIENCE).expect("it was not waited for");
        assert_eq!(pid, Pid::this());
        vm.join().unwrap();
    }

    #[test]
    fn a_vm_that_never_listens_is_ended_and_nobody_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        // They end with this test, at the latest.
        let start = |said: Stdio| Command::new("cat").stdin(Stdio::piped()).stdout(said).spawn().unwrap();
        let held = File::create(&path).unwrap();
        held.lock().unwrap();
        let (mut vm, mut stranger) = (start(held.into()), start(Stdio::null()));
        let look = |named: &Child| {
            fs::write(&path, format!("{}\n", named.id())).unwrap();
            assert!(connect(dir.path(), &File::open(&path).unwrap(), Instant::now()).is_none());
        };
        look(&stranger);
        assert!(stranger.try_wait().unwrap().is_none(), "it has not the lock");
        assert!(vm.try_wait().unwrap().is_none());
        look(&vm);
        assert_eq!(vm.wait().unwrap().signal(), Some(9));
        assert!(File::open(&path).unwrap().try_lock().is_ok());
        drop(stranger.stdin.take());
        stranger.wait().unwrap();
    }
}
