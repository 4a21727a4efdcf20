//! What checkpoints and restores cost, as the guest sees it: `make bench`.
//!
//! The guest is our own (guest-images/bare-metal), on vCPUs that never idle: it visits the next page of its hot set over
//! and over, looks at its TSC after each, and keeps the longest gap. A pause that it does not see is none; what the VMM
//! says of its pause stands beside it. The same guest is measured in QEMU, if there is one.
//!
//! Figures of one run are comparable with each other only: the noise of the machine stands above them.

mod busy;
mod case;
mod checkpoints;
mod ckvmm;
mod clones;
mod guest;
mod host;
mod memory;
mod network;
mod pictures;
mod plan;
mod plot;
mod qemu;
mod qmp;
mod report;
mod restores;
mod sample;
mod scratch;
mod throughput;
mod vm;

use std::{path::PathBuf, time::Instant};

use case::Method;
use ckvmm_tests::paths;
use clap::{Parser, ValueEnum};
use report::{Machine, Report};
use scratch::Scratch;

/// Measure what checkpoints and restores cost the guest
#[derive(Debug, Parser)]
struct Args {
    /// Less of everything, in two minutes
    #[arg(long)]
    quick: bool,
    /// Checkpoints of networks instead
    #[arg(long, conflicts_with = "only")]
    network: bool,
    /// One table only
    #[arg(long, value_name = "TABLE")]
    only: Option<Table>,
    /// One size only of RAM touched and hot set, in MiB: 2048,256
    #[arg(long, value_name = "MIB,MIB", value_parser = plan::size)]
    size: Option<(u64, u64)>,
    /// One VMM and way only
    #[arg(long)]
    method: Option<Method>,
    /// Measure nothing, draw pictures of the figures that are there
    #[arg(long)]
    draw: bool,
    /// Where the figures go (build/bench.json)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where pictures of them go (build/bench)
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// What a run makes, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// Checkpoints by RAM and hot set
    Sizes,
    /// Checkpoints of other guests, to other places
    Others,
    Restores,
    Clones,
    /// Against dd
    Throughput,
}

fn main() {
    let args = Args::parse();
    let name = if args.network { "bench-network" } else { "bench" };
    let build = paths::root().join("build");
    let json = args.json.clone().unwrap_or_else(|| build.join(name).with_extension("json"));
    let plots = args.plots.clone().unwrap_or_else(|| build.join(name));
    if args.network {
        return network::run(args.quick, args.draw, &json, &plots);
    }
    let figures = if args.draw { report::read(&json) } else { measure(&args) };
    if !args.draw {
        report::write(&figures, &json);
    }
    pictures::draw(&figures, &plots);
}

fn measure(args: &Args) -> Report {
    let mut scratch = Scratch::new();
    host::settle(args.quick || args.size.is_some_and(|(touched, _)| touched <= 512));
    let qemu = qemu::version();
    let methods = args.method.map_or_else(|| methods(&qemu, &mut scratch), |method| vec![method]);
    let mut report = Report::new(Machine::this(qemu.ok()));
    let begun = Instant::now();
    for &table in Table::value_variants() {
        if args.only.is_none_or(|only| only == table) {
            let deadline = begun + plan::ends_after(table);
            make(table, args, deadline, &methods, &mut report, &mut scratch);
        }
    }
    checkpoints::memory(&report.checkpoints);
    report
}

/// Makes one table, the rows of it that begin before the deadline.
fn make(table: Table, args: &Args, deadline: Instant, methods: &[Method], report: &mut Report, scratch: &mut Scratch) {
    let quick = args.quick;
    let mut checkpoints = |case, count, method| {
        if in_time(deadline) {
            report.checkpoints.extend(checkpoints::measure(case, method, count, scratch));
        }
    };
    match table {
        Table::Sizes => {
            checkpoints::begin_table("Checkpoints: one vCPU writes, image on tmpfs");
            for case in args.size.map_or_else(|| plan::sizes(quick), plan::only) {
                for &method in methods.iter().filter(|method| plan::compares(case, **method)) {
                    checkpoints(case, plan::count(case, method, quick), method);
                }
            }
        }
        Table::Others => {
            checkpoints::begin_table("Checkpoints of other guests, images in another place");
            for case in plan::others(quick) {
                for &method in methods.iter().filter(|method| plan::compares(case, **method) && method.goes_on()) {
                    checkpoints(case, plan::FEW, method);
                }
            }
        }
        Table::Restores => {
            restores::begin_table();
            for touched_mib in plan::restored(quick) {
                // How the image was taken makes no difference: one way of each VMM is enough.
                for &method in methods.iter().filter(|method| !method.goes_on() && in_time(deadline)) {
                    report.restores.extend(restores::measure(touched_mib, method, scratch));
                }
            }
        }
        Table::Clones | Table::Throughput if !in_time(deadline) => {}
        Table::Clones => report.clones = clones::measure(&plan::clones(quick), scratch),
        Table::Throughput => report.throughput = throughput::measure(plan::written(quick), scratch),
    }
}

/// Says so if not.
fn in_time(deadline: Instant) -> bool {
    let in_time = Instant::now() < deadline;
    if !in_time {
        report::row(&["skipped: this table's time is over".to_owned()]);
    }
    in_time
}

/// Whom to compare; says who is missing.
fn methods(qemu: &Result<String, String>, scratch: &mut Scratch) -> Vec<Method> {
    let mut methods = vec![Method::Ckvmm, Method::CkvmmFork, Method::CkvmmStop];
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
