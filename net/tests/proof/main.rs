//! The proof that a network's cut loses no frame: the crate's own `Cut` and `Coordinator`, in every order of events
//! that a small network can have (`model`), and in very many that a larger one can have (`simulator`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod model;
mod mutants;
mod oracle;
mod random;
mod simulator;
mod world;
