//! `GET /v1/events`: what happens to the VM, as server-sent events, until it is off or the client goes.
//!
//! What happens is queued for each client ([`crate::events`]). How far an operation is, is not: it is looked up when the
//! client is ready to hear it, so that progress never displaces an event.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::problem::ApiError;
use super::types::Problem;
use crate::control::{Control, Shared, VmState};
use crate::events::{Event, LISTENERS_MAX, Listener};
use crate::operations::{Operation, OperationState};

/// How often a client hears how far an operation is.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What happens to the VM, from now on: `state`, `operation`, `checkpoint`, `lost`. The first is its state.
#[utoipa::path(get, path = "/v1/events", responses(
    (status = 200, body = Event, content_type = "text/event-stream"),
    (status = 429, body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn events(
    State(control): State<Control>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let shared = Arc::clone(control.shared());
    let listener = shared.events().listen().ok_or_else(|| {
        let line = format!("events: {LISTENERS_MAX} clients listen already; end one of them");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, line)
    })?;
    let all = stream::unfold(Telling::new(shared, listener), async |mut telling| {
        let event = telling.next().await?;
        Some((Ok(shown(&event)), telling))
    });
    Ok(Sse::new(all).keep_alive(KeepAlive::default()))
}

fn shown(event: &Event) -> sse::Event {
    let data = serde_json::to_string(event).expect("numbers, strings and their names are JSON");
    sse::Event::default().event(event.name()).data(data)
}

/// What one client is told.
struct Telling {
    shared: Arc<Shared>,
    listener: Listener,
    /// Told before anything else.
    first: Option<Event>,
    looks: Interval,
    /// The operation that runs, as it was told last.
    running: Option<Operation>,
    over: bool,
}

impl Telling {
    fn new(shared: Arc<Shared>, listener: Listener) -> Self {
        // Looked at after the listener began to hear: nothing is between the two.
        let first = Some(Event::State { state: shared.state() });
        let running = shared.operations().running();
        let mut looks = interval(PROGRESS_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Telling { shared, listener, first, looks, running, over: false }
    }

    async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        let event = match self.first.take() {
            Some(first) => first,
            None => self.what_comes().await?,
        };
        match &event {
            Event::State { state } => self.over = *state == VmState::Off,
            Event::Operation(operation) => {
                self.running = Some(operation.clone()).filter(|operation| operation.state == OperationState::Running);
            }
            Event::Lost { .. } => self.running = self.shared.operations().running(),
            Event::Checkpoint(_) => {}
        }
        Some(event)
    }

    async fn what_comes(&mut self) -> Option<Event> {
        loop {
            tokio::select! {
                biased;
                event = self.listener.next() => return event,
                _ = self.looks.tick(), if self.running.is_some() => {
                    // One that has ended is told by its event.
                    let now = self.shared.operations().running();
                    if now.is_some() && now != self.running {
                        return now.map(Event::Operation);
                    }
                }
            }
        }
    }
}
