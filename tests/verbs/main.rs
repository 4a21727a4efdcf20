//! The verbs of the command line and the routes of the API, each against a VM that runs.

mod api;
mod checkpoints;
mod operations;
mod vm;
