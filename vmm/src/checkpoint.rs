//! A checkpoint, from the trigger to the commit.
//!
//! ```text
//! begin    prepare │ drain, pause │ state, fork (or write), cut the disks │ resume
//! finish   disks, writer │ commit                              while the guest runs
//! ```
//!
//! A checkpoint that fails leaves nothing, and the machine as it was.

use std::time::{Duration, Instant};

use ckvmm_snapshot::{ForkedWriter, ManifestHead, PreparedWriter, Progress, StagedImage, StateMap};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    error::Result,
    host_cpu,
    machine::{Machine, Paused},
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
    /// How RAM is written.
    pub writer: Writer,
    /// The machine is not to run again: whoever asked wants to stop it.
    pub stay_paused: bool,
}

/// Who writes guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// This process, while the guest stands still.
    Stop,
    /// A child, while the guest runs.
    Fork,
}

impl Writer {
    /// As a manifest says it.
    fn as_str(self) -> &'static str {
        match self {
            Writer::Stop => "stop",
            Writer::Fork => "fork",
        }
    }
}

/// A checkpoint of which the guest's part is done: everything that it consists of can no longer change.
#[derive(Debug)]
pub struct Begun {
    staged: StagedImage,
    captured: Captured,
    head: ManifestHead,
}

/// What was taken from the machine while it stood still.
#[derive(Debug)]
struct Captured {
    state: StateMap,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Written { bytes: u64 },
    Forked(ForkedWriter),
}

/// Captures `machine`, which stands still only meanwhile, if it ran.
///
/// # Errors
/// If it cannot be captured: a device does not come to rest, no room, cancelled. The machine runs on if it ran.
pub fn begin(machine: &mut Machine, mut staged: StagedImage, plan: Plan, progress: &Progress) -> Result<Begun> {
    let started = Instant::now();
    let host = host_cpu::describe(machine.processor(), machine.tsc_khz());
    let writer = match plan.writer {
        Writer::Stop => None,
        Writer::Fork => Some(staged.prepare_writer(machine.ram().memory(), machine.ram().mapped())?),
    };
    for (id, disk) in machine.captured_disks() {
        staged.prepare_disk(id, disk)?;
    }
    let ran = machine.is_running();
    let (created, stopped) = (Timestamp::now(), Instant::now());
    let captured = machine.pause().and_then(|paused| capture(&paused, &mut staged, writer, progress));
    if ran && (captured.is_err() || !plan.stay_paused) {
        machine.resume()?;
    }
    if let Ok(Captured { memory: Memory::Forked(writer), .. }) = &captured {
        writer.begin();
    }
    let pause = if ran { stopped.elapsed() } else { Duration::ZERO };
    let head = ManifestHead {
        name: plan.name,
        lineage: plan.lineage,
        parent: plan.parent,
        created,
        mode: plan.writer.as_str().into(),
        config: plan.config,
        host,
        pause_us: micros(pause),
        started,
    };
    Ok(Begun { staged, captured: captured?, head })
}

/// What happens while the guest stands still.
fn capture(
    paused: &Paused<'_>,
    staged: &mut StagedImage,
    writer: Option<PreparedWriter>,
    progress: &Progress,
) -> Result<Captured> {
    let state = paused.save()?;
    let ram = paused.ram();
    let memory = match writer {
        Some(writer) => Memory::Forked(writer.fork(ram.memory())?),
        None => Memory::Written { bytes: staged.write_memory(ram.memory(), ram.mapped(), progress)? },
    };
    staged.cut_disks();
    Ok(Captured { state, memory })
}

impl Begun {
    /// Waits for the writer and commits, if `sound` says that what the checkpoint was made from is.
    ///
    /// # Errors
    /// If it cannot be written, or was cancelled; nothing of it is left then.
    pub fn finish(self, progress: &Progress, sound: impl FnOnce() -> Result<()>) -> Result<CheckpointDone> {
        let Begun { mut staged, captured: Captured { state, memory }, head } = self;
        staged.write_state(&state)?;
        // The writer is at work meanwhile, and the sooner the disks are captured the fewer writes have to wait for it.
        staged.finish_disks(progress)?;
        let written_bytes = match memory {
            Memory::Written { bytes } => bytes,
            Memory::Forked(writer) => staged.finish_memory(writer, progress)?,
        };
        sound()?;
        let (id, pause_us, started) = (staged.id(), head.pause_us, head.started);
        let dir = staged.commit(head)?;
        Ok(CheckpointDone { dir, id, written_bytes, pause_us, duration_us: micros(started.elapsed()) })
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}
