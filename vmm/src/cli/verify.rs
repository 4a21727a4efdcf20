//! `ckvmm verify`: every byte of a checkpoint against its digests.

use std::path::PathBuf;

use ckvmm_snapshot::{Image, Progress};
use serde_json::json;

use super::{ExitStatus, output, progress};
use crate::network::{manifest, whole::Whole};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm verify node0.ckvmm/checkpoints/000001")]
pub(super) struct Args {
    /// The checkpoint's directory
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let progress = Progress::default();
        let verified = self.verify(&progress);
        let checked = verified.as_ref().map_or_else(|_| progress.bytes_done(), |checked| *checked);
        let path = self.checkpoint.display();
        if self.json {
            let error = verified.as_ref().err().map(ToString::to_string);
            let whole = error.is_none();
            let path = &self.checkpoint;
            output::print_json(&json!({ "path": path, "whole": whole, "checked_bytes": checked, "error": error }))?;
        }
        verified?;
        if !self.json {
            output::print(&format!("{path}: whole ({} compared with their digests)", output::bytes(checked)))?;
        }
        Ok(ExitStatus::Success)
    }

    /// Returns how many bytes of RAM and disks are whole.
    fn verify(&self, progress: &Progress) -> anyhow::Result<u64> {
        if manifest::is_one(&self.checkpoint) {
            let whole = Whole::open(&self.checkpoint)?;
            return progress::watched("verifying", progress, || whole.verify(progress));
        }
        let image = Image::open(&self.checkpoint)?;
        progress::watched("verifying", progress, || image.verify(progress))?;
        Ok(progress.bytes_done())
    }
}
