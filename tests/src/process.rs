//! A `ckvmm` process under test. It is killed by its own pid when a test ends, however it ends.

use std::{
    ffi::OsStr,
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{console::Lines, paths};

/// A running `ckvmm`.
#[derive(Debug)]
pub struct Ckvmm {
    child: Child,
    stdin: Option<ChildStdin>,
    /// What it writes to standard output: a guest's console.
    pub console: Lines,
    /// What it writes to standard error.
    pub messages: Lines,
}

impl Ckvmm {
    /// Starts `ckvmm ARGUMENTS` in `dir`, where its sockets go too.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start<S: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut child = command(dir)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ckvmm starts");
        let console = Lines::read("console", child.stdout.take().expect("it is piped"));
        let messages = Lines::read("stderr", child.stderr.take().expect("it is piped"));
        let stdin = child.stdin.take();
        Ckvmm { child, stdin, console, messages }
    }

    /// Types a line at the guest's console.
    ///
    /// # Panics
    /// If the process has ended.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("the console is open");
        stdin.write_all(line.as_bytes()).and_then(|()| stdin.write_all(b"\n")).expect("ckvmm reads its input");
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

    /// Waits for its end; returns the exit status.
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
        self.end();
    }
}

/// Runs `ckvmm ARGUMENTS` in `dir` to its end.
///
/// # Panics
/// If it cannot be started.
pub fn run<S: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = S>) -> Output {
    command(dir).args(arguments).stdin(Stdio::null()).output().expect("ckvmm starts")
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(paths::ckvmm());
    command.current_dir(dir).env("XDG_RUNTIME_DIR", dir).env("CKVMM_LOG", "warn");
    command
}
