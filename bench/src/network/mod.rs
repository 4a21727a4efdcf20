//! What checkpoints of a network cost: `make bench-network`.
//!
//! Guests are our own, and those that exchange frames never idle: where there are more of them than the machine has CPUs,
//! all that happens waits for one. So beside a pause stands what of it the VMM was at work, which need not depend on how
//! many others there are.

mod cut;
mod idle;
mod net;
mod pauses;
mod pictures;
mod traffic;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    host,
    report::{self, Machine},
    scratch::Scratch,
};
use idle::Idle;
use pauses::Pauses;
use traffic::Traffic;

/// All figures of a run, in seconds and bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    machine: Machine,
    pauses: Vec<Pauses>,
    idle: Idle,
    traffic: Vec<Traffic>,
}

/// Measures, unless the figures of an earlier run are to be drawn, and draws.
pub(crate) fn run(quick: bool, draw: bool, json: &Path, plots: &Path) {
    let figures = if draw { report::read(json) } else { measure(quick) };
    if !draw {
        report::write(&figures, json);
    }
    pictures::draw(&figures, plots);
}

fn measure(quick: bool) -> Figures {
    let mut scratch = Scratch::new();
    host::settle(quick);
    let pauses = pauses::measure(quick, &mut scratch);
    let idle = idle::measure(quick, &mut scratch);
    let traffic = traffic::measure(quick, &mut scratch);
    Figures { machine: Machine::this(None), pauses, idle, traffic }
}
