//! Our own guests in a network, each numbering raw frames to all others at full speed: live checkpoints of all in one
//! instant, and a restore after all was killed, lose, double and reorder no frame.
//!
//! No node sends more than the others have places for, and each sees every gap, so a frame that is missing is our fault.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use ckvmm_tests::{
    LIMIT,
    bare_metal::Home,
    console::{Console, value},
    paths,
    pidfd::Pidfd,
    process::Ckvmm,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::guest;

/// Live checkpoints in a run, until one had something to log.
const CUTS_MAX: usize = 30;
/// Frames that each node gets between two of them.
const FRAMES: u64 = 300;

/// Asks the guest for its account; returns how many frames it has got. Nothing is ever missing in one.
fn account(console: &mut Console) -> u64 {
    console.lines.skip();
    console.type_bytes(b"s");
    let mut received = 0;
    loop {
        let line = console.lines.next("account", LIMIT, |line| line.strip_prefix("CKVMM net ").map(str::to_owned));
        let number = |key| value(&line, key).map(|text| text.parse::<u64>().unwrap());
        for trouble in ["lost", "duplicated", "reordered", "corrupt", "astray", "ahead", "foreign"] {
            assert!(number(trouble).is_none_or(|count| count == 0), "{line}");
        }
        received += number("received").unwrap_or(0);
        if line.contains("acknowledged=") {
            return received;
        }
    }
}

/// A running network.
pub(crate) struct Network<'a> {
    home: &'a Home,
    supervisor: Ckvmm,
    state: PathBuf,
    pub(crate) consoles: Vec<Console>,
    /// While they run.
    pub(crate) members: Vec<Pidfd>,
}

impl<'a> Network<'a> {
    pub(crate) fn up(home: &'a Home, nodes: usize, more: &str) -> Self {
        let net = json!({
            "version": 1, "name": "c", "subnet": "10.77.0.0/24",
            "nodes": [{ "name": "n", "count": nodes, "config": "node.json" }],
            "checkpoint": { "dir": "checkpoints" },
        });
        let node = json!({
            "version": 1, "name": "node", "memory": "32MiB",
            "kernel": {
                "image": paths::guest("bare-metal.elf"),
                "cmdline": format!("job=net peers={{nodes}} me={{index}} {more}"),
            },
        });
        fs::write(home.join("net.json"), net.to_string()).unwrap();
        fs::write(home.join("node.json"), node.to_string()).unwrap();
        let supervisor = Ckvmm::start(home.path(), ["network", "up", "net.json"]);
        Self::running(home, supervisor, home.join("c.ckvmm"), nodes)
    }

    fn restore(home: &'a Home, checkpoint: &Path, nodes: usize, state: &str) -> Self {
        Self::restore_with(home, checkpoint, nodes, state, &[])
    }

    pub(crate) fn restore_with(home: &'a Home, checkpoint: &Path, nodes: usize, state: &str, more: &[&str]) -> Self {
        let state = home.join(state);
        let arguments = ["network", "restore", checkpoint.to_str().unwrap(), "--state", state.to_str().unwrap()];
        let supervisor = Ckvmm::start(home.path(), arguments.iter().chain(more));
        Self::running(home, supervisor, state, nodes)
    }

    pub(crate) fn running(home: &'a Home, supervisor: Ckvmm, state: PathBuf, nodes: usize) -> Self {
        let consoles =
            (0..nodes).map(|node| Console::open(&home.join(format!("ckvmm/c-n-{node}.console")), LIMIT)).collect();
        let members = Pidfd::children_of(supervisor.pid());
        assert_eq!(members.len(), nodes);
        Network { home, supervisor, state, consoles, members }
    }

    /// Waits until every node gets frames that it had not got, and sees that none is missing.
    pub(crate) fn goes_on(&mut self) {
        for console in &mut self.consoles {
            let before = account(console);
            let deadline = Instant::now() + LIMIT;
            while account(console) < before + FRAMES {
                assert!(Instant::now() < deadline, "no frames come");
            }
        }
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        let state = self.state.to_str().unwrap();
        let dir = PathBuf::from(self.home.ok(["network", "checkpoint", "--state", state]));
        assert!(dir.join("manifest.json").exists(), "{}", dir.display());
        dir
    }

    /// Frames that were under way at the last cut, and packets held so far.
    fn under_way(&self) -> (u64, u64) {
        let status = self.status();
        let parts = || status["nodes"].as_array().unwrap().iter().map(|node| &node["last_part"]);
        let sum = |field: &str| parts().map(|part| part[field].as_u64().unwrap_or(0)).sum();
        assert_eq!(sum("dropped_frames"), 0, "{status}");
        (sum("logged_frames"), sum("held_packets"))
    }

    fn status(&self) -> Value {
        self.home.json(["network", "status", "--json", "--state", self.state.to_str().unwrap()])
    }

    /// Ends all as a crash of the host would.
    pub(crate) fn kill9(mut self) {
        self.supervisor.signal(Signal::SIGKILL);
        self.kill_members();
    }

    /// They run on without the supervisor. Their names are free when they are gone.
    fn kill_members(&mut self) {
        for member in std::mem::take(&mut self.members) {
            member.kill9();
            member.wait(LIMIT);
        }
    }

    /// All stop sending, and everything that was sent has come.
    pub(crate) fn ends_whole(&mut self) {
        self.consoles.iter_mut().for_each(|console| console.type_bytes(b"x"));
        for console in &mut self.consoles {
            console.lines.expect("drained=yes", LIMIT);
            account(console);
        }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        self.kill_members();
        if thread::panicking() {
            for node in 0..self.consoles.len() {
                let output = self.state.join(format!("n-{node}/output"));
                eprintln!("node {node}: {}", fs::read_to_string(output).unwrap_or_default());
            }
        }
    }
}

fn checkpoints_lose_nothing(nodes: usize, more: &str, least: usize) {
    if guest::skipped() {
        return;
    }
    let home = Home::new();
    let mut network = Network::up(&home, nodes, more);
    let (mut last, mut logged) = (PathBuf::new(), 0);
    let mut cuts = 0;
    // By chance all that was sent may have come: then once more.
    while cuts < least || (logged == 0 && cuts < CUTS_MAX) {
        cuts += 1;
        network.goes_on();
        last = network.checkpoint();
        logged += network.under_way().0;
    }
    println!("{nodes} nodes: {logged} frames under way at {cuts} cuts, {} packets held", network.under_way().1);
    assert!(logged > 0, "no cut had anything to log");
    network.goes_on();
    network.kill9();

    let mut network = Network::restore(&home, &home.join(&last), nodes, "again.ckvmm");
    network.goes_on();
    let later = network.checkpoint();
    network.goes_on();
    network.ends_whole();
    network.kill9();

    let mut network = Network::restore(&home, &home.join(&later), nodes, "once-more.ckvmm");
    network.goes_on();
    network.ends_whole();
    network.kill9();
}

#[test]
fn a_network_of_three_is_checkpointed_and_restored_without_losing_a_frame() {
    checkpoints_lose_nothing(3, "broadcast=1/16", 3);
}

#[test]
#[ignore = "minutes"]
fn networks_of_two_and_eight_are_too() {
    checkpoints_lose_nothing(2, "", 50);
    checkpoints_lose_nothing(8, "broadcast=1/16", 50);
}
