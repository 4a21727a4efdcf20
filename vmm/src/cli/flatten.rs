//! `ckvmm flatten`: a checkpoint that builds on no other.

use std::path::PathBuf;

use ckvmm_snapshot::{Image, Progress};

use super::{ExitStatus, output, progress};
use crate::network::{manifest, whole::Whole};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm flatten node0.ckvmm/checkpoints/latest /backup/node0")]
pub(super) struct Args {
    /// The checkpoint's directory
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// The new checkpoint's directory; it must not exist
    #[arg(value_name = "OUT")]
    out: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let progress = Progress::default();
        let made = if manifest::is_one(&self.checkpoint) {
            let whole = Whole::open(&self.checkpoint)?;
            progress::watched("copying", &progress, || whole.flatten(&self.out, &progress))?
        } else {
            let image = Image::open(&self.checkpoint)?;
            progress::watched("copying", &progress, || image.flatten(&self.out, &progress))?
        };
        output::print(&made.display().to_string())?;
        Ok(ExitStatus::Success)
    }
}
