//! A control group, of version 1 or 2, that limits what the processes in it have.

use std::{fs, io, path::PathBuf, process::Command, thread};

use crate::{api::wait_until, console::value};

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";

/// What a group limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// Memory.
    Memory,
    /// The number of processes and threads.
    Tasks,
}

impl Limits {
    fn controller(self) -> &'static str {
        match self {
            Limits::Memory => "memory",
            Limits::Tasks => "pids",
        }
    }
}

/// A group of its own, without a limit at first. When it is dropped its processes must have ended.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    limits: Limits,
    /// The one hierarchy of version 2.
    unified: bool,
    /// Nobody had the controller here before, so nobody is to have it afterwards.
    first: bool,
}

impl Cgroup {
    /// Makes one; `None`, with the reason, if that is not to be had here.
    pub fn new(limits: Limits) -> Option<Self> {
        Self::make(limits).inspect_err(|why| println!("skipped: {why}")).ok()
    }

    fn make(limits: Limits) -> Result<Self, String> {
        let controller = limits.controller();
        let own = format!("{ROOT}/{controller}");
        let (root, unified) = match fs::metadata(&own) {
            Ok(_) => (own, false),
            Err(_) => (ROOT.to_owned(), true),
        };
        let mut first = false;
        if unified {
            let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers"));
            let controllers = controllers.map_err(|_| format!("{ROOT} has no control groups"))?;
            if !has(&controllers, controller) {
                return Err(format!("{ROOT} has no controller {controller}"));
            }
            first = !has(&fs::read_to_string(control()).unwrap_or_default(), controller);
            if first {
                fs::write(control(), format!("+{controller}")).map_err(|error| format!("{}: {error}", control()))?;
            }
        }
        match tempfile::Builder::new().prefix("ckvmm-test-").tempdir_in(&root) {
            // A group is removed as one, its files with it: not as a directory of temporary files is.
            Ok(dir) => Ok(Cgroup { dir: dir.keep(), limits, unified, first }),
            Err(error) => Err(format!("no control group can be made in {root}: {error}")),
        }
    }

    /// `command`, to be run in this group from its beginning.
    pub fn run(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.dir.join("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        inside
    }

    /// How much is charged to it: bytes, or tasks.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn charged(&self) -> u64 {
        let file = self.file("memory.current", "memory.usage_in_bytes", "pids.current");
        fs::read_to_string(file).expect("a file of the group").trim().parse().expect("a number")
    }

    /// Limits it to so much, or no longer.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn limit(&self, most: Option<u64>) {
        // Where there is swap, it would put off what the limit is for.
        let swap = self.dir.join("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0").expect("swap can be limited");
        }
        let none = if self.limits == Limits::Memory && !self.unified { "-1" } else { "max" };
        let limit = most.map_or_else(|| none.to_owned(), |most| most.to_string());
        let file = self.file("memory.max", "memory.limit_in_bytes", "pids.max");
        fs::write(file, limit).expect("it can be limited");
    }

    /// How many processes in it the kernel has killed for want of memory.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.file("memory.events", "memory.oom_control", "pids.events"));
        let events = events.expect("a file of the group").replace(' ', "=");
        value(&events, "oom_kill").and_then(|kills| kills.parse().ok()).expect("the kernel counts them")
    }

    /// What a file for this is called in version 2 for memory, in version 1 for memory, in both for tasks.
    fn file(&self, memory: &str, memory_1: &str, tasks: &str) -> PathBuf {
        self.dir.join(match (self.limits, self.unified) {
            (Limits::Memory, true) => memory,
            (Limits::Memory, false) => memory_1,
            (Limits::Tasks, _) => tasks,
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // That its last process was waited for is not yet that it has left the group.
        let removed = || match fs::remove_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => None,
            other => Some(other),
        };
        if thread::panicking() {
            removed();
        } else {
            wait_until("the processes of the group have gone", removed).expect("the group can be removed");
        }
        if self.first {
            // Somebody else may have a group by now.
            let _ = fs::write(control(), format!("-{}", self.limits.controller()));
        }
    }
}

fn control() -> String {
    format!("{ROOT}/cgroup.subtree_control")
}

fn has(controllers: &str, controller: &str) -> bool {
    controllers.split_whitespace().any(|name| name == controller)
}
