//! `ckvmm restore`: a VM from a checkpoint.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ExitStatus;

/// What the guest's clocks say after a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// Time goes on from the cut.
    #[default]
    Freeze,
    /// Time jumps to the host's.
    Now,
}

/// What `restore` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreOptions {
    /// The checkpoint's directory.
    pub checkpoint: PathBuf,
    /// Where this run's disks are made; absent: a directory chosen and printed.
    pub work: Option<PathBuf>,
    /// `PATH=VALUE`, changes to the configuration, in order.
    pub set: Vec<String>,
    /// Do not let the vCPUs run yet.
    pub paused: bool,
    /// What the guest's clocks say.
    pub clock: Clock,
    /// Verify all of RAM and disks before the guest's first instruction.
    pub verify_full: bool,
    /// The API socket; absent: the default one of the VM's name.
    pub api_socket: Option<PathBuf>,
    /// End when the guest reboots.
    pub no_reboot: bool,
    /// It is a member of a network, whose supervisor is at the other end of standard input.
    pub member: bool,
}

/// When RAM and disk contents are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Verify {
    /// While the guest runs.
    Background,
    /// Before the guest's first instruction.
    Full,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ckvmm restore node0.ckvmm/checkpoints/000001
  ckvmm restore CKPT --set name=copy --set serial.file=/tmp/copy.log    # a second VM from the same checkpoint

The checkpoint is only read; it can be restored as often as you like.")]
pub(super) struct Args {
    /// The checkpoint's directory
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Directory for this run's disks (made if it does not exist)
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Change a field of the configuration, like disks.root.path=/x (may be repeated)
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// Leave the VM paused; `ckvmm resume` lets it go on
    #[arg(long)]
    paused: bool,
    /// The guest's time: go on from the checkpoint's, or jump to now
    #[arg(long, value_enum, default_value_t)]
    clock: Clock,
    /// When RAM and disk contents are verified
    #[arg(long, value_enum, default_value = "background")]
    verify: Verify,
    /// Where to listen for `ckvmm status` and the like [default: $XDG_RUNTIME_DIR/ckvmm/NAME.sock]
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// End when the guest reboots instead of starting it again
    #[arg(long)]
    no_reboot: bool,
    /// Standard input is the channel of the network's supervisor
    #[arg(long, hide = true)]
    network_member: bool,
}

impl From<Args> for RestoreOptions {
    fn from(args: Args) -> Self {
        let Args { checkpoint, work, set, paused, clock, verify, api_socket, no_reboot, network_member } = args;
        Self {
            checkpoint,
            work,
            set,
            paused,
            clock,
            verify_full: verify == Verify::Full,
            api_socket,
            no_reboot,
            member: network_member,
        }
    }
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        Ok(crate::run::restore(self.into())?)
    }
}
