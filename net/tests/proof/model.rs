//! Every order of events of small networks, by exhaustion.

use std::thread;
use std::time::Instant;

use ckvmm_net::cut::Limits;
use ckvmm_net::{Node, Route};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

use crate::mutants::Mutant;
use crate::oracle;
use crate::world::{Action, Budget, Plan, World};

/// Room for all frames of a script.
const LIMITS: Limits = Limits { slots: 2, pending_bytes: 8, log_bytes: 8 };

const WRONG: &str = "nothing is wrong";
const UNWANTED: &str = "what is held makes a cut";

impl Model for Plan {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.wrong.is_none() {
            world.actions(self, actions);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.step(self, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Plan>> {
        vec![
            Property::always(WRONG, |_, world: &World| world.wrong.is_none()),
            Property::always(UNWANTED, |_, world| !oracle::held_without_cut(world)),
            Property::always("all comes to rest", |plan: &Plan, world: &World| {
                world.wrong.is_some() || !oracle::is_stuck(plan, world)
            }),
            Property::sometimes("a checkpoint has frames that were under way", |_, world: &World| world.has_logs()),
            Property::sometimes("it comes to what the plan is for", |plan: &Plan, world| (plan.aim)(world)),
        ]
    }
}

/// Nothing goes wrong.
const ONE: Budget = Budget {
    cuts: 1,
    cut_failures: 0,
    writer_failures: 0,
    coordinator_deaths: 0,
    usurpations: 0,
    deadlines: 0,
    store_failures: 0,
    losses: 0,
    kills: 0,
    power_offs: 0,
    breaks: 0,
};

fn to(node: u16) -> Route {
    Route::To(Node(node))
}

fn plan<const NODES: usize>(scripts: [&[Route]; NODES], budget: Budget) -> Plan {
    let scripts = scripts.map(<[Route]>::to_vec).to_vec();
    Plan { scripts, wire: 0, guests_wait: false, limits: LIMITS, budget, mutant: None, aim: |_| true }
}

/// Two nodes that send each other one frame.
fn one_each(budget: Budget) -> Plan {
    plan([&[to(1)], &[to(0)]], budget)
}

/// Two nodes that send each other two frames.
fn two_each(budget: Budget) -> Plan {
    plan([&[to(1), to(1)], &[to(0), to(0)]], budget)
}

/// Three nodes that send to the next.
fn ring(budget: Budget) -> Plan {
    plan([&[to(1)], &[to(2)], &[to(0)]], budget)
}

/// Three nodes, two of which send to all.
fn broadcast(budget: Budget) -> Plan {
    plan([&[Route::Everyone], &[Route::Everyone], &[]], budget)
}

/// What was found, and how wrong the world was there.
type Found = (&'static str, Option<&'static str>);

/// Looks at every state, prints how many there are and how something that is wrong came about.
fn explore(what: &str, plan: Plan) -> Option<Found> {
    // One thread finds the shortest way to what a mutant does, always the same.
    let threads = if plan.mutant.is_some() { 1 } else { thread::available_parallelism().map_or(1, usize::from) };
    let started = Instant::now();
    let checker = plan.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    found(what, &checker, started)
}

/// The same, in depth first: it keeps no states but those on its way, and finds no shortest way to what is wrong.
fn explore_deep(what: &str, plan: Plan) -> Option<Found> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let checker = plan.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    found(what, &checker, started)
}

fn found(what: &str, checker: &impl Checker<Plan>, started: Instant) -> Option<Found> {
    let seconds = started.elapsed().as_secs_f32();
    println!("model: {what}: {} states, {} steps, {seconds:.1} s", checker.unique_state_count(), checker.max_depth());
    for property in checker.model().properties() {
        match (checker.discovery(property.name), property.expectation) {
            (Some(path), Expectation::Always) => {
                let wrong = path.last_state().wrong;
                println!("model: {what}: {:?}, {wrong:?} after", property.name);
                path.into_actions().iter().for_each(|action| println!("  {action:?}"));
                return Some((property.name, wrong));
            }
            (None, Expectation::Sometimes) => return Some((property.name, None)),
            _ => {}
        }
    }
    None
}

#[test]
fn a_cut_whose_frames_wait_for_the_guest() {
    let plan = Plan { guests_wait: true, ..two_each(ONE) };
    assert_eq!(explore("one cut", plan), None);
}

#[test]
fn a_cut_or_its_writer_fails() {
    let plan = two_each(Budget { cut_failures: 1, writer_failures: 1, ..ONE });
    assert_eq!(explore("a cut or its writer fails", plan), None);
}

#[test]
fn a_coordinator_dies() {
    let aim = |world: &World| world.left.coordinator_deaths == 0 && world.store.committed().is_some();
    let plan = Plan { aim, ..two_each(Budget { coordinator_deaths: 1, ..ONE }) };
    assert_eq!(explore("a coordinator dies", plan), None);
}

#[test]
fn two_coordinators_at_once_and_a_store_that_fails() {
    let aim = |world: &World| world.seats.iter().any(|seat| seat.brain.is_deposed());
    let plan = Plan { aim, ..one_each(Budget { usurpations: 1, store_failures: 1, ..ONE }) };
    assert_eq!(explore("two coordinators, a store that fails", plan), None);
}

#[test]
fn two_cuts_and_a_deadline() {
    let plan = one_each(Budget { cuts: 2, deadlines: 1, ..ONE });
    assert_eq!(explore("two cuts, a deadline", plan), None);
}

#[test]
fn all_is_killed_and_restored_beside_packets_of_its_older_life() {
    let stale = |world: &World| world.store.base.is_some() && world.is_any_packet_stale();
    let plan = Plan { wire: 1, aim: stale, ..two_each(Budget { cuts: 2, kills: 1, ..ONE }) };
    assert_eq!(explore("kill and restore", plan), None);
}

#[test]
fn a_vmm_dies_and_later_all_is_restored() {
    let plan = two_each(Budget { losses: 1, kills: 1, ..ONE });
    assert_eq!(explore("a VMM dies, restore", plan), None);
}

#[test]
fn a_guest_powers_off_or_a_link_breaks() {
    let aim = |world: &World| world.nodes.iter().any(|vmm| vmm.gone) && world.store.committed().is_some();
    let plan = Plan { aim, ..two_each(Budget { power_offs: 1, breaks: 1, ..ONE }) };
    assert_eq!(explore("a guest powers off, a link breaks", plan), None);
}

#[test]
fn a_link_is_full() {
    let aim = |world: &World| world.nodes.iter().any(|vmm| vmm.taking.is_some() && !vmm.cut.may_pop());
    let limits = Limits { slots: 1, ..LIMITS };
    let plan = Plan { limits, aim, ..two_each(Budget { cut_failures: 1, ..ONE }) };
    assert_eq!(explore("a full link", plan), None);
}

#[test]
fn an_inbox_is_full() {
    let aim = |world: &World| world.store.base.iter().flatten().flatten().any(|image| !image.guest.dropped.is_empty());
    let limits = Limits { pending_bytes: 1, ..LIMITS };
    let plan = Plan { guests_wait: true, limits, aim, ..two_each(Budget { kills: 1, ..ONE }) };
    assert_eq!(explore("a full inbox", plan), None);
}

#[test]
fn three_nodes_send_to_all() {
    assert_eq!(explore("three nodes, broadcast", broadcast(ONE)), None);
}

#[test]
fn three_nodes_in_a_ring() {
    assert_eq!(explore("three nodes, ring", ring(ONE)), None);
}

/// What takes minutes: `make model`.
#[test]
#[ignore = "minutes"]
fn larger() {
    let failures = Budget { cut_failures: 1, writer_failures: 1, coordinator_deaths: 1, ..ONE };
    let plans = [
        ("two nodes, all failures, frames wait", Plan { guests_wait: true, ..two_each(failures) }),
        ("two nodes, two cuts, failures", two_each(Budget { cuts: 2, coordinator_deaths: 0, ..failures })),
        ("two nodes, two coordinators", two_each(Budget { usurpations: 1, ..ONE })),
        ("two nodes, two cuts, a coordinator dies", two_each(Budget { cuts: 2, coordinator_deaths: 1, ..ONE })),
        ("two nodes, three cuts, two kills", Plan { wire: 1, ..one_each(Budget { cuts: 3, kills: 2, ..ONE }) }),
        ("three nodes, ring, a cut fails", ring(Budget { cut_failures: 1, ..ONE })),
        ("three nodes, in a row, one powers off", plan([&[to(1)], &[to(2)], &[]], Budget { power_offs: 1, ..ONE })),
        ("three nodes, broadcast, a coordinator dies", broadcast(Budget { coordinator_deaths: 1, ..ONE })),
    ];
    for (what, plan) in plans {
        assert_eq!(explore_deep(what, plan), None);
    }
}

#[test]
fn each_mutant_is_caught() {
    let restored = two_each(Budget { cuts: 2, kills: 1, ..ONE });
    let rivals = one_each(Budget { usurpations: 1, ..ONE });
    let mutants = [
        (Mutant::NoLog, two_each(ONE), WRONG, Some("a checkpoint lacks a frame")),
        (Mutant::NoHold, two_each(ONE), WRONG, Some("a checkpoint has a frame that was sent after it")),
        (Mutant::PrepareEarly, two_each(ONE), WRONG, Some("a checkpoint lacks a frame")),
        (Mutant::NoForcedCut, two_each(ONE), UNWANTED, None),
        (Mutant::PruneEarly, restored, WRONG, Some("there was a checkpoint, and there is none to go back to")),
        (Mutant::DecisionOverwritten, rivals, WRONG, Some("a decision was changed")),
    ];
    for (mutant, plan, property, wrong) in mutants {
        let found = explore(&format!("{mutant:?}"), Plan { mutant: Some(mutant), ..plan });
        assert_eq!(found, Some((property, wrong)), "{mutant:?}");
    }
}
