//! `ckvmm boot`: a VM from its configuration.

use std::path::PathBuf;

use super::ExitStatus;

/// What `boot` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootOptions {
    /// `vm.json`.
    pub config: PathBuf,
    /// The API socket; absent: the default one of the VM's name.
    pub api_socket: Option<PathBuf>,
    /// The state directory; absent: `NAME.ckvmm/` beside `vm.json`.
    pub state_dir: Option<PathBuf>,
    /// Forget the working copies of private disks that an earlier run left.
    pub fresh: bool,
    /// End when the guest reboots.
    pub no_reboot: bool,
    /// It is a member of a network, whose supervisor is at the other end of standard input.
    pub member: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm boot --config vm.json

kill -USR1 makes a checkpoint, kill -USR2 makes one and stops (exit status 85), kill -TERM presses the power button.")]
pub(super) struct Args {
    /// The VM's configuration
    #[arg(long, value_name = "vm.json")]
    config: PathBuf,
    /// Where to listen for `ckvmm status` and the like [default: $XDG_RUNTIME_DIR/ckvmm/NAME.sock]
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// Directory for disks, log and checkpoints of this VM [default: NAME.ckvmm beside vm.json]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Start private disks from their images again, forgetting what an earlier run wrote
    #[arg(long)]
    fresh: bool,
    /// End when the guest reboots instead of starting it again
    #[arg(long)]
    no_reboot: bool,
    /// Standard input is the channel of the network's supervisor
    #[arg(long, hide = true)]
    network_member: bool,
}

impl From<Args> for BootOptions {
    fn from(args: Args) -> Self {
        let Args { config, api_socket, state, fresh, no_reboot, network_member } = args;
        Self { config, api_socket, state_dir: state, fresh, no_reboot, member: network_member }
    }
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        Ok(crate::run::boot(self.into())?)
    }
}
