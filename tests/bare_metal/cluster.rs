//! A network of our own guests under test, each with its console and its account of frames.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use ckvmm_tests::{
    LIMIT,
    api::{Api, wait_until},
    bare_metal::Home,
    birth::{Expecting, Held},
    console::{Lines, value},
    paths,
    pidfd::Pidfd,
    process::{Ckvmm, end_all_of, tell_of_nodes},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Frames that each node gets between two events.
const FRAMES: u64 = 300;

/// What a guest says. Its socket is only what wakes who waits: what somebody does not read in time is lost there, and on a
/// busy host that happens; in the log, which is written first, it is not.
struct Said {
    log: File,
    socket: UnixStream,
}

impl Read for Said {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.log.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            if self.socket.read(&mut [0; 4096]).unwrap_or(0) == 0 {
                return self.log.read(buffer);
            }
        }
    }
}

/// A node's console.
pub(crate) struct Console {
    socket: UnixStream,
    pub(crate) lines: Lines,
}

/// What a node says of all others together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) received: u64,
    pub(crate) lost: u64,
}

impl Console {
    fn open(home: &Home, state: &Path, node: usize) -> Self {
        let path = home.join(format!("ckvmm/c-n-{node}.console"));
        let socket = UnixStream::connect(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Made after the socket.
        let path = state.join(format!("n-{node}/console.log"));
        let mut log = wait_until("its log is there", || File::open(&path).ok());
        log.seek(SeekFrom::End(0)).unwrap();
        let said = Said { log, socket: socket.try_clone().unwrap() };
        let lines = Lines::read(&format!("console of node {node}"), said);
        Console { socket, lines }
    }

    pub(crate) fn type_bytes(&self, bytes: &[u8]) {
        (&self.socket).write_all(bytes).unwrap();
    }

    /// Asks the guest for its account.
    pub(crate) fn account(&mut self) -> Account {
        self.ask();
        self.answer()
    }

    fn ask(&self) {
        self.lines.skip();
        self.type_bytes(b"s");
    }

    /// What it says when asked. What is doubled, out of order, changed or astray is never right.
    fn answer(&self) -> Account {
        let mut account = Account::default();
        loop {
            let line = self.lines.next("account", LIMIT, |line| line.strip_prefix("CKVMM net ").map(str::to_owned));
            let number = |key| value(&line, key).map(|text| text.parse::<u64>().unwrap());
            for trouble in ["duplicated", "reordered", "corrupt", "astray", "ahead", "foreign"] {
                assert!(number(trouble).is_none_or(|count| count == 0), "{line}");
            }
            account.received += number("received").unwrap_or(0);
            account.lost += number("lost").unwrap_or(0);
            if line.contains("acknowledged=") {
                return account;
            }
        }
    }

    /// The frames that have come; none is missing.
    pub(crate) fn received(&mut self) -> u64 {
        self.account().whole()
    }
}

impl Account {
    /// The frames that have come; none is missing.
    fn whole(self) -> u64 {
        let Account { received, lost } = self;
        assert_eq!(lost, 0, "of {received} frames");
        received
    }
}

/// A running network.
pub(crate) struct Network<'a> {
    home: &'a Home,
    pub(crate) supervisor: Ckvmm,
    pub(crate) state: PathBuf,
    pub(crate) consoles: Vec<Console>,
    /// By node, while they run.
    pub(crate) members: Vec<Pidfd>,
}

impl<'a> Network<'a> {
    pub(crate) fn up(home: &'a Home, nodes: usize, more: &str) -> Self {
        Self::up_with(home, nodes, more, &json!({}))
    }

    /// With these fields in `net.json`, too.
    pub(crate) fn up_with(home: &'a Home, nodes: usize, more: &str, fields: &Value) -> Self {
        let mut net = json!({
            "version": 1, "name": "c", "subnet": "10.77.0.0/24",
            "nodes": [{ "name": "n", "count": nodes, "config": "node.json" }],
            "checkpoint": { "dir": "checkpoints", "keep": 2 },
        });
        net.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
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

    pub(crate) fn restore(home: &'a Home, checkpoint: &Path, nodes: usize, state: &str) -> Self {
        Self::restore_with(home, checkpoint, nodes, state, &[])
    }

    pub(crate) fn restore_with(home: &'a Home, checkpoint: &Path, nodes: usize, state: &str, more: &[&str]) -> Self {
        let state = home.join(state);
        let arguments = ["network", "restore", checkpoint.to_str().unwrap(), "--state", state.to_str().unwrap()];
        let supervisor = Ckvmm::start(home.path(), arguments.iter().chain(more));
        Self::running(home, supervisor, state, nodes)
    }

    pub(crate) fn running(home: &'a Home, supervisor: Ckvmm, state: PathBuf, nodes: usize) -> Self {
        let mut network = Network { home, supervisor, state, consoles: Vec::new(), members: Vec::new() };
        network.meet(nodes);
        network
    }

    /// Waits until all VMs run, and finds them.
    pub(crate) fn meet(&mut self, nodes: usize) {
        self.supervisor.messages.expect("all VMs run", LIMIT);
        self.consoles = (0..nodes).map(|node| Console::open(self.home, &self.state, node)).collect();
        let status = self.status();
        let pids = status["nodes"].as_array().unwrap().iter().map(|node| node["pid"].as_i64().unwrap() as i32);
        self.members = pids.map(|pid| Pidfd::open(pid).unwrap()).collect();
        assert_eq!(self.members.len(), nodes);
    }

    /// Runs `ckvmm network VERB`.
    pub(crate) fn ask(&self, verb: &[&str]) -> String {
        let state = ["--state", self.state.to_str().unwrap()];
        self.home.ok(["network"].iter().chain(verb).chain(&state))
    }

    /// Waits until every node of these gets frames that it had not got, and sees that none is missing.
    pub(crate) fn go_on(&mut self, nodes: &[usize]) {
        let before = self.received(nodes);
        let deadline = Instant::now() + LIMIT;
        while self.received(nodes).iter().zip(&before).any(|(now, before)| *now < before + FRAMES) {
            assert!(Instant::now() < deadline, "no frames come");
        }
    }

    /// The frames that have come to each of these; none is missing. All are asked at once: to say it takes them a while.
    pub(crate) fn received(&self, nodes: &[usize]) -> Vec<u64> {
        let consoles = || nodes.iter().map(|node| &self.consoles[*node]);
        consoles().for_each(Console::ask);
        consoles().map(|console| console.answer().whole()).collect()
    }

    pub(crate) fn goes_on(&mut self) {
        self.go_on(&(0..self.consoles.len()).collect::<Vec<_>>());
    }

    /// All but one.
    pub(crate) fn go_on_but(&mut self, gone: Option<usize>) {
        self.go_on(&(0..self.consoles.len()).filter(|node| Some(*node) != gone).collect::<Vec<_>>());
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        let dir = PathBuf::from(self.ask(&["checkpoint"]));
        assert!(dir.join("manifest.json").exists(), "{}", dir.display());
        dir
    }

    /// A checkpoint of which node 1 hears when all others have taken their parts, as on a host that is busy: what has come
    /// from them by then is of after the cut.
    pub(crate) fn checkpoint_with_one_late(&mut self) -> PathBuf {
        let mut first = self.consoles.remove(0);
        self.members[1].signal(Signal::SIGSTOP);
        let dir = thread::scope(|scope| {
            let checkpoint = scope.spawn(|| self.checkpoint());
            let others = self.members.len() - 1;
            wait_until("all others have cut", || (self.parts_in_the_making() == others).then_some(()));
            // It runs again, and what it had to send before has gone.
            first.account();
            self.members[1].signal(Signal::SIGCONT);
            checkpoint.join().unwrap()
        });
        self.consoles.insert(0, first);
        dir
    }

    /// In how many parts of an open cut there is what was read from the machine.
    pub(crate) fn parts_in_the_making(&self) -> usize {
        let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        // What is being removed has a name that begins with a dot.
        let is_open = |cut: &PathBuf| cut.file_name().unwrap().as_encoded_bytes()[0] != b'.';
        let cuts = entries(&self.home.join("checkpoints")).filter(is_open);
        let cuts = cuts.filter(|cut| !cut.join("manifest.json").exists());
        cuts.flat_map(|cut| entries(&cut).collect::<Vec<_>>()).filter(|part| part.join("state").exists()).count()
    }

    /// Asks for a checkpoint; `node`'s writer is held.
    pub(crate) fn begin_cut(&self, node: usize) -> Held {
        let expecting = Expecting::new(self.members[node].pid());
        self.supervisor.signal(Signal::SIGUSR1);
        expecting.child()
    }

    /// What each has said of its part of the last cut.
    pub(crate) fn parts(&self, field: &str) -> Vec<u64> {
        let status = self.status();
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().map(|node| node["last_part"][field].as_u64().unwrap_or(0)).collect()
    }

    /// That of all together.
    pub(crate) fn sum(&self, field: &str) -> u64 {
        self.parts(field).iter().sum()
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.ask(&["status", "--json"])).unwrap()
    }

    pub(crate) fn api(&self, node: usize) -> Api {
        Api::new(&self.home.join(format!("ckvmm/c-n-{node}.sock")))
    }

    /// Ends all as a crash of the host would.
    pub(crate) fn kill9(mut self) {
        self.supervisor.signal(Signal::SIGKILL);
        self.kill_members();
    }

    /// They run on without the supervisor. Their names are free when they are gone.
    pub(crate) fn kill_members(&mut self) {
        let members = std::mem::take(&mut self.members);
        members.iter().for_each(Pidfd::kill9);
        members.iter().for_each(|member| member.wait(LIMIT));
    }

    /// All stop sending, and everything that was sent has come.
    pub(crate) fn ends_whole(&mut self) {
        self.consoles.iter_mut().for_each(|console| console.type_bytes(b"x"));
        for console in &mut self.consoles {
            console.lines.expect("drained=yes", LIMIT);
            console.received();
        }
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        self.kill_members();
        if thread::panicking() {
            tell_of_nodes(&self.state);
            end_all_of(self.home.path());
        }
    }
}
