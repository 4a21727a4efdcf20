//! Networks that go back to their last checkpoint by themselves, that make checkpoints by themselves, and how they end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::time::{Duration, Instant};

use ckvmm_tests::{
    LIMIT,
    bare_metal::Home,
    lines::{CRASHED, FAILED, is_error, refused},
    process::Ckvmm,
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{cluster::Network, guest};

#[test]
fn a_network_goes_back_by_itself_as_often_as_it_may() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up_with(&home, 2, "", &json!({ "on_failure": "restore", "max_restores": 2 }));
    network.goes_on();
    let last = home.join(network.checkpoint());
    for nth in 1..=2 {
        network.goes_on();
        network.members[nth - 1].kill9();
        let line = network.supervisor.messages.expect("its VM is gone (killed by SIGKILL)", LIMIT);
        let which = format!("all go back to {} (restore {nth} of at most 2)", last.display());
        is_error(&line, &[&format!("n-{}", nth - 1), &which]);
        network.members.iter().for_each(|member| member.wait(LIMIT));
        network.meet(2);
        network.goes_on();
        assert_eq!(network.status()["restores"], nth);
    }
    assert!(home.join(network.checkpoint()) > last, "it makes checkpoints");
    network.goes_on();
    network.members[0].kill9();
    assert_eq!(network.supervisor.wait(LIMIT), FAILED);
    let said = network.supervisor.messages.all();
    is_error(said.last().unwrap(), &["n-0: its VM is gone", "has gone back 2 times", "`ckvmm network restore "]);
    network.members.iter().for_each(|member| member.wait(LIMIT));
}

#[test]
fn from_a_crash_of_a_guest_all_go_back() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up_with(&home, 2, "", &json!({ "on_failure": "restore", "max_restores": 1 }));
    network.goes_on();
    let last = home.join(network.checkpoint());
    network.goes_on();
    network.consoles[1].type_bytes(b"c");
    let line = network.supervisor.messages.expect("its VM is gone (status 3: the guest has panicked)", LIMIT);
    let which = format!("all go back to {} (restore 1 of at most 1)", last.display());
    is_error(&line, &["n-1", &which]);
    network.members.iter().for_each(|member| member.wait(LIMIT));
    network.meet(2);
    network.goes_on();
    assert!(home.join(network.checkpoint()) > last, "it makes checkpoints again");
    network.ends_whole();
    network.kill9();
}

#[test]
fn from_a_broken_link_all_go_back() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up_with(&home, 3, "", &json!({ "on_failure": "restore", "max_restores": 1 }));
    network.goes_on();
    let last = home.join(network.checkpoint());
    network.goes_on();
    network.ask(&["link", "n-2:n-0", "--break"]);
    let line = network.supervisor.messages.expect("is broken", LIMIT);
    let which = format!("n-0: its link to n-2 is broken; all go back to {} (restore 1 of at most 1)", last.display());
    is_error(&line, &[&which]);
    network.members.iter().for_each(|member| member.wait(LIMIT));
    network.meet(3);
    network.goes_on();
    assert!(home.join(network.checkpoint()) > last, "it makes checkpoints again");
    network.ends_whole();
    network.kill9();
}

#[test]
fn another_supervisor_takes_over_what_the_first_has_left() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up_with(&home, 3, "broadcast=1/16", &json!({ "on_failure": "restore" }));
    network.goes_on();
    network.checkpoint();
    let adopt = ["network", "adopt", "--state", "c.ckvmm"];
    refused(&home.run(adopt), FAILED, &["c.ckvmm/network.lock", "a running network has it"]);
    // A cut is open when it dies.
    let writer = network.begin_cut(1);
    network.supervisor.signal(Signal::SIGKILL);
    drop(writer);
    network.goes_on();
    for begins in
        [&["network", "up", "net.json"][..], &["network", "restore", "checkpoints/000001", "--state", "c.ckvmm"]]
    {
        let line =
            ["c.ckvmm: the VM of n-", " runs there, and its supervisor has ended", "`ckvmm network adopt --state "];
        refused(&home.run(begins), FAILED, &line);
    }
    network.goes_on();

    network.supervisor = Ckvmm::start(home.path(), adopt);
    network.supervisor.messages.expect("c: 3 VMs taken over", LIMIT);
    let line = network.supervisor.messages.expect("checkpoint: ", LIMIT);
    is_error(&line, &["its coordinator has ended", "; the network goes on"]);
    network.goes_on();
    let last = home.join(network.checkpoint());
    assert_eq!(last, home.checkpoint(3), "a number is not used again");
    network.goes_on();

    network.members[2].kill9();
    network.supervisor.messages.expect(&format!("n-2: its VM is gone; all go back to {}", last.display()), LIMIT);
    network.members.iter().for_each(|member| member.wait(LIMIT));
    network.meet(3);
    network.goes_on();
    network.checkpoint();
    network.supervisor.signal(Signal::SIGKILL);
    network.goes_on();
    network.supervisor = Ckvmm::start(home.path(), adopt);
    network.supervisor.messages.expect("c: 3 VMs taken over", LIMIT);
    assert_eq!(network.status()["restores"], 1, "who takes over goes on counting");
    network.ends_whole();
    network.kill9();
    let nobody = home.run(adopt);
    refused(&nobody, FAILED, &["c.ckvmm: no VM of the network runs any more", "`ckvmm network restore`"]);
}

#[test]
fn who_takes_over_hears_how_the_guests_end() {
    if guest::skipped() {
        return;
    }
    let home = Home::in_memory();
    let mut network = Network::up(&home, 2, "");
    network.goes_on();
    network.supervisor.signal(Signal::SIGKILL);
    network.goes_on();
    network.supervisor = Ckvmm::start(home.path(), ["network", "adopt", "--state", "c.ckvmm"]);
    network.supervisor.messages.expect("c: 2 VMs taken over", LIMIT);
    network.consoles[0].type_bytes(b"c");
    network.members[0].wait(LIMIT);
    // And a third one, what the second has heard.
    network.supervisor.signal(Signal::SIGKILL);
    network.supervisor = Ckvmm::start(home.path(), ["network", "adopt", "--state", "c.ckvmm"]);
    network.supervisor.messages.expect("c: 1 VMs taken over", LIMIT);
    network.consoles[1].type_bytes(b"q");
    assert_eq!(network.supervisor.wait(LIMIT), CRASHED);
}

#[test]
fn checkpoints_are_made_by_themselves_and_the_newest_kept() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let checkpoint = json!({ "dir": "checkpoints", "every": "1s", "keep": 2 });
    let mut network = Network::up_with(&home, 2, "", &json!({ "checkpoint": checkpoint }));
    network.supervisor.messages.expect("checkpoints/000004: 2 VMs", LIMIT);
    network.goes_on();
    network.supervisor.signal(Signal::SIGUSR2);
    assert_eq!(network.supervisor.wait(LIMIT), 85);
    let names = home.names("checkpoints");
    let numbers: Vec<_> = names.iter().filter(|name| name.starts_with('0')).collect();
    assert!(numbers.len() == 2 && names.iter().any(|name| name == "latest"), "{names:?}");
    let newest = home.join("checkpoints").join(numbers[1]);
    let mut network = Network::restore(&home, &newest, 2, "again.ckvmm");
    network.goes_on();
    network.ends_whole();
    network.kill9();
}

#[test]
fn a_network_whose_guests_ignore_the_power_button_ends_all_the_same() {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let nobody = home.run(["network", "status"]);
    refused(&nobody, FAILED, &["the current directory: no network runs from here", "--state"]);

    let mut network = Network::up_with(&home, 2, "", &json!({ "on_failure": "restore" }));
    network.goes_on();
    let state = network.state.to_str().unwrap().to_owned();
    let asked = Instant::now();
    // One hears of both at once.
    network.members[1].signal(Signal::SIGSTOP);
    home.ok(["network", "down", "--state", &state]);
    home.ok(["network", "down", "--state", &state]);
    network.members[1].signal(Signal::SIGCONT);
    assert_eq!(network.supervisor.wait(LIMIT), FAILED);
    assert!(asked.elapsed() < Duration::from_secs(30), "asked twice, they are ended before \"stop_timeout\" is over");
    drop(network);

    let mut network = Network::up_with(&home, 2, "", &json!({ "on_failure": "restore" }));
    network.goes_on();
    home.ok(["network", "down", "--force", "--state", &state]);
    assert_eq!(network.supervisor.wait(LIMIT), FAILED);
    let said = network.supervisor.messages.all();
    assert!(!said.iter().any(|line| line.contains("gone")), "who is ended is no failure: {said:?}");
}
