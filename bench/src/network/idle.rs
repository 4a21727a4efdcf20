//! Large guests that do nearly nothing: checkpoint and restart of all.

use serde::{Deserialize, Serialize};

use super::{
    cut::{Cut, of_cuts},
    net::Net,
};
use crate::{
    report::{heading, ms, row},
    sample::median,
    scratch::Scratch,
};

/// RAM of each guest, and what of it holds data, in MiB.
const MEMORY: u64 = 1024;
const TOUCHED: u64 = 64;
/// For how long a guest halts, in ns, before it looks at the clock and its console again.
const REST: u64 = 5_000_000;
const ROUNDS: usize = 5;

/// Seconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    pub(crate) guests: usize,
    pub(crate) cuts: Vec<Cut>,
    /// From the start of the supervisor until every guest has answered.
    pub(crate) restarts: Vec<f64>,
}

pub(crate) fn measure(quick: bool, scratch: &mut Scratch) -> Idle {
    let guests = if quick { 4 } else { 12 };
    heading(
        &format!("{guests} guests of {MEMORY} MiB, {TOUCHED} MiB in use, mostly halted; from the request"),
        &["which", "longest pause ms", "all run again after ms", "durable ms", "restart ms"],
    );
    let line = format!("job=pagefill mib={TOUCHED} poll=2097152 rest={REST}");
    let mut net = Net::up(guests, MEMORY, &line, scratch);
    net.done(TOUCHED << 17);
    let (mut cuts, mut restarts) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let (dir, cut) = net.checkpoint();
        let restart = net.restart(&dir, scratch);
        say(&format!("round {round}"), std::slice::from_ref(&cut), restart);
        cuts.push(cut);
        restarts.push(restart);
    }
    say("median", &cuts, median(restarts.iter().copied()));
    Idle { guests, cuts, restarts }
}

fn say(which: &str, cuts: &[Cut], restart: f64) {
    row(&[
        which.to_owned(),
        ms(of_cuts(cuts, |cut| cut.pauses.iter().copied().fold(0.0, f64::max)), 1),
        ms(of_cuts(cuts, |cut| cut.all_run), 1),
        ms(of_cuts(cuts, |cut| cut.durable), 0),
        ms(restart, 0),
    ]);
}
