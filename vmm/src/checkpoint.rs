//! A checkpoint, from the trigger to the commit.
//!
//! Mode `stop`: the machine stands still until RAM and disks are written. A checkpoint that fails leaves nothing, and
//! the machine as it was.

use std::time::{Duration, Instant};

use ckvmm_snapshot::{ManifestHead, Progress, StagedImage};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    error::{Error, Result},
    host_cpu,
    machine::Machine,
    operations::CheckpointDone,
};

/// What a checkpoint says of itself, and what comes after it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The VM's name.
    pub name: String,
    /// The VM's life, from its boot on.
    pub lineage: Uuid,
    /// The checkpoint before this one.
    pub parent: Option<Uuid>,
    /// The VM's configuration, with absolute paths.
    pub config: serde_json::Value,
    /// The machine is not to run again: whoever asked wants to stop it.
    pub stay_paused: bool,
}

/// Makes a checkpoint of `machine`, and commits it if `sound` says that what it was made from is.
///
/// # Errors
/// If it cannot be made: a device does not come to rest, no room, cancelled. The machine runs on if it ran.
pub fn checkpoint(
    machine: &mut Machine,
    staged: StagedImage,
    plan: &Plan,
    progress: &Progress,
    sound: impl FnOnce() -> Result<()>,
) -> Result<CheckpointDone> {
    let ran = machine.is_running();
    let made = make(machine, staged, plan, progress, sound);
    if made.is_err() || !plan.stay_paused {
        resume_if(machine, ran)?;
    }
    made
}

fn make(
    machine: &mut Machine,
    mut staged: StagedImage,
    plan: &Plan,
    progress: &Progress,
    sound: impl FnOnce() -> Result<()>,
) -> Result<CheckpointDone> {
    let started = Instant::now();
    let ran = machine.is_running();
    let id = staged.id();
    let (processor, tsc_khz) = (machine.processor().clone(), machine.tsc_khz());
    let (created, stopped) = (Timestamp::now(), Instant::now());
    let paused = machine.pause()?;
    staged.write_state(&paused.save()?)?;
    let written_bytes = staged.write_memory(paused.ram(), progress)?;
    for (id, disk) in paused.captured_disks() {
        staged.capture_disk(id, disk)?;
    }
    if !plan.stay_paused {
        resume_if(machine, ran)?;
    }
    let pause = if ran { stopped.elapsed() } else { Duration::ZERO };
    staged.digest_disks(progress)?;
    sound()?;
    let dir = staged.commit(ManifestHead {
        name: plan.name.clone(),
        lineage: plan.lineage,
        parent: plan.parent,
        created,
        mode: "stop".into(),
        config: plan.config.clone(),
        host: host_cpu::describe(&processor, tsc_khz),
        pause_us: micros(pause),
        started,
    })?;
    Ok(CheckpointDone { dir, id, written_bytes, pause_us: micros(pause), duration_us: micros(started.elapsed()) })
}

fn resume_if(machine: &mut Machine, ran: bool) -> Result<(), Error> {
    if ran { machine.resume() } else { Ok(()) }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}
