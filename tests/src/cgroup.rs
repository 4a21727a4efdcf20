//! A control group (version 2) that limits the memory of the processes in it.

use std::{fs, io, path::PathBuf, process::Command, thread};

use crate::{api::wait_until, console::value};

/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";

/// A group of its own, without a limit at first. When it is dropped its processes must have ended.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    /// Nobody limited memory here before, so nobody is to do so afterwards.
    first: bool,
}

impl Cgroup {
    /// Makes one; `None`, with the reason, if that is not to be had here.
    pub fn new() -> Option<Self> {
        Self::make().inspect_err(|why| println!("skipped: {why}")).ok()
    }

    fn make() -> Result<Self, String> {
        let controllers = fs::read_to_string(format!("{ROOT}/cgroup.controllers"));
        let controllers = controllers.map_err(|_| format!("{ROOT} is not version 2 of control groups"))?;
        if !has_memory(&controllers) {
            return Err(format!("{ROOT} has no memory controller"));
        }
        let first = !has_memory(&fs::read_to_string(control()).unwrap_or_default());
        if first {
            fs::write(control(), "+memory").map_err(|error| format!("{}: {error}", control()))?;
        }
        match tempfile::Builder::new().prefix("ckvmm-test-").tempdir_in(ROOT) {
            // A group is removed as one, its files with it: not as a directory of temporary files is.
            Ok(dir) => Ok(Cgroup { dir: dir.keep(), first }),
            Err(error) => Err(format!("no control group can be made in {ROOT}: {error}")),
        }
    }

    /// `command`, to be run in this group from its beginning.
    pub fn run(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(self.file("cgroup.procs"));
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(dir) = command.get_current_dir() {
            inside.current_dir(dir);
        }
        inside
    }

    /// Bytes of memory that are charged to it.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn bytes(&self) -> u64 {
        self.read("memory.current").trim().parse().expect("a number")
    }

    /// Limits its memory to `bytes`, or no longer.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn limit(&self, bytes: Option<u64>) {
        // Where there is swap, it would put off what the limit is for.
        let swap = self.file("memory.swap.max");
        if swap.exists() {
            fs::write(swap, "0").expect("swap can be limited");
        }
        let limit = bytes.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        fs::write(self.file("memory.max"), limit).expect("memory can be limited");
    }

    /// How many processes in it the kernel has killed for want of memory.
    ///
    /// # Panics
    /// If the kernel does not say.
    pub fn kills(&self) -> u64 {
        let events = self.read("memory.events").replace(' ', "=");
        value(&events, "oom_kill").and_then(|kills| kills.parse().ok()).expect("memory.events has oom_kill")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).expect("a file of the group")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
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
            let _ = fs::write(control(), "-memory");
        }
    }
}

fn control() -> String {
    format!("{ROOT}/cgroup.subtree_control")
}

fn has_memory(controllers: &str) -> bool {
    controllers.split_whitespace().any(|name| name == "memory")
}
