//! `ckvmm network`: VMs that are connected, and checkpointed together in one instant.

use std::path::PathBuf;

use super::{Clock, ExitStatus, links, nodes, output};
use crate::network::control::{Verb, ask, find_orphan, find_state};
use crate::network::supervisor::{self, Restore};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm network up net.json &             # starts all VMs, stays until all have ended
  ckvmm network run net.json              # the same for a job: ends with it, and with its status
  ckvmm network checkpoint                # of all in one instant; prints its directory
  ckvmm network restore checkpoints/000001    # later, after a kill or a crash

kill -USR1 of `up` makes a checkpoint, kill -USR2 makes one and stops (exit status 85), kill -TERM presses all power buttons.")]
pub(super) struct Args {
    #[command(subcommand)]
    verb: NetworkVerb,
}

#[derive(Debug, clap::Subcommand)]
enum NetworkVerb {
    /// Boot a network and stay with it until it ends
    Up {
        /// The network's configuration
        #[arg(value_name = "net.json")]
        config: PathBuf,
        #[command(flatten)]
        state: State,
    },
    /// Boot a network, print what its job says, and end with the job and its status
    Run {
        /// The network's configuration
        #[arg(value_name = "net.json")]
        config: PathBuf,
        #[command(flatten)]
        state: State,
    },
    /// Continue a network from a checkpoint, and stay with it until it ends
    Restore {
        /// The checkpoint's directory
        #[arg(value_name = "CKPT")]
        checkpoint: PathBuf,
        #[command(flatten)]
        state: State,
        /// Change a node's configuration, like n-0.nics.wan.uplink.tap=tap7, or checkpoint.dir=/x (may be repeated)
        #[arg(long, value_name = "NODE.PATH=VALUE")]
        set: Vec<String>,
        /// The guests' time: go on from the checkpoint's, or jump to now
        #[arg(long, value_enum, default_value_t)]
        clock: Clock,
    },
    /// Take over the VMs of a network whose supervisor was killed, and stay with them until they end
    Adopt(State),
    /// Checkpoint all VMs in one instant, and wait until that is durable
    Checkpoint(State),
    Status(nodes::Status),
    /// Press all power buttons; a guest that ignores its own is ended after its vm.json's stop_timeout
    Down {
        #[command(flatten)]
        state: State,
        /// End all VMs now, without asking the guests
        #[arg(long)]
        force: bool,
    },
    /// For tests: let links be slow, stand still or break
    Link(links::Fault),
    /// Write what goes over a node's links to a file for tcpdump or Wireshark
    Capture(links::Capture),
}

#[derive(Debug, clap::Args)]
pub(super) struct State {
    /// The network's directory [default: NAME.ckvmm beside net.json; of a restore, a new one; else the one that runs here]
    #[arg(long = "state", value_name = "DIR")]
    pub(super) dir: Option<PathBuf>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        match self.verb {
            NetworkVerb::Up { config, state } => return supervisor::up(&config, state.dir),
            NetworkVerb::Run { config, state } => return supervisor::run(&config, state.dir),
            NetworkVerb::Restore { checkpoint, state, set, clock } => {
                return supervisor::restore(Restore { checkpoint, state: state.dir, set, clock });
            }
            NetworkVerb::Adopt(state) => return supervisor::adopt(&find_orphan(state.dir)?),
            NetworkVerb::Checkpoint(state) => {
                let dir = ask(&find_state(state.dir)?, Verb::Checkpoint)?;
                output::print(dir.as_str().unwrap_or_default())?;
            }
            NetworkVerb::Status(status) => return status.run(),
            NetworkVerb::Down { state, force } => {
                ask(&find_state(state.dir)?, if force { Verb::Kill } else { Verb::Down })?;
            }
            NetworkVerb::Link(fault) => fault.run()?,
            NetworkVerb::Capture(capture) => capture.run()?,
        }
        Ok(ExitStatus::Success)
    }
}
