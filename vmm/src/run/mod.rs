//! A VM's life in this process: from its configuration or its checkpoint to its exit status.
//!
//! ```text
//! boot:    config → fresh RAM, kernel → state directory → disks → Machine::build → at the entry   ┐
//! restore: image  → RAM from image → work directory → disks    → Machine::build → state restored ┴→ main loop
//! ```
//!
//! They differ in where RAM comes from and in who sets the registers; there is one constructor and one main loop.

mod auto;
mod checkpoints;
mod deadline;
mod finisher;
mod history;
mod main_loop;
mod moving;
mod network;
mod restore;
mod session;
mod verification;

pub use restore::restore;

use std::path::{Path, PathBuf};

use uuid::Uuid;

use self::session::{Loaded, Origin, Session, api_socket};
use crate::{
    cli::{BootOptions, ExitStatus},
    config::VmConfig,
    error::Result,
    host::{disks, signals::Signals, state_dir::StateDir},
    network::member::Invitation,
};

/// Boots a VM and stays until it ends.
///
/// # Errors
/// If it cannot be built, or ends in a way that is nobody's wish.
pub fn boot(options: BootOptions) -> Result<ExitStatus> {
    let signals = Signals::block()?;
    let invitation = options.member.then(Invitation::receive).transpose()?;
    let config = VmConfig::load(&options.config)?.with_mac_addresses();
    let socket = api_socket(options.api_socket.as_deref(), &config)?;
    // Before anything is made or copied for a kernel that is none.
    let loaded = Loaded::new(&config)?;
    let directory = options.state_dir.unwrap_or_else(|| beside(&options.config, &config));
    let state = StateDir::open(&directory)?;
    let disks = disks::for_boot(&config, &state, options.fresh)?;
    let origin = Origin { lineage: Uuid::new_v4(), parent: None };
    let mut session = Session::open(config, state, disks, origin, socket)?;
    session.join(invitation, None)?;
    let machine = session.boot_machine(loaded)?;
    session.run(signals, machine, !options.no_reboot, false)
}

/// `NAME.ckvmm` in the directory of the configuration.
fn beside(config_file: &Path, config: &VmConfig) -> PathBuf {
    config_file.with_file_name(format!("{}.ckvmm", config.name))
}
