//! A VM from a checkpoint.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use ckvmm_snapshot::{Image, Progress};
use uuid::Uuid;

use super::{
    history::History,
    session::{Origin, Session, api_socket},
    verification::Verification,
};
use crate::{
    cli::{Clock, ExitStatus, RestoreOptions},
    config::{ConfigError, VmConfig},
    error::{Error, Result},
    host::{disks, signals::Signals, state_dir::StateDir, terminal::say},
    host_cpu,
    machine::{kvm::Hardware, ram::Ram},
    network::{self, member::Invitation},
    state::clock::ClockPolicy,
};

/// Continues a VM where the checkpoint was made, and stays until it ends. The checkpoint is only read.
///
/// # Errors
/// If the checkpoint is damaged, this host cannot continue it, or the VM ends in a way that is nobody's wish.
pub fn restore(options: RestoreOptions) -> Result<ExitStatus> {
    let signals = Signals::block()?;
    let hardware = Hardware::begin()?;
    let invitation = options.member.then(Invitation::receive).transpose()?;
    let path = options.checkpoint.as_path();
    let mut image = Image::open(path).map_err(|error| of_one_vm(path, error))?;
    if options.verify_full {
        image.verify(&Progress::default())?;
        image.sync()?;
    }
    let config = configuration(path, &image, &options.set)?;
    let mut hardware = hardware.shaped(Ram::zeroed(config.memory.0)?, config.vcpus);
    hardware.map(image.memory())?;
    let states = image.take_state()?;
    let socket = api_socket(options.api_socket.as_deref(), &config)?;
    let directory = options.work.unwrap_or_else(|| new_directory(&config));
    let state = StateDir::open(&directory)?;
    let disks = disks::for_restore(&config, &state, &image)?;
    let origin = Origin { lineage: image.manifest().lineage, parent: Some(image.manifest().id) };
    let mut session = Session::open(config, state, disks, origin, socket)?;
    session.join(invitation, Some(&image))?;
    // All that needs no machine comes first: one is being made.
    let from = host_cpu::compare(&image.manifest().host);
    let image = Arc::new(image.into_base());
    session.base = Some(Arc::clone(&image));
    if !options.verify_full {
        session.verification = Verification::begin(image, Arc::clone(&session.verified), session.sender.clone())?;
    }
    let mut machine = session.build_machine(hardware)?;
    let policy = match options.clock {
        Clock::Freeze => ClockPolicy::Freeze,
        Clock::Now => ClockPolicy::Passed { less_ns: 0 },
    };
    machine.pause()?.restore(states, policy, from).map_err(|error| in_checkpoint(path, error))?;
    session.history = History::restored(Instant::now());
    for disk in session.disks.iter_mut().filter(|disk| disk.is_working_copy()) {
        disk.keep();
        say(&format!("disk {}: the guest's copy is {}", disk.id, disk.path.display()));
    }
    session.run(signals, machine, !options.no_reboot, options.paused)
}

/// The configuration of the image with `--set` applied.
fn configuration(path: &Path, image: &Image, set: &[String]) -> Result<VmConfig> {
    let here = std::env::current_dir().map_err(Error::os("finding the current directory"))?;
    let mut value = image.manifest().config.clone();
    if set.is_empty() {
        return Ok(VmConfig::from_value(value, &here)?);
    }
    let saved = VmConfig::from_value(value.clone(), &here)?;
    for assignment in set {
        VmConfig::set(&mut value, assignment)?;
    }
    let config = VmConfig::from_value(value, &here)?;
    match changed_shape(&saved, &config) {
        None => Ok(config),
        Some(field) => {
            let what = format!("part of the guest's state in {}, and cannot be changed", path.display());
            Err(ConfigError::field(field, what, "leave it out of --set").into())
        }
    }
}

/// The first field that shapes the machine and differs.
fn changed_shape(saved: &VmConfig, config: &VmConfig) -> Option<&'static str> {
    let disks = |config: &VmConfig| {
        let disks = config.disks.iter();
        disks.map(|disk| (disk.id.clone(), disk.mode == crate::config::DiskMode::ReadOnly)).collect::<Vec<_>>()
    };
    let nics = |config: &VmConfig| config.nics.iter().map(|nic| nic.id.clone()).collect::<Vec<_>>();
    [
        ("vcpus", saved.vcpus != config.vcpus),
        ("memory", saved.memory != config.memory),
        ("cpu", saved.cpu != config.cpu),
        ("disks", disks(saved) != disks(config)),
        ("nics", nics(saved) != nics(config)),
    ]
    .into_iter()
    .find_map(|(field, differs)| differs.then_some(field))
}

/// A directory in the current one that nobody has yet: two restores of one checkpoint do not meet.
fn new_directory(config: &VmConfig) -> PathBuf {
    let unique = Uuid::new_v4().simple().to_string();
    PathBuf::from(format!("{}-{}.ckvmm", config.name, &unique[..8]))
}

/// Why a directory is no checkpoint of one VM.
fn of_one_vm(path: &Path, error: ckvmm_snapshot::Error) -> Error {
    if network::manifest::is_one(path) {
        let reason = format!("of a network; `ckvmm network restore {}` continues it", path.display());
        return Error::Restore { path: path.into(), reason };
    }
    error.into()
}

fn in_checkpoint(path: &Path, error: Error) -> Error {
    match error {
        Error::State { what } => Error::Restore { path: path.into(), reason: what },
        other => other,
    }
}
