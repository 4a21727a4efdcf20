//! What happens to a VM, told to everybody who listens.
//!
//! ```text
//! main loop, finisher ──tell──► the last QUEUE events ──► Listener ──► a client of the API
//!                                                     └─► Listener …
//! ```
//!
//! Invariant: to tell never waits for who listens. A listener that is too slow loses the oldest events, and is told how
//! many: [`Event::Lost`].

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use utoipa::ToSchema;

use crate::{
    control::VmState,
    operations::{CheckpointDone, Operation},
};

/// How many events are kept for listeners that have not heard them yet; a power of two.
pub(crate) const QUEUE: usize = 64;
/// Most listeners at a time.
pub const LISTENERS_MAX: usize = 16;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Event {
    /// The VM is in another state, or this is the first event.
    State {
        /// The state.
        state: VmState,
    },
    /// An operation has begun, gets on, or has ended.
    Operation(Operation),
    /// A checkpoint is durable.
    Checkpoint(CheckpointDone),
    /// Events that the listener was too slow for.
    Lost {
        /// How many.
        events: u64,
    },
}

impl Event {
    /// As the API calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Event::State { .. } => "state",
            Event::Operation(_) => "operation",
            Event::Checkpoint(_) => "checkpoint",
            Event::Lost { .. } => "lost",
        }
    }
}

/// Where events are told. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Event>,
    places: Arc<Semaphore>,
}

impl Default for Events {
    fn default() -> Self {
        Events { sender: broadcast::Sender::new(QUEUE), places: Arc::new(Semaphore::new(LISTENERS_MAX)) }
    }
}

impl Events {
    /// Tells those who listen, if there are any.
    pub(crate) fn tell(&self, event: Event) {
        // It fails if nobody does.
        let _ = self.sender.send(event);
    }

    /// Somebody who hears all that is told from now on; `None` if there are [`LISTENERS_MAX`] already.
    pub(crate) fn listen(&self) -> Option<Listener> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Listener { receiver: self.sender.subscribe(), _place: place })
    }
}

/// Somebody who hears what is told.
#[derive(Debug)]
pub(crate) struct Listener {
    receiver: broadcast::Receiver<Event>,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    /// The next event; `None` if nobody can tell any more.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(events)) => Some(Event::Lost { events }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
