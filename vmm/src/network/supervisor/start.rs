//! Starting a network: from `net.json`, or from a checkpoint.
//!
//! ```text
//! STATE/network.lock  control.sock
//! STATE/NODE/         the VM's state directory; vm.json, what it was booted from; output, what it says
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use ckvmm_net::Node;
use ckvmm_net::coordinator::{Coordinator, Member};
use jiff::Timestamp;
use nix::unistd::Pid;
use uuid::Uuid;

use super::{Event, Process, Seat, Supervisor};
use crate::cli::{Clock, ExitStatus};
use crate::config::{CheckpointConfig, Id};
use crate::error::{Error, Result};
use crate::host::signals::{Asked, Signals};
use crate::network::changes;
use crate::network::channel::{self, Channel};
use crate::network::config::{self, NetConfig};
use crate::network::control;
use crate::network::manifest::Manifest;
use crate::network::message::{Place, ToMember};
use crate::network::store::{self, NetStore};

/// What a node's `ckvmm` says goes to this file of its state directory.
const OUTPUT: &str = "output";

/// A network that is to be started.
struct Beginning {
    name: Id,
    incarnation: u64,
    checkpoint: CheckpointConfig,
    state: PathBuf,
    nodes: Vec<Beginner>,
    /// The instant that the guests go on from; absent: from the present.
    from: Option<Timestamp>,
}

/// A node of it.
struct Beginner {
    name: Id,
    nic: Id,
    mac: [u8; 6],
    /// Arguments of its `ckvmm`; absent: its guest is off.
    arguments: Option<Vec<PathBuf>>,
}

/// Boots the network that `file` describes, and stays until it ends.
///
/// # Errors
/// What it names cannot be used, a VM cannot be started.
pub fn up(file: &Path, state: Option<PathBuf>) -> Result<ExitStatus> {
    let signals = Signals::block()?;
    let (config, nodes) = NetConfig::load(file)?;
    let state = state.unwrap_or_else(|| file.with_file_name(format!("{}.ckvmm", config.name)));
    let (state, lock) = open_state(&state)?;
    let nodes = nodes.into_iter().map(|node| {
        let dir = state.join(&*node.name);
        make_dir(&dir)?;
        let vm = dir.join("vm.json");
        let written = fs::write(&vm, node.vm.to_value().to_string());
        written.map_err(|source| Error::Io { path: vm.clone(), what: "cannot be written; make room", source })?;
        let arguments = ["boot".into(), "--config".into(), vm, "--state".into(), dir];
        Ok(Beginner { name: node.name, nic: node.nic, mac: node.mac, arguments: Some(arguments.into()) })
    });
    let nodes = nodes.collect::<Result<_>>()?;
    let NetConfig { name, checkpoint, .. } = config;
    Beginning { name, incarnation: 0, checkpoint, state, nodes, from: None }.run(signals, lock)
}

/// What a restore was asked for.
#[derive(Debug)]
pub struct Restore {
    /// The checkpoint's directory.
    pub checkpoint: PathBuf,
    /// The network's directory; absent: a new one in the current one.
    pub state: Option<PathBuf>,
    /// What is to be other than in the checkpoint, see [`changes`].
    pub set: Vec<String>,
    /// What the guests' clocks say.
    pub clock: Clock,
}

/// Continues a network from a checkpoint, and stays until it ends. The checkpoint is only read.
///
/// # Errors
/// It is damaged, a VM cannot be restored.
pub fn restore(Restore { checkpoint, state, set, clock }: Restore) -> anyhow::Result<ExitStatus> {
    let signals = Signals::block()?;
    let mut manifest = Manifest::load(&checkpoint)?;
    let changes = changes::apply(&set, &mut manifest)?;
    if let Some(dir) = &mut manifest.checkpoint.dir {
        *dir = std::path::absolute(&dir).map_err(Error::os("finding the current directory"))?;
    }
    let from = manifest.instant().filter(|_| clock == Clock::Freeze);
    let checkpoint = checkpoint.canonicalize().map_err(Error::os("finding the checkpoint"))?;
    let unique = Uuid::new_v4().simple().to_string();
    let state = state.unwrap_or_else(|| PathBuf::from(format!("{}-{}.ckvmm", manifest.name, &unique[..8])));
    let (state, lock) = open_state(&state)?;
    let nodes = manifest.nodes.into_iter().zip(changes).map(|(node, changes)| {
        let dir = state.join(&*node.name);
        let console = config::console(&format!("{}-{}", manifest.name, node.name));
        let console = format!("serial.socket={}", console.display());
        let image = checkpoint.join(&*node.name);
        let mut arguments = vec!["restore".into(), image, "--work".into(), dir.clone()];
        for change in [console].into_iter().chain(changes) {
            arguments.extend(["--set".into(), change.into()]);
        }
        if node.part.is_some() {
            make_dir(&dir)?;
        }
        let arguments = node.part.is_some().then_some(arguments);
        Ok(Beginner { name: node.name, nic: node.nic, mac: node.mac, arguments })
    });
    let nodes = nodes.collect::<Result<_>>()?;
    let Manifest { name, incarnation, checkpoint, .. } = manifest;
    Ok(Beginning { name, incarnation: incarnation + 1, checkpoint, state, nodes, from }.run(signals, lock)?)
}

impl Beginning {
    fn run(self, signals: Signals, _lock: File) -> Result<ExitStatus> {
        let store = self.checkpoint.dir.clone().unwrap_or_else(|| self.state.join("checkpoints"));
        let store = NetStore::open(&store)?;
        let (sender, events) = mpsc::channel();
        deliver(signals, &sender);
        let is_on = |node: &Beginner| if node.arguments.is_some() { Member::On } else { Member::Off };
        let mut supervisor = Supervisor {
            name: self.name.clone(),
            lineage: Uuid::new_v4(),
            incarnation: self.incarnation,
            checkpoint: self.checkpoint.clone(),
            store,
            state: self.state.clone(),
            seats: Vec::new(),
            coordinator: Coordinator::new(self.nodes.iter().map(is_on).collect()),
            events,
            asker: None,
            deadline: None,
            due: None,
            last: None,
            from: self.from,
            less_ns: None,
            then_stop: false,
            stopped: false,
        };
        let mut links = self.links()?;
        for (node, index) in self.nodes.iter().zip(0..) {
            let process = match &node.arguments {
                Some(arguments) => {
                    let links = std::mem::take(&mut links[usize::from(index)]);
                    Some(self.start(node, arguments, self.place(index, &supervisor.store, links), &sender)?)
                }
                None => None,
            };
            let (name, nic) = (node.name.clone(), node.nic.clone());
            supervisor.seats.push(Seat { name, nic, mac: node.mac, process, part: None });
        }
        control::listen(&self.state, &sender)?;
        supervisor.run()
    }

    /// A pair of connected sockets for each two nodes that take part: who has which end.
    fn links(&self) -> Result<Vec<Vec<(u16, OwnedFd)>>> {
        let mut links: Vec<Vec<(u16, OwnedFd)>> = self.nodes.iter().map(|_| Vec::new()).collect();
        let on = |index: usize| self.nodes[index].arguments.is_some();
        for a in (0..self.nodes.len()).filter(|a| on(*a)) {
            for b in (0..a).filter(|b| on(*b)) {
                let (one, other) = channel::pair().map_err(Error::os("connecting two VMs (ulimit -n)"))?;
                links[a].push((b as u16, one));
                links[b].push((a as u16, other));
            }
        }
        Ok(links)
    }

    fn place(&self, me: u16, store: &NetStore, links: Vec<(u16, OwnedFd)>) -> (Place, Vec<OwnedFd>) {
        let node = &self.nodes[usize::from(me)];
        let (peers, links) = links.into_iter().unzip();
        let place = Place {
            me,
            incarnation: self.incarnation,
            nic: node.nic.clone(),
            macs: self.nodes.iter().map(|node| node.mac).collect(),
            peers,
            store: store.path().into(),
            before: store.before(),
            node: node.name.clone(),
        };
        (place, links)
    }

    /// Starts a member and gives it its place. The links are its own from then on.
    fn start(
        &self,
        node: &Beginner,
        arguments: &[PathBuf],
        (place, links): (Place, Vec<OwnedFd>),
        events: &Sender<Event>,
    ) -> Result<Process> {
        let failed =
            |source| Error::Node { name: node.name.to_string(), reason: format!("cannot be started: {source}") };
        let (ours, theirs) = channel::pair().map_err(failed)?;
        let me = Node(place.me);
        let channel = Arc::new(Channel::new(ours));
        let links: Vec<_> = links.iter().map(AsFd::as_fd).collect();
        channel.send(&ToMember::Place(Box::new(place)), &links).map_err(failed)?;
        let output = self.state.join(&*node.name).join(OUTPUT);
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(output).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(arguments).arg("--network-member");
        command.stdin(Stdio::from(theirs)).stdout(output.try_clone().map_err(failed)?).stderr(output);
        // Ctrl-C is for the supervisor, which tells all.
        let child = command.process_group(0).spawn().map_err(failed)?;
        let pid = Pid::from_raw(child.id() as i32);
        listen(me, child, &channel, events)?;
        Ok(Process { pid, channel, ended: None })
    }
}

/// Why a member has ended, as it said itself.
pub(super) fn last_words(state: &Path, node: &str) -> String {
    let path = state.join(node).join(OUTPUT);
    let text = fs::read_to_string(&path).unwrap_or_default();
    match text.lines().last() {
        Some(line) => line.trim_start_matches("ckvmm: ").to_owned(),
        None => format!("its VM ended at its start and said nothing; see {}", path.display()),
    }
}

/// Hears what a member says, and of its end.
fn listen(node: Node, mut child: Child, channel: &Arc<Channel>, events: &Sender<Event>) -> Result<()> {
    let (channel, said, ended) = (Arc::clone(channel), events.clone(), events.clone());
    let hear = move || {
        while let Ok(Some((message, _))) = channel.receive() {
            // A supervisor that has ended hears nothing.
            drop(said.send(Event::Said(node, message)));
        }
        drop(said.send(Event::Silent(node)));
    };
    let wait = move || {
        if let Ok(status) = child.wait() {
            drop(ended.send(Event::Ended(node, status)));
        }
    };
    let thread = |run| thread::Builder::new().name(format!("node {node}")).spawn(run);
    thread(Box::new(hear) as Box<dyn FnOnce() + Send>).map_err(Error::os("starting a thread"))?;
    thread(Box::new(wait)).map_err(Error::os("starting a thread"))?;
    Ok(())
}

fn deliver(signals: Signals, events: &Sender<Event>) {
    let events = events.clone();
    // A supervisor that has ended needs no signals.
    signals.deliver(move |asked: Asked| drop(events.send(Event::Signal(asked))));
}

/// The network's state directory, absolute, and its lock.
fn open_state(path: &Path) -> Result<(PathBuf, File)> {
    let path = std::path::absolute(path).map_err(Error::os("finding the current directory"))?;
    make_dir(&path)?;
    let lock = store::lock(&path.join("network.lock"))?;
    Ok((path, lock))
}

fn make_dir(path: &Path) -> Result<()> {
    let what = "the state directory cannot be made there; give another one with --state";
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::Io { path: path.into(), what, source })
}
