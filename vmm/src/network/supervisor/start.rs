//! Starting a network: from `net.json`, or from a checkpoint.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

use ckvmm_net::Node;
use ckvmm_net::coordinator::{self, Coordinator, Member};
use jiff::Timestamp;
use nix::unistd::Pid;
use uuid::Uuid;

use super::end::Ended;
use super::terms::Terms;
use super::{Event, Heard, Process, Seat, Supervisor, links, seed, state};
use crate::cli::{Clock, ExitStatus};
use crate::config::{ConfigError, Id};
use crate::error::{Error, Result};
use crate::host::terminal::say;
use crate::host::{
    self,
    signals::{Asked, Signals},
};
use crate::network::changes;
use crate::network::channel::{self, Channel};
use crate::network::config::{self, NetConfig};
use crate::network::control;
use crate::network::failure::Failures;
use crate::network::manifest::Manifest;
use crate::network::member::LEFT;
use crate::network::message::{Place, ToMember};
use crate::network::store::NetStore;

/// What a node's `ckvmm` says goes to this file of its state directory.
pub(super) const OUTPUT: &str = "output";

/// A network that is to be started.
pub(super) struct Beginning {
    terms: Terms,
    pub(super) incarnation: u64,
    pub(super) nodes: Vec<Beginner>,
    /// The checkpoint that it goes on from.
    from: Option<PathBuf>,
    /// The instant that the guests go on from; absent: from the present.
    pub(super) instant: Option<Timestamp>,
}

/// A node of it.
pub(super) struct Beginner {
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
pub fn up(file: &Path, state: Option<PathBuf>) -> anyhow::Result<ExitStatus> {
    let (config, nodes) = NetConfig::load(file, false)?;
    boot(file, config, nodes, state)
}

/// Boots the network that `file` describes, prints what its job says, and ends it with the job.
///
/// # Errors
/// As [`up`], or there is no job.
pub fn run(file: &Path, state: Option<PathBuf>) -> anyhow::Result<ExitStatus> {
    let (config, nodes) = NetConfig::load(file, true)?;
    if config.job.is_none() {
        let mend = "say which node's guest runs it, or use `ckvmm network up`";
        return Err(ConfigError::field("job", "is not there", mend).in_file(file).into());
    }
    boot(file, config, nodes, state)
}

fn boot(
    file: &Path,
    config: NetConfig,
    nodes: Vec<config::Node>,
    state: Option<PathBuf>,
) -> anyhow::Result<ExitStatus> {
    let signals = Signals::block()?;
    let state = state.unwrap_or_else(|| file.with_file_name(format!("{}.ckvmm", config.name)));
    let (state, lock) = state::open_without_vms(&state)?;
    let seeds = seed::all(&nodes, config.job.as_ref())?;
    let nodes = nodes.into_iter().zip(seeds).map(|(node, seed)| {
        let dir = state.join(&*node.name);
        state::make_dir(&dir)?;
        let node = seed::plant(node, seed, &dir)?;
        let vm = dir.join("vm.json");
        let written = fs::write(&vm, node.vm.to_value().to_string());
        written.map_err(|source| Error::Io { path: vm.clone(), what: "cannot be written; make room", source })?;
        let arguments = ["boot".into(), "--config".into(), vm, "--state".into(), dir];
        Ok(Beginner { name: node.name, nic: node.nic, mac: node.mac, arguments: Some(arguments.into()) })
    });
    let nodes = nodes.collect::<Result<_>>()?;
    Beginning { terms: Terms::of_config(config), incarnation: 0, nodes, from: None, instant: None }
        .run(state, signals, lock)
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
    let manifest = Manifest::load(&checkpoint)?;
    let unique = Uuid::new_v4().simple().to_string();
    let state = state.unwrap_or_else(|| PathBuf::from(format!("{}-{}.ckvmm", manifest.name, &unique[..8])));
    let (state, lock) = state::open_without_vms(&state)?;
    Beginning::of_checkpoint(&checkpoint, &state, set, clock)?.run(state, signals, lock)
}

impl Beginning {
    /// Of a network that goes on from a checkpoint, with its state in `state`.
    pub(super) fn of_checkpoint(
        checkpoint: &Path,
        state: &Path,
        set: Vec<String>,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let mut manifest = Manifest::load(checkpoint)?;
        let changes = changes::apply(&set, &mut manifest)?;
        if let Some(dir) = &mut manifest.checkpoint.dir {
            *dir = std::path::absolute(&dir).map_err(Error::os("finding the current directory"))?;
        }
        let instant = manifest.instant().filter(|_| clock == Clock::Freeze);
        let from = checkpoint.canonicalize().map_err(Error::os("finding the checkpoint"))?;
        let (incarnation, nodes) = (manifest.incarnation + 1, std::mem::take(&mut manifest.nodes));
        let nodes = nodes.into_iter().zip(changes).map(|(node, changes)| {
            let dir = state.join(&*node.name);
            let console = config::console(&format!("{}-{}", manifest.name, node.name));
            let console = format!("serial.socket={}", console.display());
            let image = from.join(&*node.name);
            let mut arguments = vec!["restore".into(), image, "--work".into(), dir.clone()];
            for change in [console].into_iter().chain(changes) {
                arguments.extend(["--set".into(), change.into()]);
            }
            if node.part.is_some() {
                state::make_dir(&dir)?;
            }
            let arguments = node.part.is_some().then_some(arguments);
            Ok(Beginner { name: node.name, nic: node.nic, mac: node.mac, arguments })
        });
        let nodes = nodes.collect::<Result<_>>()?;
        let terms = Terms::of_manifest(manifest, set, clock);
        Ok(Beginning { terms, incarnation, nodes, from: Some(from), instant })
    }

    fn run(self, state: PathBuf, signals: Signals, _lock: File) -> anyhow::Result<ExitStatus> {
        let Beginning { terms, incarnation, nodes, from, instant } = self;
        let store = terms.checkpoint.dir.clone().unwrap_or_else(|| state.join("checkpoints"));
        let store = NetStore::open(&store)?;
        let mut supervisor = Supervisor::new(terms, store, state, signals);
        (supervisor.incarnation, supervisor.last, supervisor.instant) = (incarnation, from, instant);
        supervisor.begin(nodes)?;
        control::listen(&supervisor.state, &supervisor.sender)?;
        supervisor.run()
    }
}

impl Supervisor {
    /// One that has no VMs yet.
    pub(super) fn new(terms: Terms, store: NetStore, state: PathBuf, signals: Signals) -> Supervisor {
        let (sender, events) = mpsc::channel();
        let told = sender.clone();
        // A supervisor that has ended needs no signals.
        signals.deliver(move |asked: Asked| drop(told.send(Event::Signal(asked))));
        Supervisor {
            failures: Failures::new(terms.on_failure, terms.max_restores, 0),
            terms,
            lineage: Uuid::new_v4(),
            incarnation: 0,
            job: None,
            store,
            state,
            seats: Vec::new(),
            coordinator: Coordinator::new(Vec::new()),
            events,
            sender,
            asker: None,
            deadline: None,
            due: None,
            pruner: None,
            last: None,
            instant: None,
            less_ns: None,
            stop_wanted: false,
            then_stop: false,
            stopped: false,
            ending: false,
            goes_back: false,
            broken: BTreeSet::new(),
        }
    }

    /// Begins a life with these nodes.
    pub(super) fn begin(&mut self, nodes: Vec<Beginner>) -> Result<()> {
        let is_on = |node: &Beginner| if node.arguments.is_some() { Member::On } else { Member::Off };
        self.coordinator = Coordinator::new(nodes.iter().map(is_on).collect());
        (self.less_ns, self.goes_back, self.deadline) = (None, false, None);
        self.seats.clear();
        self.broken.clear();
        let on = nodes.iter().position(|node| node.arguments.is_some() && self.terms.has_job_on(&node.name));
        self.follow(on, self.last.is_some(), None)?;
        self.seats = nodes.iter().map(|node| Seat::new(node.name.clone(), node.nic.clone(), node.mac)).collect();
        // Of a life before.
        nodes.iter().for_each(|node| _ = fs::remove_file(self.state.join(&*node.name).join(LEFT)));
        self.write_record()?;
        let on: Vec<bool> = nodes.iter().map(|node| node.arguments.is_some()).collect();
        let mut links = links::pairs(&on)?;
        for (node, index) in nodes.iter().zip(0..) {
            if let Some(arguments) = &node.arguments {
                let place = self.place(&nodes, index, std::mem::take(&mut links[usize::from(index)]));
                self.seats[usize::from(index)].process = Some(self.start(node, arguments, place)?);
            }
        }
        self.plan_next();
        Ok(())
    }

    /// Says what the coordinator has to say.
    pub(super) fn send(&mut self, node: Node, message: coordinator::ToMember) {
        if message == coordinator::ToMember::Go && self.less_ns.is_none() {
            // All are told the same, so the clocks of all go on from one instant, whenever each of them hears of it.
            self.less_ns = Some(self.passed_ns());
            if let Err(error) = self.write_record() {
                say(&format!("whoever takes over will not know the guests' time: {error}"));
            }
            say(&format!("network {}: all VMs run", self.terms.name));
        }
        self.tell(node, &ToMember::new(message, self.less_ns.unwrap_or(0)), &[]);
    }

    /// Nanoseconds since the instant that guests go on from; 0 if they go on from the present.
    pub(super) fn passed_ns(&self) -> i64 {
        let passed = self.instant.map(|instant| Timestamp::now().as_nanosecond() - instant.as_nanosecond());
        passed.map_or(0, |passed| passed.try_into().unwrap_or(i64::MAX))
    }

    fn place(&self, nodes: &[Beginner], me: u16, links: Vec<(u16, OwnedFd)>) -> (Place, Vec<OwnedFd>) {
        let node = &nodes[usize::from(me)];
        let (peers, links) = links.into_iter().unzip();
        let place = Place {
            me,
            incarnation: self.incarnation,
            nic: node.nic.clone(),
            macs: nodes.iter().map(|node| node.mac).collect(),
            peers,
            store: self.store.path().into(),
            before: self.store.before(),
            node: node.name.clone(),
            offloads: self.terms.offloads,
        };
        (place, links)
    }

    /// Starts a member and gives it its place. The links are its own from then on.
    fn start(&self, node: &Beginner, arguments: &[PathBuf], (place, links): (Place, Vec<OwnedFd>)) -> Result<Process> {
        let failed =
            |source| Error::Node { name: node.name.to_string(), reason: format!("cannot be started: {source}") };
        let (ours, theirs) = channel::pair().map_err(failed)?;
        let events = self.sender.clone();
        let (life, me) = (self.incarnation, Node(place.me));
        let channel = Arc::new(Channel::new(ours));
        let links: Vec<_> = links.iter().map(AsFd::as_fd).collect();
        channel.send(&ToMember::Place(Box::new(place)), &links).map_err(failed)?;
        let output = self.state.join(&*node.name).join(OUTPUT);
        let output = OpenOptions::new().create(true).append(true).mode(0o600).open(output).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(arguments).arg("--network-member");
        command.stdin(Stdio::from(theirs)).stdout(output.try_clone().map_err(failed)?).stderr(output);
        // Ctrl-C is for the supervisor, which tells all.
        let mut child = command.process_group(0).spawn().map_err(failed)?;
        // Nobody has waited for it yet, so its number is its own.
        let process = host::process::Process::open(Pid::from_raw(child.id() as i32));
        let process = process.inspect_err(|_| _ = child.kill().and_then(|()| child.wait())).map_err(failed)?;
        listen(child, &channel, move |heard| drop(events.send(Event::Member(life, me, heard))))?;
        Ok(Process { process, channel, silent: false, ended: None })
    }
}

/// Hears what a member says, and of its end.
fn listen(mut child: Child, channel: &Arc<Channel>, tell: impl Fn(Heard) + Clone + Send + 'static) -> Result<()> {
    hear(channel, tell.clone())?;
    let wait = move || tell(Heard::End(Ended::of(child.wait())));
    thread::Builder::new().name("node".into()).spawn(wait).map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// Hears what a member says.
pub(super) fn hear(channel: &Arc<Channel>, tell: impl Fn(Heard) + Send + 'static) -> Result<()> {
    let channel = Arc::clone(channel);
    let hear = move || {
        let last = loop {
            match channel.receive() {
                Ok(Some((message, _))) => tell(Heard::Said(message)),
                Ok(None) => break Heard::Silence,
                Err(_) => break Heard::Unreadable,
            }
        };
        tell(last);
    };
    thread::Builder::new().name("node".into()).spawn(hear).map_err(Error::os("starting a thread"))?;
    Ok(())
}
