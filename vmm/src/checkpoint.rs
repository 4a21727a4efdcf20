//! A checkpoint, from the trigger to the commit.
//!
//! ```text
//! begin    prepare │ drain, pause │ protect RAM, state (or state, fork or write), cut the disks │ resume
//! finish   disks, writer │ commit                              while the guest runs
//! ```
//!
//! A checkpoint that fails leaves nothing, and the machine as it was.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ckvmm_snapshot::{
    Aside, Copies, ForkedWriter, ManifestHead, PreparedWriter, Progress, Refused, StagedImage, StateMap,
};
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::{
    config::Id,
    error::{Error, Result},
    host::{memory, terminal::say},
    host_cpu,
    machine::{Machine, Paused, ram::Ram},
    operations::{CheckpointDone, Held, Running},
};

/// Copies of RAM for a writer take at most this part of the memory that is left.
const SPARE: u64 = 4;
/// Bytes for copies that are made ready before a cut that others wait for: this takes some milliseconds.
const HURRIED: u64 = 8 << 20;
/// For so long a guest whose RAM was protected runs on: what it works with it has at hand again by then.
const SETTLE: Duration = Duration::from_micros(200);
/// Bytes of memory that others must find meanwhile.
const RESERVE: u64 = 32 << 20;

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
    /// Others wait for the cut: the VMs of a network, whose frames are held until the last one is cut.
    pub hurried: bool,
    /// The machine is not to run again: whoever asked wants to stop it.
    pub stay_paused: bool,
}

/// Who writes guest RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    /// This process, while the guest stands still.
    Stop,
    /// A forked child, while the guest runs.
    Fork,
    /// A child that is handed copies of RAM, which is protected meanwhile.
    Protect,
    /// The last of these that this host has for us.
    Auto {
        /// Why it is not to be a forked child.
        no_fork: Option<String>,
    },
}

/// A checkpoint of which the guest's part is done: everything that it consists of can no longer change.
#[derive(Debug)]
pub struct Begun {
    staged: StagedImage,
    captured: Captured,
    head: ManifestHead,
    /// What of its pause this thread was at work: on a busy host it waits for a CPU besides.
    pause_cpu_us: u64,
    /// Who comes first.
    aside: Aside,
}

/// What was taken from the machine while it stood still.
#[derive(Debug)]
struct Captured {
    state: StateMap,
    /// When that was.
    instant: Timestamp,
    memory: Memory,
}

#[derive(Debug)]
enum Memory {
    Written { bytes: u64 },
    Forked(Box<ForkedWriter>),
}

impl Memory {
    /// The mode, as a manifest says it: what was done, not what was asked for.
    fn mode(&self) -> &'static str {
        match self {
            Memory::Written { .. } => "stop",
            Memory::Forked(writer) if writer.protects() => "protect",
            Memory::Forked(_) => "fork",
        }
    }
}

/// Captures `machine`, which stands still only meanwhile, if it ran; `taken` is called in that instant.
///
/// # Errors
/// If it cannot be captured: a device does not come to rest, no room, cancelled. The machine runs on if it ran.
pub fn begin(
    machine: &mut Machine,
    mut staged: StagedImage,
    plan: Plan,
    operation: &Running,
    taken: impl FnOnce(),
) -> Result<Begun> {
    let started = Instant::now();
    let host = host_cpu::describe(machine.processor(), machine.tsc_khz());
    let mut prepared = staged.prepare_writer(machine.ram().memory(), machine.ram().mapped())?;
    for (id, disk) in machine.captured_disks() {
        staged.prepare_disk(id, disk)?;
    }
    let aside = machine.aside();
    prepared.work_beside(machine.vcpus(), aside.clone());
    let ready_bytes = if plan.hurried { HURRIED } else { u64::MAX };
    let writer = expect(plan.writer, &mut prepared, machine.ram(), ready_bytes)?;
    let ran = machine.is_running();
    if ran && writer == Writer::Protect && !plan.hurried {
        machine.leave_huge_pages();
        prepared.protect_ahead();
        thread::sleep(SETTLE);
    }
    let (stopped, cpu) = (Instant::now(), cpu_time());
    let captured = machine.pause().and_then(|paused| {
        let captured = capture(&paused, &mut staged, prepared, writer, operation)?;
        taken();
        Ok(captured)
    });
    if ran && (captured.is_err() || !plan.stay_paused) {
        machine.resume()?;
    }
    let pause = if ran { stopped.elapsed() } else { Duration::ZERO };
    let pause_cpu_us = micros(cpu_time().saturating_sub(cpu));
    let captured = captured?;
    if let Memory::Forked(writer) = &captured.memory {
        writer.begin();
    }
    let head = ManifestHead {
        name: plan.name,
        lineage: plan.lineage,
        parent: plan.parent,
        created: captured.instant,
        mode: captured.memory.mode().into(),
        config: plan.config,
        host,
        pause_us: micros(pause),
        started,
    };
    Ok(Begun { staged, captured, head, pause_cpu_us, aside })
}

/// Makes ready for the writer, while the guest still runs; returns who it is to be.
fn expect(wanted: Writer, prepared: &mut PreparedWriter, ram: &Ram, ready_bytes: u64) -> Result<Writer> {
    if matches!(wanted, Writer::Protect | Writer::Auto { .. }) {
        match protect(prepared, ram, ready_bytes) {
            Ok(()) => return Ok(Writer::Protect),
            Err(source) if wanted == Writer::Protect => return Err(Error::Protect { source }),
            Err(error) => tracing::info!(%error, "RAM cannot be protected"),
        }
    }
    if let Writer::Auto { no_fork: Some(why) } = &wanted {
        say(why);
        return Ok(Writer::Stop);
    }
    if wanted != Writer::Stop {
        prepared.expect_fork();
    }
    Ok(wanted)
}

fn protect(prepared: &mut PreparedWriter, ram: &Ram, ready_bytes: u64) -> io::Result<()> {
    let most_bytes = memory::free().map_or(u64::MAX, |free| free.bytes / SPARE);
    let room = || memory::free().map_or(u64::MAX, |free| free.bytes.saturating_sub(RESERVE));
    let copies = Copies { most_bytes, ready_bytes, room: Arc::new(room) };
    let lent = ram.lend(copies).ok_or_else(|| io::Error::other("RAM that was restored is a file's"))?;
    prepared.expect_protection(lent)
}

/// What happens while the guest stands still.
fn capture(
    paused: &Paused<'_>,
    staged: &mut StagedImage,
    prepared: PreparedWriter,
    writer: Writer,
    operation: &Running,
) -> Result<Captured> {
    let ram = paused.ram().memory();
    // RAM that is protected comes first: what the guest was just writing to is copied while the rest is saved.
    let saved = if writer == Writer::Protect { None } else { Some(paused.save()?) };
    let mut write = |prepared| {
        let held = operation.held();
        operation.hold(held.or(Some(Held::Guest)));
        let written = staged.write_prepared(prepared, ram, operation.progress());
        operation.hold(held);
        written.map(|bytes| Memory::Written { bytes })
    };
    let memory = match writer {
        Writer::Stop => write(prepared)?,
        Writer::Protect => Memory::Forked(prepared.protect().map_err(|refused| refused.error)?.into()),
        Writer::Fork => Memory::Forked(prepared.fork(ram).map_err(|refused| refused.error)?.into()),
        Writer::Auto { .. } => match prepared.fork(ram) {
            Ok(writer) => Memory::Forked(writer.into()),
            Err(refused) => {
                let Refused { error, writer } = *refused;
                say(&format!("{}; the guest stands still until its RAM is written", without_mend(&error.to_string())));
                write(writer)?
            }
        },
    };
    let (state, instant) = saved.map_or_else(|| paused.save(), Ok)?;
    staged.cut_disks();
    Ok(Captured { state, instant, memory })
}

impl Begun {
    /// Whether the guest's writes split its huge pages until RAM is written.
    pub fn splits_huge_pages(&self) -> bool {
        matches!(&self.captured.memory, Memory::Forked(writer) if !writer.protects())
    }

    /// Waits for the writer and for what was under way to a card of a network, if there is one, and commits, if `sound`
    /// says that what the checkpoint was made from is.
    ///
    /// # Errors
    /// If it cannot be written, or was cancelled; nothing of it is left then.
    pub fn finish(
        self,
        progress: &Progress,
        under_way: impl FnOnce() -> Result<Option<(Id, Vec<u8>)>>,
        sound: impl FnOnce() -> Result<()>,
    ) -> Result<CheckpointDone> {
        let Begun { mut staged, captured: Captured { state, instant: _, memory }, head, pause_cpu_us, aside } = self;
        aside.step();
        // The writer is at work meanwhile, and the sooner the disks are captured the fewer writes have to wait for it.
        staged.finish_disks(progress)?;
        let written_bytes = match memory {
            Memory::Written { bytes } => bytes,
            Memory::Forked(writer) => staged.finish_memory(*writer, progress)?,
        };
        aside.step();
        // Late: while a thread of this process is at work, each page that is copied for the guest interrupts its CPU.
        staged.write_state(&state)?;
        if let Some((nic, frames)) = under_way()? {
            staged.write_network(&nic, &frames)?;
        }
        sound()?;
        let (id, created, pause_us, started) = (staged.id(), head.created, head.pause_us, head.started);
        let dir = staged.commit(head)?;
        let duration_us = micros(started.elapsed());
        Ok(CheckpointDone { dir, id, created, written_bytes, pause_us, pause_cpu_us, duration_us })
    }
}

/// An error's line without its mend, for when it is mended.
fn without_mend(line: &str) -> &str {
    line.rsplit_once("; ").map_or(line, |(thing, _)| thing)
}

/// For how long the calling thread has had a CPU.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}
