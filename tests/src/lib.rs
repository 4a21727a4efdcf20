//! What tests of a whole machine share: a `ckvmm` process, its guest's console, a network of its own, `vm.json`.
//!
//! Nothing here sleeps for a time in the hope that something has happened: every wait is for an event, with a limit
//! that says what did not come.

pub mod api;
pub mod bare_metal;
pub mod birth;
pub mod cgroup;
pub mod config;
pub mod console;
pub mod lines;
pub mod mount;
pub mod network;
pub mod orphans;
pub mod packets;
pub mod paths;
pub mod pcap;
pub mod pidfd;
pub mod process;

use std::time::Duration;

/// How long an event may take before a test gives up: Linux guests may run on an emulated processor.
pub const LIMIT: Duration = Duration::from_secs(240);
