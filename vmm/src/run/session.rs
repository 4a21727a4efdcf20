//! What a VM needs around its machine, and how the machine is built from it: once at the start, again at each reset.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
};

use ckvmm_net::Tap;
use ckvmm_snapshot::{Image, Progress, Store};
use uuid::Uuid;

use super::{
    deadline::Deadline,
    finisher::{Finished, Finisher},
    history::History,
    verification::Verification,
};
use crate::{
    api::{BoundSocket, Server},
    arch::boot_cpu::Entry,
    boot::{self, Shape},
    config::{ConfigError, NicConfig, Uplink, VmConfig},
    control::{CommandError, Control, Request, Shared},
    error::Result,
    host::{
        console::Console,
        disks::Disk,
        signals::{Asked, Signals},
        state_dir::StateDir,
        terminal::{keep_log, say},
    },
    machine::{
        Machine,
        board::{Backends, Board, NicBackend, NicLink},
        events::{MachineEvent, Notify},
        kvm::{Hardware, Unfinished},
        ram::Ram,
    },
    network::member::{self, Member},
    operations::Held,
};

/// What the main loop waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// From the machine of this number: one that has been replaced has nothing to say any more.
    Machine(u64, MachineEvent),
    /// From the API.
    Request(Request),
    /// From the system.
    Signal(Asked),
    /// The escape was typed at the terminal.
    Leave,
    /// The image that the VM runs from is damaged.
    Corrupt(String),
    /// A checkpoint has been finished.
    Checkpoint(Box<Finished>),
    /// From the network that the VM is a member of.
    Network(member::Event),
}

/// Where a VM's life began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// The same for all checkpoints that descend from one boot.
    pub lineage: Uuid,
    /// The checkpoint that it was restored from.
    pub parent: Option<Uuid>,
}

/// A VM without its machine.
pub(super) struct Session {
    pub(super) config: VmConfig,
    /// Before `state`: copies that go with them go while that is locked.
    pub(super) disks: Vec<Disk>,
    pub(super) state: StateDir,
    pub(super) store: Store,
    pub(super) origin: Origin,
    pub(super) shared: Arc<Shared>,
    pub(super) events: Receiver<Event>,
    pub(super) sender: Sender<Event>,
    pub(super) server: Server,
    /// Of the image that the VM was restored from.
    pub(super) verification: Verification,
    /// How far that is.
    pub(super) verified: Arc<Progress>,
    /// Number of the machine that runs.
    pub(super) machine: AtomicU64,
    /// What the next checkpoint builds on: the last one that was made, or the one that the VM was restored from.
    pub(super) base: Option<Arc<Image>>,
    /// What the checkpoints so far say of the next one.
    pub(super) history: History,
    pub(super) deadline: Deadline,
    /// The network that the VM is a member of.
    pub(super) network: Option<Member>,
    /// The finisher has a checkpoint.
    pub(super) writing: bool,
    /// After the checkpoint that is being made one more, with which the VM ends.
    pub(super) then_stop: bool,
    /// A checkpoint that is being made when the VM ends is given up.
    pub(super) gives_up: bool,
    /// Last: its end is waited for, and it may wait for what has an end here.
    pub(super) finisher: Finisher,
}

impl Session {
    /// Begins to listen to the API.
    pub(super) fn open(
        config: VmConfig,
        state: StateDir,
        disks: Vec<Disk>,
        origin: Origin,
        socket: BoundSocket,
    ) -> Result<Self> {
        keep_log(&state.log())?;
        let (sender, events) = mpsc::channel();
        let shared = Shared::new(&config);
        shared.set_disks(disks.iter().map(|disk| (disk.id.clone(), disk.path.clone())).collect());
        let requests = sender.clone();
        let send = move |request| requests.send(Event::Request(request)).map_err(|_| CommandError::Gone);
        let server = Server::start(socket, Control::new(Arc::clone(&shared), send))?;
        let store = Store::new(config.checkpoint.dir.clone().unwrap_or_else(|| state.checkpoints()));
        sweep(&store);
        let finisher = Finisher::start(sender.clone())?;
        let deadline = Deadline::new(config.checkpoint.stop_deadline);
        Ok(Session {
            config,
            state,
            disks,
            store,
            origin,
            shared,
            events,
            sender,
            server,
            verification: Verification::done(),
            verified: Arc::default(),
            machine: AtomicU64::new(0),
            finisher,
            base: None,
            history: History::default(),
            deadline,
            network: None,
            writing: false,
            then_stop: false,
            gives_up: false,
        })
    }

    /// A machine with a kernel loaded, at the kernel's entry.
    pub(super) fn boot_machine(&self, Loaded { hardware, entry }: Loaded) -> Result<Machine> {
        let mut machine = self.build_machine(hardware)?;
        machine.pause()?.set_entry(entry)?;
        Ok(machine)
    }

    /// The machine of the configuration.
    pub(super) fn build_machine(&self, hardware: Unfinished) -> Result<Machine> {
        let number = self.machine.fetch_add(1, Ordering::Relaxed) + 1;
        let sender = self.sender.clone();
        // A main loop that has ended needs no events.
        let notify = Notify::new(move |event| drop(sender.send(Event::Machine(number, event))));
        // First what the configuration names: that can be mended there.
        let backends = self.backends()?;
        let machine = Machine::build(hardware.finish()?, backends, &notify)?;
        self.shared.set_cards(machine.cards().clone());
        Ok(machine)
    }

    fn backends(&self) -> Result<Backends> {
        let log = self.state.console_log();
        let sender = self.sender.clone();
        Ok(Backends {
            disks: self.disks.iter().map(Disk::open).collect::<Result<_>>()?,
            nics: self.config.nics.iter().map(|nic| self.nic(nic)).collect::<Result<_>>()?,
            console: Console::open(&self.config.serial, Some(&log))?,
            leave: Box::new(move || drop(sender.send(Event::Leave))),
        })
    }

    fn nic(&self, nic: &NicConfig) -> Result<NicBackend> {
        let field = format!("nics.{}.uplink", nic.id);
        match &nic.uplink {
            Some(Uplink::Tap(name)) => {
                let mac = nic.mac_in(&self.config.name).0;
                let tap = Tap::open(name).map_err(|error| unusable(&field, &error))?;
                Ok(NicBackend { id: nic.id.to_string(), link: NicLink::Tap(tap), mac })
            }
            Some(Uplink::Network) => {
                let mac = nic.mac_in(&self.config.name).0;
                match self.network.as_ref().filter(|member| member.place.nic == nic.id) {
                    Some(member) => {
                        let link = NicLink::Network(member.port.clone());
                        Ok(NicBackend { id: nic.id.to_string(), link, mac })
                    }
                    None => {
                        let mend = "start it with `ckvmm network`, or --set another uplink";
                        Err(ConfigError::field(field, "this VM was not started as part of a network", mend).into())
                    }
                }
            }
            Some(Uplink::Passt(_)) => {
                Err(ConfigError::field(field, "passt is not supported yet", "use {\"tap\": NAME}").into())
            }
            None => Err(ConfigError::field(field, "there is none, and no network", "give {\"tap\": NAME}").into()),
        }
    }
}

/// A machine to be, with a kernel in its RAM.
#[derive(Debug)]
pub(super) struct Loaded {
    hardware: Unfinished,
    entry: Entry,
}

impl Loaded {
    /// With the kernel of the configuration.
    pub(super) fn new(config: &VmConfig) -> Result<Self> {
        let virtio_devices = Board::virtio_devices(config.disks.len(), config.nics.len());
        let shape = Shape { memory: config.memory.0, vcpus: config.vcpus, virtio_devices };
        let hardware = Hardware::begin()?.shaped(Ram::zeroed(config.memory.0)?, config.vcpus);
        let entry = boot::load(&config.kernel, shape, hardware.ram().memory())?;
        Ok(Loaded { hardware, entry })
    }
}

/// The API socket, at `path` or where the VM's name leads. Had before anything is copied: a name that is taken is told
/// at once.
pub(super) fn api_socket(path: Option<&Path>, config: &VmConfig) -> Result<BoundSocket> {
    Ok(match path {
        Some(path) => BoundSocket::bind(path)?,
        None => BoundSocket::bind_default(&config.name)?,
    })
}

/// A TAP that cannot be had is a matter of the field that names it.
fn unusable(uplink: &str, error: &ckvmm_net::Error) -> ConfigError {
    let text = error.to_string();
    let (what, mend) = text.split_once("; ").unwrap_or((&text, "name another TAP"));
    ConfigError::field(format!("{uplink}.tap"), what, mend)
}

/// What a crash left of unfinished checkpoints goes; that it cannot is no reason not to run.
pub(super) fn sweep(store: &Store) {
    if let Err(error) = store.sweep_staging() {
        tracing::warn!(%error, "what unfinished checkpoints left cannot be removed");
    }
}

/// Has signals delivered to the main loop. Until this is called whoever asks for the end has it at once: afterwards there
/// is a guest to lose, also while it reboots, and what is made for it.
pub(super) fn deliver(signals: Signals, shared: &Arc<Shared>, sender: &Sender<Event>) {
    let (shared, sender) = (Arc::clone(shared), sender.clone());
    let asked_before = AtomicBool::new(false);
    signals.deliver(move |asked| match asked {
        Asked::PowerOff => {
            match shared.operations().held() {
                None => {}
                Some(Held::Vm) if !asked_before.swap(true, Ordering::Relaxed) => {
                    say("the VM ends once its checkpoint is made; ask again to stop, and the checkpoint is given up");
                }
                // What was asked before comes next, and says it to the guest.
                Some(Held::Vm) => return shared.operations().cancel_running(),
                Some(Held::Guest) => shared.operations().cancel_running(),
            }
            drop(sender.send(Event::Signal(asked)));
        }
        Asked::Checkpoint if shared.operations().is_running() => {
            say("SIGUSR1: a checkpoint is being made already; this signal makes no second one");
        }
        // A main loop that has ended needs no signals.
        asked => drop(sender.send(Event::Signal(asked))),
    });
}
