//! A network of VMs on one host: its supervisor, and what makes a VMM a member of it.
//!
//! ```text
//!  ckvmm network ──────── control.sock ──▶ supervisor: Coordinator, store
//!                                            │ Channel to each
//!          member ◀──────────────────────────┴─────────────────────▶ member
//!      Port, machine ◀───── link: a connected pair of sockets ────▶ Port, machine
//! ```
//!
//! Invariants: frames do not go through the supervisor, and VMs run on without it. A member is started only by the
//! supervisor, which gives it its channel as standard input and its links over that.

pub mod changes;
pub mod channel;
pub mod cmdline;
pub mod config;
pub mod control;
pub mod failure;
pub mod job;
pub mod manifest;
pub mod member;
pub mod message;
pub mod seed;
pub mod store;
pub mod supervisor;
pub mod whole;
