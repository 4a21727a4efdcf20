//! `ckvmm verify`: every byte of a checkpoint against its digests.

use std::path::PathBuf;
use std::time::Duration;

use ckvmm_snapshot::{Image, Progress};
use serde_json::json;

use super::{ExitStatus, output, progress};

/// How often the bar moves.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Compare every byte of a checkpoint with its digests
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
        let verified = Image::open(&self.checkpoint).and_then(|image| watched(&image, &progress));
        let (checked, path) = (progress.bytes_done(), self.checkpoint.display());
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
}

/// Verifies on another thread while this one moves the bar.
fn watched(image: &Image, progress: &Progress) -> ckvmm_snapshot::Result<()> {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| image.verify(progress));
        let bar = progress::Bar::new();
        while !work.is_finished() {
            bar.update("verifying", progress.bytes_done(), progress.bytes_total());
            std::thread::sleep(LOOK_EVERY);
        }
        drop(bar);
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
