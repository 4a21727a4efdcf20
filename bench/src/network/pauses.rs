//! How long guests stand still, by how many there are, and by how many of them are cut.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    cut::{Cut, of_cuts, of_vms},
    net::Net,
};
use crate::{
    case::Case,
    ckvmm::CkvmmVm,
    report::{heading, ms, row},
    scratch::Scratch,
    vm::Vm,
};

/// RAM that each guest fills, and what of it it visits all the time, in MiB.
const TOUCHED: u64 = 64;
const HOT: u64 = 16;
/// Checkpoints of which the figures are medians, after a first one, which is a full one.
const CUTS: usize = 7;

/// Checkpoints of some guests, while all run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pauses {
    pub(crate) running: usize,
    pub(crate) all: bool,
    pub(crate) cuts: Vec<Cut>,
}

/// How many guests there are when all are cut, and when one is.
fn plan(quick: bool) -> (Vec<usize>, Vec<usize>) {
    if quick { (vec![2, 4, 8], vec![1, 2, 4, 8]) } else { ((2..=12).collect(), vec![1, 2, 4, 8, 12]) }
}

pub(crate) fn measure(quick: bool, scratch: &mut Scratch) -> Vec<Pauses> {
    heading(
        &format!("Checkpoints of guests with {TOUCHED} MiB that write to {HOT} MiB, medians, images on tmpfs"),
        &["guests", "cut", "pause ms", "at work of it ms", "all run again after ms", "cuts apart ms", "durable ms"],
    );
    let (all, one) = plan(quick);
    let mut done = Vec::new();
    for running in 1..=12 {
        if one.contains(&running) {
            done.push(say(Pauses { running, all: false, cuts: one_of(running, scratch) }));
        }
        if all.contains(&running) {
            done.push(say(Pauses { running, all: true, cuts: all_of(running, scratch) }));
        }
    }
    compare(&done);
    done
}

fn all_of(running: usize, scratch: &mut Scratch) -> Vec<Cut> {
    let case = Case::new(TOUCHED, HOT);
    let mut net = Net::up(running, case.ram_mib(), &case.command_line(), scratch);
    net.done(TOUCHED << 17);
    (0..=CUTS).map(|_| net.checkpoint().1).skip(1).collect()
}

/// A guest that is in no network, among others.
fn one_of(running: usize, scratch: &mut Scratch) -> Vec<Cut> {
    let case = Case::new(TOUCHED, HOT);
    let mut vms: Vec<_> = (0..running).map(|_| CkvmmVm::boot("auto", case, scratch)).collect();
    let vm = &mut vms[0];
    let mut checkpoint = || {
        std::thread::sleep(super::net::SETTLE);
        let asked = Timestamp::now();
        let durable = vm.checkpoint().durable.as_secs_f64();
        cut_of_one(vm, asked, durable)
    };
    (0..=CUTS).map(|_| checkpoint()).skip(1).collect()
}

fn cut_of_one(vm: &CkvmmVm, asked: Timestamp, durable: f64) -> Cut {
    let done = vm.last_checkpoint();
    let created: Timestamp = done["created"].as_str().and_then(|at| at.parse().ok()).expect("it has an instant");
    let seconds = |field: &str| done[field].as_f64().expect("it has figures") / 1e6;
    let pause = seconds("pause_us");
    let all_run = asked.duration_until(created).as_secs_f64() + pause;
    let (pauses, at_work) = (vec![pause], vec![seconds("pause_cpu_us")]);
    Cut { durable, all_run, apart: 0.0, pauses, at_work, held: 0, logged: 0, log_bytes: 0 }
}

fn say(pauses: Pauses) -> Pauses {
    let Pauses { running, all, cuts } = &pauses;
    row(&[
        running.to_string(),
        if *all { "all" } else { "one" }.to_owned(),
        ms(of_vms(cuts, |cut| &cut.pauses), 2),
        ms(of_vms(cuts, |cut| &cut.at_work), 2),
        ms(of_cuts(cuts, |cut| cut.all_run), 1),
        ms(of_cuts(cuts, |cut| cut.apart), 1),
        ms(of_cuts(cuts, |cut| cut.durable), 0),
    ]);
    pauses
}

/// All that run are cut, against one of as many.
fn compare(done: &[Pauses]) {
    heading("A guest's pause: all are cut ÷ one is", &["guests", "pause", "at work of it"]);
    for all in done.iter().filter(|pauses| pauses.all) {
        let Some(one) = done.iter().find(|one| !one.all && one.running == all.running) else { continue };
        let ratio = |figure: fn(&Cut) -> &Vec<f64>| of_vms(&all.cuts, figure) / of_vms(&one.cuts, figure);
        let ratios = [ratio(|cut| &cut.pauses), ratio(|cut| &cut.at_work)];
        row(&[&[all.running.to_string()], &ratios.map(|ratio| format!("{ratio:.2}"))[..]].concat());
    }
}
