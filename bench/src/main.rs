//! What checkpoints and restores cost, as the guest sees it: `make bench`.
//!
//! The guest is our own (guest-images/bare-metal), on vCPUs that never idle: it visits the next page of its hot set over
//! and over, looks at its TSC after each, and keeps the longest gap. A pause that it does not see is none; what the VMM
//! says of its pause stands beside it. The same guest is measured in QEMU, if there is one.
//!
//! Figures of one run are comparable with each other only: the noise of the machine stands above them.

mod case;
mod checkpoints;
mod ckvmm;
mod guest;
mod memory;
mod qemu;
mod qmp;
mod report;
mod sample;
mod scratch;
mod vm;

use std::path::PathBuf;

use case::{Case, Method};
use checkpoints::{FEW, MANY};
use ckvmm_tests::paths;
use clap::Parser;
use report::{Machine, Report};
use scratch::Scratch;

/// Measure what checkpoints and restores cost the guest
#[derive(Debug, Parser)]
struct Args {
    /// Less of everything, in two minutes
    #[arg(long)]
    quick: bool,
    /// Where the figures go
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() {
    let args = Args::parse();
    let mut scratch = Scratch::new();
    let qemu = qemu::version();
    let methods = methods(&qemu, &mut scratch);
    let mut report = Report::new(Machine::this(qemu.ok()));

    checkpoints::begin_table("Checkpoints, image on tmpfs");
    for (touched_mib, hot_mib) in sizes(&args) {
        for &method in &methods {
            let count = if method == Method::CkvmmFork && !args.quick { MANY } else { FEW };
            let case = Case::new(touched_mib, hot_mib);
            report.checkpoints.extend(checkpoints::measure(case, method, count, &mut scratch));
        }
    }

    checkpoints::memory(&report.checkpoints);

    let json = args.json.unwrap_or_else(|| paths::root().join("build/bench.json"));
    report.write(&json);
}

/// Whom to compare; says who is missing.
fn methods(qemu: &Result<String, String>, scratch: &mut Scratch) -> Vec<Method> {
    let mut methods = vec![Method::CkvmmFork, Method::CkvmmStop];
    if let Err(missing) = qemu {
        println!("{missing}");
        return methods;
    }
    methods.push(Method::QemuStop);
    match qemu::background_snapshots(scratch) {
        Ok(()) => methods.push(Method::QemuBackground),
        Err(why) => println!("QEMU's background-snapshot is not measured: {why}"),
    }
    methods
}

/// RAM touched and hot set, in MiB.
fn sizes(args: &Args) -> Vec<(u64, u64)> {
    if args.quick { vec![(512, 16)] } else { vec![(512, 16), (512, 256), (2048, 16), (2048, 256)] }
}
