//! A `ckvmm` process under test. It is killed by its own pid when a test ends, and by the kernel if the test is killed.

use std::{
    ffi::OsStr,
    fs,
    io::{self, PipeWriter, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

use crate::{
    console::Lines,
    orphans::{self, Bound},
    paths,
};

/// A running `ckvmm`.
#[derive(Debug)]
pub struct Ckvmm {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it writes to standard output: a guest's console.
    pub console: Lines,
    /// What it writes to standard error.
    pub messages: Lines,
    bound: Bound,
}

impl Ckvmm {
    /// Starts `ckvmm ARGUMENTS` in `dir`, where its sockets go too.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start<S: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = command(dir);
        command.args(arguments);
        Self::start_command(command)
    }

    /// Starts a command that runs `ckvmm`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_command(command: Command) -> Self {
        Self::spawn(command, [Stdio::piped(), Stdio::piped(), Stdio::piped()])
    }

    /// Starts `ckvmm ARGUMENTS` in `dir` with a standard input of the caller's.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_reading<S: AsRef<OsStr>>(
        dir: &Path,
        arguments: impl IntoIterator<Item = S>,
        stdin: impl Into<Stdio>,
    ) -> Self {
        let mut command = command(dir);
        command.args(arguments);
        Self::spawn(command, [stdin.into(), Stdio::piped(), Stdio::piped()])
    }

    /// Starts `ckvmm ARGUMENTS` in `dir`, where all that it says goes to `output`.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_saying<S: AsRef<OsStr>>(
        dir: &Path,
        arguments: impl IntoIterator<Item = S>,
        output: &PipeWriter,
    ) -> Self {
        let mut command = command(dir);
        command.args(arguments);
        let output = || output.try_clone().expect("a descriptor is left").into();
        Self::spawn(command, [Stdio::piped(), output(), output()])
    }

    fn spawn(mut command: Command, [stdin, stdout, stderr]: [Stdio; 3]) -> Self {
        orphans::forbid(&mut command);
        let mut child = command.stdin(stdin).stdout(stdout).stderr(stderr).spawn().expect("ckvmm starts");
        let nothing = || Lines::read("nothing", io::empty());
        let console = child.stdout.take().map_or_else(nothing, |stdout| Lines::read("console", stdout));
        let messages = child.stderr.take().map_or_else(nothing, |stderr| Lines::read("stderr", stderr));
        let stdin = child.stdin.take();
        Ckvmm { child, stdin, console, messages, bound: Bound::default() }
    }

    /// Types a line at the guest's console.
    ///
    /// # Panics
    /// If the process has ended.
    pub fn type_line(&mut self, line: &str) {
        self.type_bytes(format!("{line}\n").as_bytes());
    }

    /// Types at the guest's console.
    ///
    /// # Panics
    /// If the process has ended.
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("the console is open");
        stdin.write_all(bytes).expect("ckvmm reads its input");
    }

    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("ckvmm is there");
    }

    /// Ends it as a crash would.
    pub fn kill9(mut self) -> (Lines, Lines) {
        self.end();
        (self.console.clone(), self.messages.clone())
    }

    /// Waits for its end, and until all that it wrote is here; returns the exit status.
    ///
    /// # Panics
    /// If it does not end within `limit`, or a signal ends it.
    pub fn wait(&mut self, limit: Duration) -> i32 {
        let pid = Pid::from_raw(self.child.id() as i32);
        let (done, timer) = std::sync::mpsc::channel::<()>();
        // The limit: a process that hangs is killed, and the wait below then sees a signal.
        let killer = thread::spawn(move || {
            if timer.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let status = self.child.wait().expect("ckvmm can be waited for");
        drop(done);
        killer.join().expect("the timer does not panic");
        self.console.wait_for_end(limit);
        self.messages.wait_for_end(limit);
        status.code().unwrap_or_else(|| {
            panic!("ckvmm did not end within {limit:?} ({status}); its messages: {:#?}", self.messages.all())
        })
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Ckvmm {
    fn drop(&mut self) {
        let status = self.child.try_wait().ok().flatten();
        self.end();
        if thread::panicking() {
            let end = status.map_or_else(|| "was running".to_owned(), |status| status.to_string());
            eprintln!("ckvmm {}: {end}; its messages: {:#?}", self.pid(), self.messages.all());
        }
    }
}

/// Runs `ckvmm ARGUMENTS` in `dir` to its end.
///
/// # Panics
/// If it cannot be started.
pub fn run<S: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = command(dir);
    orphans::forbid(&mut command);
    command.args(arguments).stdin(Stdio::null()).output().expect("ckvmm starts")
}

/// Runs `ckvmm ARGUMENTS` in `dir` as a user without rights: another one if this is root.
///
/// # Panics
/// If it cannot be started.
pub fn run_without_rights<S: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = S>) -> Output {
    let mut command = if Uid::effective().is_root() {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--"]).arg(paths::ckvmm());
        setpriv
    } else {
        Command::new(paths::ckvmm())
    };
    settle(&mut command, dir);
    orphans::forbid(&mut command);
    command.args(arguments).stdin(Stdio::null()).output().expect("ckvmm starts (setpriv is in util-linux)")
}

/// `ckvmm` in `dir`, where its sockets go too.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(paths::ckvmm());
    settle(&mut command, dir);
    command
}

fn settle(command: &mut Command, dir: &Path) {
    command.current_dir(dir).env("XDG_RUNTIME_DIR", dir).env("CKVMM_LOG", "warn");
}

/// What each node's `ckvmm` of the network with its state in `state` has said, for a test that fails.
pub fn tell_of_nodes(state: &Path) {
    let nodes = (0..).map(|node| state.join(format!("n-{node}"))).take_while(|node| node.is_dir());
    nodes.for_each(|node| eprintln!("{}: {:?}", node.display(), fs::read_to_string(node.join("output"))));
}

/// Ends whatever still runs with a path in `dir` on its command line: VMs of a network that a test which failed knew
/// nothing of yet.
pub fn end_all_of(dir: &Path) {
    let needle = dir.as_os_str().as_encoded_bytes();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let of_dir = |line: Vec<u8>| line.windows(needle.len()).any(|part| part == needle);
        if fs::read(process.path().join("cmdline")).is_ok_and(of_dir) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
