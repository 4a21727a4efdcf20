//! ckvmm: a virtual machine monitor that checkpoints and restores.

pub mod api;
pub mod arch;
pub mod boot;
pub mod checkpoint;
pub mod cli;
pub mod client;
pub mod config;
pub mod control;
pub mod doctor;
pub mod error;
pub mod events;
pub mod host;
pub mod host_cpu;
pub mod machine;
pub mod network;
pub mod operations;
pub mod run;
pub mod state;
