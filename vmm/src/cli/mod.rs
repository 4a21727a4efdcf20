//! The command line: one file per verb (or per family of verbs), each parses, asks, prints.
//!
//! Invariants:
//! - the last word on stderr is one line, `ckvmm: <noun>: <what>; <mend>` (`exit.rs`);
//! - what a script reads goes to stdout, through `output::print`; a closed pipe is no error;
//! - `--json` on every verb that reads.

mod boot;
mod checkpoint;
mod console;
mod doctor;
mod exit;
mod flatten;
mod inspect;
mod links;
mod list;
mod network;
mod nodes;
pub(crate) mod output;
mod power;
mod progress;
mod prune;
mod ps;
mod restore;
mod status;
mod target;
mod verify;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::host::{
    heap, priority,
    terminal::{StandardError, say},
};

pub use boot::BootOptions;
pub use exit::ExitStatus;
pub use restore::{Clock, RestoreOptions};

pub(crate) use exit::UsageError;

/// Environment variable that sets how much is logged: a level, `debug` for instance.
const LOG_VARIABLE: &str = "CKVMM_LOG";

/// Runs virtual machines that can be checkpointed, killed and continued.
#[derive(Debug, Parser)]
#[command(name = "ckvmm", version, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Example:
  ckvmm boot --config vm.json              # in one terminal
  ckvmm checkpoint node0                   # in another; prints the checkpoint's directory
  ckvmm restore checkpoints/000001         # later, after a kill or a crash

Exit status: 0 the guest powered off; 1 it failed; 2 wrong usage or configuration; 3 the guest crashed;
85 checkpointed and stopped, to be continued. `ckvmm doctor` says whether this host can run VMs.")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
// The arguments of the one that is asked for, only.
#[command(defer = true)]
enum Verb {
    /// Boot a VM and stay with it until it ends
    Boot(boot::Args),
    /// Continue a VM from a checkpoint
    Restore(restore::Args),
    /// List the running VMs of this user
    Ps(ps::Args),
    /// Say how a VM is
    Status(status::Args),
    /// Checkpoint a VM and wait until the checkpoint is durable
    Checkpoint(checkpoint::Args),
    /// Stop a VM's CPUs until `ckvmm resume`
    Pause(power::Pause),
    /// Let a paused VM go on
    Resume(power::Resume),
    /// Press a VM's power button and wait until it has ended
    Stop(power::Stop),
    /// End a VM now, without asking the guest
    Kill(power::Kill),
    /// Attach to a VM's serial console (Ctrl-A x leaves)
    Console(console::Args),
    /// List the checkpoints in a directory, oldest first
    List(list::Args),
    /// Show what a checkpoint holds; its manifest, state and maps are verified
    Inspect(inspect::Args),
    /// Copy a checkpoint into one that shares no files with others; every byte is compared with its digest
    Flatten(flatten::Args),
    /// Run a network of VMs that is checkpointed in one instant
    Network(network::Args),
    /// Remove all numbered checkpoints but the newest; what newer ones have of them stays
    Prune(prune::Args),
    /// Compare every byte of a checkpoint with its digests
    Verify(verify::Args),
    /// Say whether this host can run VMs, how fast, and what to change
    Doctor(doctor::Args),
}

/// The program: parses the command line, does what it says.
#[must_use]
pub fn main() -> ExitCode {
    heap::share_one();
    log_to_stderr();
    priority::be_prompt();
    run(std::env::args_os()).into()
}

fn run(args: impl IntoIterator<Item = OsString>) -> ExitStatus {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => return print_help(&e),
        Err(e) => return exit::report_usage(&e, verb_named(&args).as_deref()),
    };
    cli.verb.run().unwrap_or_else(|e| exit::report(&e))
}

impl Verb {
    fn run(self) -> anyhow::Result<ExitStatus> {
        match self {
            Self::Boot(args) => args.run(),
            Self::Restore(args) => args.run(),
            Self::Ps(args) => args.run(),
            Self::Status(args) => args.run(),
            Self::Checkpoint(args) => args.run(),
            Self::Pause(args) => args.run(),
            Self::Resume(args) => args.run(),
            Self::Stop(args) => args.run(),
            Self::Kill(args) => args.run(),
            Self::Console(args) => args.run(),
            Self::List(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Flatten(args) => args.run(),
            Self::Network(args) => args.run(),
            Self::Prune(args) => args.run(),
            Self::Verify(args) => args.run(),
            Self::Doctor(args) => args.run(),
        }
    }
}

fn print_help(e: &clap::Error) -> ExitStatus {
    match e.print() {
        Ok(()) => ExitStatus::Success,
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => ExitStatus::Success,
        Err(_) => ExitStatus::Failed,
    }
}

/// The verb among `args`, to name its help.
fn verb_named(args: &[OsString]) -> Option<String> {
    let first = args.get(1)?.to_str()?;
    Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).find(|name| name == first)
}

fn log_to_stderr() {
    let value = std::env::var_os(LOG_VARIABLE).filter(|value| !value.is_empty());
    let level = value.map_or(Ok(LevelFilter::WARN), |value| value.to_string_lossy().parse().map_err(|_| value));
    let level = level.unwrap_or_else(|value| {
        let levels = "error, warn, info, debug, trace or off";
        say(&format!("{LOG_VARIABLE}: {value:?} is no level, warn is used; give {levels}"));
        LevelFilter::WARN
    });
    // a second call (tests) is no matter
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| StandardError)
        // It would panic where standard error cannot be written.
        .log_internal_errors(false)
        .try_init();
}
