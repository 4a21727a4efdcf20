//! `ckvmm console`: the VM's serial port, if that is a unix socket.

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::target::Target;
use super::{ExitStatus, output};
use crate::api::types::VmInfo;
use crate::config::{Serial, VmConfig};
use crate::host::escape::{Escape, Typed};
use crate::host::terminal::{RawTerminal, say};

/// Bytes moved at a time.
const BUFFER: usize = 4096;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  ckvmm console node0        # vm.json: \"serial\": { \"socket\": \"console.sock\" }")]
pub(super) struct Args {
    #[command(flatten)]
    target: Target,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<ExitStatus> {
        let vm: VmInfo = self.target.client()?.get("/v1/vm")?;
        let config = VmConfig::from_value(vm.config, Path::new("/")).context("the VM's configuration")?;
        let path = match config.serial {
            Serial::Socket(path) => path,
            other => bail!("console: {}", elsewhere(&other)),
        };
        let cannot = || format!("console: {}: cannot be connected to; is somebody else attached?", path.display());
        let socket = UnixStream::connect(&path).with_context(cannot)?;
        if std::io::stdin().is_terminal() {
            say(&format!("attached to {}; Ctrl-A x leaves", vm.name));
        }
        attach(socket)?;
        Ok(ExitStatus::Success)
    }
}

fn elsewhere(serial: &Serial) -> String {
    let mend = "set \"serial\": { \"socket\": PATH } in vm.json to attach to it";
    match serial {
        Serial::Stdio => format!("the serial port is on the terminal that started the VM; {mend}"),
        Serial::File(path) => format!("the serial port goes to the file {}; tail -f it, or {mend}", path.display()),
        Serial::None | Serial::Socket(_) => format!("this VM has no serial port; {mend}"),
    }
}

/// Moves bytes both ways until the VM ends, Ctrl-A x, or a signal to end.
fn attach(socket: UnixStream) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    // ends by signal must restore the terminal too
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT]);
    ends.thread_block().context("console: signals")?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC).context("console: signals")?;
    let raw = RawTerminal::enter();
    let result = pump(&socket, &stdin, &signals, raw.is_some());
    drop(raw);
    if stdin.is_terminal() {
        output::print("")?;
    }
    result
}

fn pump(socket: &UnixStream, stdin: &std::io::Stdin, signals: &SignalFd, keys: bool) -> anyhow::Result<()> {
    let mut escape = Escape::default();
    let mut buffer = [0; BUFFER];
    let mut typing = true;
    loop {
        let wanted = if typing { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), wanted),
        ];
        match poll(if typing { &mut fds } else { &mut fds[..2] }, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            result => result.context("console: poll")?,
        };
        let [from_vm, from_signal, from_keys] = fds.map(|fd| fd.any() == Some(true));
        if from_vm {
            let n = match (&*socket).read(&mut buffer) {
                Err(e) if e.kind() == ErrorKind::ConnectionReset => 0,
                result => result.context("console: the VM's socket")?,
            };
            if n == 0 {
                return Ok(());
            }
            let mut out = std::io::stdout().lock();
            out.write_all(&buffer[..n]).and_then(|()| out.flush()).context("console: stdout")?;
        }
        if from_signal {
            return Ok(());
        }
        if typing && from_keys {
            // not through Stdin's buffer, in which poll would not see what is left
            let n = nix::unistd::read(stdin, &mut buffer).context("console: stdin")?;
            typing = n > 0;
            let (bytes, leave) =
                if keys { for_guest(&mut escape, &buffer[..n]) } else { (buffer[..n].to_vec(), false) };
            (&*socket).write_all(&bytes).context("console: the VM's socket")?;
            if leave {
                return Ok(());
            }
        }
    }
}

/// What of `typed` goes to the guest, and whether to leave after that.
fn for_guest(escape: &mut Escape, typed: &[u8]) -> (Vec<u8>, bool) {
    let mut bytes = Vec::with_capacity(typed.len());
    for key in typed {
        match escape.feed(*key) {
            Typed::Guest(byte) => bytes.push(byte),
            Typed::Leave => return (bytes, true),
            Typed::Nothing => {}
        }
    }
    (bytes, false)
}
