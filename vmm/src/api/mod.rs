//! The API: HTTP/JSON on a unix socket, `/v1`, additive.
//!
//! ```text
//!   GET  /v1/vm                            how the VM is
//!   PUT  /v1/vm/power {"state": ...}       running | paused | off
//!   POST /v1/checkpoints                   202, Location: /v1/operations/ID
//!   GET | DELETE /v1/operations/ID         how far it is | cancel it
//!   GET  /v1/events                        what happens, as it happens
//!   GET  /metrics, GET /openapi.json
//! ```
//!
//! Invariants:
//! - the server is a thread of its own with a current-thread runtime; nothing of it runs on the main loop;
//! - a `GET` is answered from [`crate::control::Shared`] and never waits for the main loop;
//! - the socket is 0600, so that only its owner (and root) can connect;
//! - bodies, connections and the time to end are bounded by the constants of this module and of `server.rs`;
//! - an error is problem+json whose `detail` is the line that the CLI prints.

mod events;
mod metrics;
mod openapi;
mod problem;
mod routes;
mod server;
pub mod socket;
pub mod types;

#[cfg(test)]
mod tests;

pub use openapi::document as openapi_document;
pub use server::Server;
pub use socket::{BoundSocket, SocketError};

/// Largest request body, in bytes.
pub const BODY_MAX: usize = 64 << 10;
/// Most clients at a time; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 64;
