//! A running network with its guests' consoles.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT,
    console::{Console, value},
    paths,
    pidfd::Pidfd,
    process::Ckvmm,
};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde_json::json;

use super::cut::Cut;
use crate::{case::Place, guest::answer, scratch::Scratch};

/// Time for what has just begun to settle.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);

pub(crate) struct Net {
    nodes: usize,
    dir: PathBuf,
    state: PathBuf,
    /// Absent while it does not run.
    supervisor: Option<Ckvmm>,
    pub(crate) members: Vec<Pidfd>,
    consoles: Vec<Console>,
    /// Packets that were held before the next cut.
    held: u64,
}

impl Net {
    /// Boots so many guests with this command line, in which `{nodes}` and `{index}` stand for what they are.
    pub(crate) fn up(nodes: usize, memory_mib: u64, command_line: &str, scratch: &mut Scratch) -> Self {
        let dir = scratch.dir(Place::Tmpfs);
        let net = json!({
            "version": 1, "name": "c", "subnet": "10.77.0.0/24",
            "nodes": [{ "name": "n", "count": nodes, "config": "node.json" }],
            "checkpoint": { "dir": "checkpoints", "keep": 2 },
        });
        let node = json!({
            "version": 1, "name": "node", "memory": format!("{memory_mib}MiB"),
            "kernel": { "image": paths::guest("bare-metal.elf"), "cmdline": command_line },
        });
        for (name, value) in [("net.json", net), ("node.json", node)] {
            fs::write(dir.join(name), value.to_string()).expect("there is room for a file");
        }
        let mut command = scratch.ckvmm(&dir);
        command.args(["network", "up", "net.json"]);
        let state = dir.join("c.ckvmm");
        let mut net = Net { nodes, dir, state, supervisor: None, members: Vec::new(), consoles: Vec::new(), held: 0 };
        net.start(command, scratch);
        net
    }

    /// Ends all of it as a crash would, and goes on with a checkpoint; returns the seconds until every guest has answered.
    pub(crate) fn restart(&mut self, checkpoint: &Path, scratch: &Scratch) -> f64 {
        self.kill();
        let _ = fs::remove_dir_all(&self.state);
        let mut command = scratch.ckvmm(&self.dir);
        command.args(["network", "restore"]).arg(checkpoint).arg("--state").arg(&self.state);
        self.start(command, scratch)
    }

    /// Returns the seconds until every guest has answered.
    fn start(&mut self, command: Command, scratch: &Scratch) -> f64 {
        let begun = Instant::now();
        let supervisor = scratch.start(command);
        let path = |node| self.dir.join(format!("ckvmm/c-n-{node}.console"));
        let answered = |node| {
            let mut console = Console::open(&path(node), LIMIT);
            console.type_bytes(b"p");
            answer(&console.lines);
            console
        };
        self.consoles = thread::scope(|scope| {
            let asked: Vec<_> = (0..self.nodes).map(|node| scope.spawn(move || answered(node))).collect();
            asked.into_iter().map(|console| console.join().expect("a guest answers")).collect()
        });
        let seconds = begun.elapsed().as_secs_f64();
        self.members = Pidfd::children_of(supervisor.pid());
        self.supervisor = Some(supervisor);
        self.held = 0;
        seconds
    }

    /// Waits until each guest has done so many steps: it has filled its memory.
    pub(crate) fn done(&mut self, steps: u64) {
        for console in &mut self.consoles {
            let begun = Instant::now();
            while status(console) < steps {
                assert!(begun.elapsed() < LIMIT, "a guest does not fill its memory");
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// A checkpoint, after some time without one.
    pub(crate) fn checkpoint(&mut self) -> (PathBuf, Cut) {
        thread::sleep(SETTLE);
        let supervisor = self.supervisor.as_ref().expect("it runs");
        supervisor.messages.skip();
        let (asked, begun) = (Timestamp::now(), Instant::now());
        supervisor.signal(Signal::SIGUSR1);
        let dir = supervisor.messages.next("checkpoint", LIMIT, |line| {
            let line = line.strip_prefix("ckvmm: checkpoint")?;
            let dir = line.strip_prefix(' ').and_then(|line| line.split_once(": "));
            Some(PathBuf::from(dir.unwrap_or_else(|| panic!("no checkpoint{line}")).0))
        });
        let cut = Cut::read(&dir, asked, begun.elapsed().as_secs_f64(), &mut self.held);
        (dir, cut)
    }

    fn kill(&mut self) {
        self.supervisor = None;
        for member in self.members.drain(..) {
            member.kill9();
            member.wait(LIMIT);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.kill();
        // Images are large; the next case needs the room.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn status(console: &mut Console) -> u64 {
    console.lines.skip();
    console.type_bytes(b"s");
    console.lines.next("status", LIMIT, |line| value(line.strip_prefix("CKVMM status ")?, "steps")?.parse().ok())
}
