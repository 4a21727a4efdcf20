//! Debian guests in a network, checkpointed in one instant and killed while they talk to each other.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT, config,
    console::{Lines, value},
    pidfd::Pidfd,
    process::{self, Ckvmm},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::vm::{Home, complaints};

const NODES: usize = 3;
/// Thousands of numbers that are added up.
const THOUSANDS: u64 = 60;

/// A running network.
struct Network<'a> {
    home: &'a Home,
    state: PathBuf,
    supervisor: Ckvmm,
    members: Vec<Pidfd>,
    consoles: Vec<Lines>,
}

impl<'a> Network<'a> {
    /// Boots `nodes` guests that run `jobs`.
    fn up(home: &'a Home, nodes: usize, jobs: &str) -> Self {
        describe(home, nodes, jobs, &json!({}));
        let supervisor = Ckvmm::start(home.path(), ["network", "up", "net.json"]);
        Self::running(home, supervisor, "c.ckvmm", nodes)
    }

    fn restore(home: &'a Home, checkpoint: &str, nodes: usize, state: &str) -> Self {
        let supervisor = Ckvmm::start(home.path(), ["network", "restore", checkpoint, "--state", state]);
        Self::running(home, supervisor, state, nodes)
    }

    fn running(home: &'a Home, supervisor: Ckvmm, state: &str, nodes: usize) -> Self {
        let consoles = (0..nodes).map(|node| open_console(home.path(), node)).collect();
        let members = Pidfd::children_of(supervisor.pid());
        assert_eq!(members.len(), nodes);
        Network { home, state: home.path().join(state), supervisor, members, consoles }
    }

    /// Checkpoints it, and returns the checkpoint's directory.
    fn checkpoint(&self) -> String {
        let arguments = ["network", "checkpoint", "--state", self.state.to_str().unwrap()];
        let output = process::run(self.home.path(), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Ends all as a crash of the host would.
    fn kill9(mut self) {
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

    /// All that a node has said since this network was started, whoever listened.
    fn said(&self, node: usize) -> Vec<String> {
        let log = fs::read(self.state.join(format!("n-{node}/console.log"))).unwrap();
        String::from_utf8_lossy(&log).lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Some word of each node that only its running program knows.
    fn nonces(&self) -> Vec<String> {
        let nonce = |node| self.said(node).iter().rev().find_map(|line| value(line, "nonce").map(str::to_owned));
        (0..self.consoles.len()).map(|node| nonce(node).expect("each node has begun")).collect()
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

/// Writes `net.json`, with these fields too, and what it names.
fn describe(home: &Home, nodes: usize, jobs: &str, fields: &Value) {
    let mut net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24",
        "nodes": [{ "name": "n", "count": nodes, "config": "vm.json" }],
        "checkpoint": { "dir": "checkpoints" },
    });
    net.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(home.path().join("net.json"), net.to_string()).unwrap();
    let mut config = config::add_to_cmdline(config::linux(jobs), "{network} ckvmm.to=n-0");
    // What is written while guests are busy takes its time.
    config["memory"] = "96MiB".into();
    config::write(home.path(), &config);
}

fn open_console(home: &Path, node: usize) -> Lines {
    let path = home.join(format!("ckvmm/c-n-{node}.console"));
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(&path) {
            Ok(socket) => return Lines::read(&format!("console of node {node}"), socket),
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// How many parts of the sum node 0 says that it has got.
fn received(line: &str) -> Option<u64> {
    value(line.strip_prefix("CKVMM sum ")?, "received")?.parse().ok()
}

#[test]
fn a_job_runs_on_its_node_which_knows_all_others() {
    let home = Home::new();
    let script = "hostname; until ping -c 1 -W 1 n-0 >/dev/null 2>&1; do :; done; echo \"$0|$1\"; exit 7";
    let job = json!({ "on": "n-1", "command": ["sh", "-c", script, "two  words, 100%", "é"] });
    describe(&home, 2, "command", &json!({ "job": job }));
    let mut network = Ckvmm::start(home.path(), ["network", "run", "net.json"]);
    assert_eq!(network.wait(LIMIT), 7);
    assert_eq!(network.console.all(), ["n-1", "two  words, 100%|é", "CKVMM job=command ended status=7"]);
}

#[test]
#[ignore = "make soak: the lab has one CPU for three guests and their writers"]
fn a_sum_over_tcp_comes_out_right_although_all_of_its_nodes_died_in_the_middle() {
    let home = Home::new();
    let network = Network::up(&home, NODES, &format!("sum ckvmm.thousands={THOUSANDS} ckvmm.interval=0.3"));
    let enough = |line: &str| received(line).filter(|parts| *parts >= THOUSANDS / 4);
    let before = network.consoles[0].next("a fourth of the parts", LIMIT, enough);
    let checkpoint = network.checkpoint();
    let kept = network.said(0).iter().rev().find_map(|line| received(line)).unwrap();
    let nonces = network.nonces();
    network.kill9();

    let mut network = Network::restore(&home, &checkpoint, NODES, "again");
    let answer = network.consoles[0].expect("CKVMM sum answer=", LIMIT);
    assert!(answer.ends_with(" right"), "{answer}");
    let down = process::run(home.path(), ["network", "down", "--state", "again"]);
    assert!(down.status.success(), "{down:?}");
    assert_eq!(network.supervisor.wait(LIMIT), 0, "all guests have shut down");
    let went_on = network.said(0).iter().find_map(|line| received(line)).unwrap();
    assert!(went_on > before && went_on <= kept + 1, "{before} {went_on} {kept}");
    assert_eq!(network.nonces(), nonces, "the same programs went on");
    for node in 0..NODES {
        let lines = network.said(node);
        assert!(complaints(&lines).is_empty(), "{:?}", complaints(&lines));
    }
}
