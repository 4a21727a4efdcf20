//! The verbs of the command line and the routes of the API, each against a VM that runs.

#![allow(clippy::unwrap_used)]

mod api;
mod chains;
mod checkpoints;
mod operations;
mod vm;
