//! The terminal while a guest has it: raw, and as it was when the guest is gone. What ckvmm itself says, there and in
//! its log.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Stderr, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use nix::{
    sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    unistd::{getpgrp, tcgetpgrp},
};

use super::patient::Patient;
use crate::error::{Error, Result};

/// How the terminal was, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of standard input, until it is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw; `None` if it is no terminal, or one that another job has in the foreground (to touch
    /// it would stop this process).
    pub fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || tcgetpgrp(&stdin) != Ok(getpgrp()) {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        if let Ok(mut saved) = BEFORE.lock() {
            *saved = Some(before);
        }
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(RawTerminal(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was; for ways out on which nothing is dropped.
pub fn restore() {
    let before = BEFORE.lock().ok().and_then(|mut saved| saved.take());
    if let Some(before) = before {
        // A terminal that has gone needs no restoring.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// True if standard input may be read without being stopped for it.
pub fn may_read_stdin() -> bool {
    let stdin = io::stdin();
    !stdin.is_terminal() || tcgetpgrp(&stdin) == Ok(getpgrp())
}

/// Where lines of the VMM's own are kept.
static LOG: Mutex<Option<File>> = Mutex::new(None);

/// Keeps what is said from now on in the file `log` as well, a line each with its time.
///
/// # Errors
/// If it cannot be written.
pub fn keep_log(log: &Path) -> Result<()> {
    let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(log);
    let what = "the log cannot be written; mend that, or give another directory with --state (or --work)";
    let file = opened.map_err(|source| Error::Io { path: log.into(), what, source })?;
    if let Ok(mut current) = LOG.lock() {
        *current = Some(file);
    }
    Ok(())
}

/// A line of the VMM's own on standard error, also while the terminal is raw, and in the log.
pub fn say(line: &str) {
    if let Some(log) = LOG.lock().ok().as_deref_mut().and_then(Option::as_mut) {
        // A full disk costs the log, not the guest.
        drop(writeln!(log, "{:.3} {line}", jiff::Timestamp::now()));
    }
    let raw = BEFORE.lock().is_ok_and(|saved| saved.is_some());
    let line = format!("ckvmm: {line}{}", if raw { "\r\n" } else { "\n" });
    // Whoever had this terminal, or the other end of this pipe, may have gone: the guest goes on.
    drop(StandardError.write_all(line.as_bytes()));
}

/// Where it is written.
static STDERR: LazyLock<Mutex<Patient<Stderr>>> = LazyLock::new(|| Mutex::new(Patient::new(io::stderr())));

/// Standard error, which nobody need read.
pub struct StandardError;

impl StandardError {
    fn lock(&self) -> MutexGuard<'static, Patient<Stderr>> {
        STDERR.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}
