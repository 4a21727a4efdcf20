//! `ckvmm prune`: removes the oldest checkpoints of a store.

use std::path::PathBuf;

use ckvmm_snapshot::Store;

use super::{ExitStatus, output};
use crate::network;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm prune node0.ckvmm/checkpoints --keep 3     # prints those that it has removed")]
pub(super) struct Args {
    /// A directory of checkpoints
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// How many to keep, of single VMs and of networks each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let store = super::list::open(&self.store)?;
        let keep = self.keep as usize;
        let of_networks = network::store::prune(&self.store, None, keep)?;
        for path in Store::prune(&store, keep, |_| true)?.into_iter().chain(of_networks) {
            output::print(&path.display().to_string())?;
        }
        Ok(ExitStatus::Success)
    }
}
