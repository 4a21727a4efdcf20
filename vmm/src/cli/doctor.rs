//! `ckvmm doctor`: whether this host can run VMs, and what to change.

use std::path::PathBuf;

use super::{ExitStatus, output};
use crate::doctor::{Check, Level, Report, examine};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm doctor /var/lib/checkpoints

Exit status: 0 if Linux guests can run here, else 1. Takes about a second.")]
pub(super) struct Args {
    /// Where checkpoints are to go
    #[arg(value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let report = examine(&self.dir);
        if self.json {
            output::print_json(&report)?;
        } else {
            output::print(&text(&report))?;
        }
        Ok(if report.linux_guests { ExitStatus::Success } else { ExitStatus::Failed })
    }
}

fn text(report: &Report) -> String {
    let mut lines: Vec<String> = report.checks.iter().flat_map(lines).collect();
    lines.push(String::new());
    lines.push(verdict(report).into());
    lines.join("\n")
}

fn lines(check: &Check) -> Vec<String> {
    let mark = match check.level {
        Level::Ok => "ok  ",
        Level::Warning => "note",
        Level::Failure => "FAIL",
    };
    let mut lines = vec![format!("{mark}  {}: {}", check.name, check.found)];
    lines.extend(check.mend.as_ref().map(|mend| format!("      -> {mend}")));
    lines
}

fn verdict(report: &Report) -> &'static str {
    match (report.linux_guests, report.bare_metal_guests) {
        (true, _) => "Linux guests can run on this host.",
        (false, true) => "Linux guests cannot run on this host; bare-metal guests can.",
        (false, false) => "No guests can run on this host.",
    }
}
