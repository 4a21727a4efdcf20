//! What the API's thread and the signals' thread ask of the main loop, and what they may read without it.
//!
//! ```text
//!   API thread ──┐ Request { Command, Reply }
//!                ├──────────────────────────────► main loop (owns the machine)
//!   signals ─────┘                                     │ set_state, operations
//!        └───────────────── reads ──► Arc<Shared> ◄────┘
//! ```
//!
//! Invariant: reading (`GET`) never waits for the main loop, which is busy for as long as a checkpoint takes.
//!
//! Bound: a client has at most one request in flight and the server limits clients, so the channel stays short.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Instant;

use ckvmm_net::Port;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use crate::config::{CheckpointMode, Id, VmConfig};
use crate::events::{Event, Events};
use crate::machine::board::Cards;
use crate::operations::{Asker, OperationId, Operations, Running};

/// What the main loop is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Stop the vCPUs. Nothing to do if they stand still.
    Pause,
    /// Let the vCPUs go on. Nothing to do if they run.
    Resume,
    /// Press the power button; after `stop_timeout` end the VM. With `force`: end it now.
    PowerOff {
        /// Do not ask the guest.
        force: bool,
    },
    /// Make a checkpoint. It is answered through `operation`, not through the reply.
    Checkpoint {
        /// The operation to end, with its progress.
        operation: Running,
        /// Where to; absent: the next name in the configured store.
        dir: Option<PathBuf>,
        /// How.
        mode: CheckpointMode,
        /// Build on no other one.
        full: bool,
        /// End the VM once it is durable (exit status 85).
        stop: bool,
    },
}

/// Why a command was not done. The text is the CLI's line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// Not now: HTTP 409.
    #[error("{0}")]
    Conflict(String),
    /// It went wrong: HTTP 500.
    #[error("{0}")]
    Failed(String),
    /// The main loop has ended or gave no answer: HTTP 503.
    #[error("the VM is ending; nothing can be asked of it any more")]
    Gone,
}

/// What the main loop answers.
pub type Outcome = Result<(), CommandError>;

/// A command on its way to the main loop.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Where the answer goes. Dropped unused it says [`CommandError::Gone`].
    pub reply: Reply,
}

/// Where an answer goes.
#[derive(Debug)]
pub struct Reply(Option<oneshot::Sender<Outcome>>);

impl Reply {
    /// Sends the answer; it does not matter whether anybody still listens.
    pub fn send(self, outcome: Outcome) {
        if let Some(tx) = self.0 {
            let _ = tx.send(outcome);
        }
    }
}

/// How the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum VmState {
    /// Being built, loaded or restored.
    Starting,
    /// The vCPUs run.
    Running,
    /// The vCPUs stand still.
    Paused,
    /// The power button was pressed, or the VM is being taken apart.
    Stopping,
    /// It has ended.
    Off,
}

impl VmState {
    const ALL: [Self; 5] = [Self::Starting, Self::Running, Self::Paused, Self::Stopping, Self::Off];

    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["starting", "running", "paused", "stopping", "off"][self as usize]
    }
}

/// The line to whoever wants a checkpoint of one VM of a network: it is captured with all of that, or not at all.
pub const NOT_ALONE: &str = "checkpoint: this VM is part of a network; use `ckvmm network checkpoint`";

/// What everybody may read at any time.
pub struct Shared {
    name: Id,
    config: VmConfig,
    started: Timestamp,
    since: Instant,
    state: AtomicU8,
    events: Events,
    operations: Arc<Operations>,
    disks: Mutex<BTreeMap<String, PathBuf>>,
    cards: Mutex<Cards>,
    port: OnceLock<Port>,
}

impl Shared {
    /// For a VM of this configuration, in [`VmState::Starting`].
    #[must_use]
    pub fn new(config: &VmConfig) -> Arc<Self> {
        let events = Events::default();
        let operations = Arc::new(Operations::new(events.clone()));
        Arc::new(Self {
            name: config.name.clone(),
            config: config.clone(),
            started: Timestamp::now(),
            since: Instant::now(),
            state: AtomicU8::new(VmState::Starting as u8),
            events,
            operations,
            disks: Mutex::default(),
            cards: Mutex::default(),
            port: OnceLock::new(),
        })
    }

    /// The VM's name.
    pub fn name(&self) -> &Id {
        &self.name
    }

    /// The VM's configuration.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// When this process began to run the VM.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// For how long, in microseconds.
    pub fn uptime_us(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// How the VM is.
    pub fn state(&self) -> VmState {
        VmState::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// Says how the VM is. Only the main loop does.
    pub fn set_state(&self, state: VmState) {
        if self.state.swap(state as u8, Ordering::AcqRel) != state as u8 {
            self.events.tell(Event::State { state });
        }
    }

    /// Where to listen to what happens.
    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// The table of operations.
    pub fn operations(&self) -> &Arc<Operations> {
        &self.operations
    }

    /// Where the guest's disks are: the working copy of each, by id.
    pub fn disks(&self) -> BTreeMap<String, PathBuf> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says where the guest's disks are.
    pub fn set_disks(&self, disks: BTreeMap<String, PathBuf>) {
        *self.disks.lock().unwrap_or_else(PoisonError::into_inner) = disks;
    }

    /// What the network cards count.
    pub fn cards(&self) -> Cards {
        self.cards.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what counts for the machine that runs from now on.
    pub fn set_cards(&self, cards: Cards) {
        *self.cards.lock().unwrap_or_else(PoisonError::into_inner) = cards;
    }

    /// The VM's place in a network, if it is in one.
    pub fn port(&self) -> Option<&Port> {
        self.port.get()
    }

    /// Says that the VM is in a network: once.
    pub fn set_port(&self, port: Port) {
        // A VM is in one network at most.
        let _ = self.port.set(port);
    }
}

type Send = dyn Fn(Request) -> Result<(), CommandError> + std::marker::Send + Sync;

/// The way to the main loop. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    send: Arc<Send>,
    shared: Arc<Shared>,
}

impl Control {
    /// A control whose requests go wherever `send` puts them, for a main loop that waits for other events too.
    /// `send` says [`CommandError::Gone`] when there is no main loop any more.
    pub fn new(
        shared: Arc<Shared>,
        send: impl Fn(Request) -> Result<(), CommandError> + std::marker::Send + Sync + 'static,
    ) -> Self {
        Self { send: Arc::new(send), shared }
    }

    /// A control and the main loop's end of its channel.
    #[must_use]
    pub fn channel(shared: Arc<Shared>) -> (Self, mpsc::Receiver<Request>) {
        let (tx, rx) = mpsc::channel();
        (Self::new(shared, move |request| tx.send(request).map_err(|_| CommandError::Gone)), rx)
    }

    /// What may be read without the main loop.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Asks for something and waits for the answer elsewhere.
    ///
    /// # Errors
    /// [`CommandError::Gone`].
    pub fn ask(&self, command: Command) -> Result<oneshot::Receiver<Outcome>, CommandError> {
        let (tx, rx) = oneshot::channel();
        (self.send)(Request { command, reply: Reply(Some(tx)) })?;
        Ok(rx)
    }

    /// Asks for something without caring for the answer.
    ///
    /// # Errors
    /// [`CommandError::Gone`].
    pub fn tell(&self, command: Command) -> Result<(), CommandError> {
        (self.send)(Request { command, reply: Reply(None) })
    }

    /// Asks for a checkpoint. How it goes is in the operations' table.
    ///
    /// # Errors
    /// [`CommandError::Conflict`] while another one is being made, when the VM is starting or ending or in a network;
    /// [`CommandError::Gone`].
    pub fn checkpoint(
        &self,
        asker: Asker,
        dir: Option<PathBuf>,
        mode: CheckpointMode,
        full: bool,
        stop: bool,
    ) -> Result<OperationId, CommandError> {
        let not_now = |why: &str| Err(CommandError::Conflict(format!("checkpoint: {why}")));
        // Before anything else: an operation that is begun would be in the way of a cut.
        if self.shared.port().is_some() {
            return Err(CommandError::Conflict(NOT_ALONE.into()));
        }
        match self.shared.state() {
            VmState::Running | VmState::Paused => {}
            VmState::Starting => return not_now("the VM is still starting; ask again when it runs"),
            VmState::Stopping | VmState::Off => return not_now("the VM is ending; there is nothing left to capture"),
        }
        let operation = self.shared.operations.begin(asker)?;
        let id = operation.id();
        self.tell(Command::Checkpoint { operation, dir, mode, full, stop })?;
        Ok(id)
    }
}
