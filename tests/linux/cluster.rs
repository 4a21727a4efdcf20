//! A network of Debian guests under test.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT, config,
    console::Lines,
    pidfd::Pidfd,
    process::{self, Ckvmm, end_all_of, tell_of_nodes},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::vm::Home;

/// So many lines of a guest's console are told of a test that fails: a panic and what led to it.
const TOLD: usize = 80;

/// A running network.
pub(crate) struct Network<'a> {
    home: &'a Home,
    state: PathBuf,
    pub(crate) supervisor: Ckvmm,
    members: Vec<Pidfd>,
    /// Where is typed: a console has one connection for both.
    typed: Vec<UnixStream>,
    pub(crate) consoles: Vec<Lines>,
}

impl<'a> Network<'a> {
    /// Boots `nodes` guests that run `jobs`.
    pub(crate) fn up(home: &'a Home, nodes: usize, jobs: &str) -> Self {
        describe(home, nodes, jobs, &json!({}));
        let supervisor = Ckvmm::start(home.path(), ["network", "up", "net.json"]);
        Self::running(home, supervisor, "c.ckvmm", nodes)
    }

    /// Boots the `nodes` of `net.json`, and its job with them.
    pub(crate) fn run(home: &'a Home, nodes: usize) -> Self {
        let supervisor = Ckvmm::start(home.path(), ["network", "run", "net.json"]);
        Self::running(home, supervisor, "c.ckvmm", nodes)
    }

    pub(crate) fn restore(home: &'a Home, checkpoint: &str, nodes: usize, state: &str) -> Self {
        let supervisor = Ckvmm::start(home.path(), ["network", "restore", checkpoint, "--state", state]);
        Self::running(home, supervisor, state, nodes)
    }

    fn running(home: &'a Home, supervisor: Ckvmm, state: &str, nodes: usize) -> Self {
        let (typed, consoles) = (0..nodes).map(|node| open_console(home.path(), node)).unzip();
        let members = Pidfd::children_of(supervisor.pid());
        assert_eq!(members.len(), nodes);
        Network { home, state: home.path().join(state), supervisor, members, typed, consoles }
    }

    /// Checkpoints it, and returns the checkpoint's directory.
    pub(crate) fn checkpoint(&self) -> String {
        self.ask(&["checkpoint"])
    }

    /// What it answers to this verb of `ckvmm network`.
    pub(crate) fn ask(&self, verb: &[&str]) -> String {
        let arguments = [&["network"], verb, &["--state", self.state.to_str().unwrap()]].concat();
        let output = process::run(self.home.path(), arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
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

    /// All that a node has said since this network was started, whoever listened.
    pub(crate) fn said(&self, node: usize) -> Vec<String> {
        let log = fs::read(self.state.join(format!("n-{node}/console.log"))).unwrap();
        String::from_utf8_lossy(&log).lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Types a line on a node's console.
    pub(crate) fn type_line(&self, node: usize, line: &str) {
        (&self.typed[node]).write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        self.kill_members();
        if thread::panicking() {
            tell_of_nodes(&self.state);
            for (node, console) in self.consoles.iter().enumerate() {
                let lines = console.all();
                eprintln!("n-{node} said last:\n{}", lines[lines.len().saturating_sub(TOLD)..].join("\n"));
            }
            end_all_of(self.home.path());
        }
    }
}

/// Writes `net.json`, with these fields too, and what it names.
pub(crate) fn describe(home: &Home, nodes: usize, jobs: &str, fields: &Value) {
    let mut config = config::add_to_cmdline(config::linux(jobs), "{network} ckvmm.to=n-0");
    // Little, since what is written while guests are busy takes its time; with room for what they receive meanwhile.
    config["memory"] = "128MiB".into();
    describe_as(home, nodes, &config, fields);
}

/// The same for nodes of that configuration.
pub(crate) fn describe_as(home: &Home, nodes: usize, config: &Value, fields: &Value) {
    let mut net = json!({
        "version": 1, "name": "c", "subnet": "10.77.0.0/24",
        "nodes": [{ "name": "n", "count": nodes, "config": "vm.json" }],
        "checkpoint": { "dir": "checkpoints" },
    });
    net.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    fs::write(home.path().join("net.json"), net.to_string()).unwrap();
    config::write(home.path(), config);
}

fn open_console(home: &Path, node: usize) -> (UnixStream, Lines) {
    let path = home.join(format!("ckvmm/c-n-{node}.console"));
    let deadline = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(&path) {
            Ok(socket) => {
                let typed = socket.try_clone().unwrap();
                return (typed, Lines::read(&format!("console of node {node}"), socket));
            }
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        thread::sleep(Duration::from_millis(10));
    }
}
