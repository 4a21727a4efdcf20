//! Where the guest's serial port ends on the host: the terminal, a file, a unix socket, nowhere.
//!
//! ```text
//! guest ── Serial ── Output ──┬─ stdout | file | socket client
//!                             └─ console.log
//! stdin | socket client ── Input (I/O thread) ── Serial ── guest
//! ```
//!
//! Invariant: who does not read costs the guest nothing, or a second once: what does not fit is dropped for the reader
//! (not for the log).

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::{fs::OpenOptionsExt, net::UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ckvmm_devices::Serial;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{
    escape::{Escape, Typed},
    patient::Patient,
    terminal,
};
use crate::{
    api::BoundSocket,
    config::{self, ConfigError},
    error::{Error, Result},
};

/// Bytes read from the host at a time: what the chip's FIFO takes.
const CHUNK: usize = 64;

type Client = Arc<Mutex<Option<UnixStream>>>;

/// The host's end of the serial port.
pub struct Console {
    /// For the device.
    pub output: Box<dyn Write + Send>,
    source: Source,
}

enum Source {
    Nothing,
    Stdin,
    Socket(BoundSocket, Client),
}

impl Console {
    /// Opens what `config` names. What the guest says is also kept in the file `log`, if one is given.
    ///
    /// # Errors
    /// If the file cannot be written or the socket not be made.
    pub fn open(config: &config::Serial, log: Option<&Path>) -> Result<Self> {
        let (output, source): (Box<dyn Write + Send>, _) = match config {
            config::Serial::None => (Box::new(io::sink()), Source::Nothing),
            config::Serial::Stdio => (Box::new(Patient::new(io::stdout())), Source::Stdin),
            config::Serial::File(path) => {
                let file =
                    append(path).map_err(|error| unusable("serial.file", &format!("{}: {error}", path.display())))?;
                (Box::new(Patient::new(file)), Source::Nothing)
            }
            config::Serial::Socket(path) => {
                let socket = BoundSocket::bind(path).map_err(|error| unusable("serial.socket", &error.to_string()))?;
                let client = Client::default();
                (Box::new(ToClient(Arc::clone(&client))), Source::Socket(socket, client))
            }
        };
        let output = match log {
            Some(log) => {
                let what = "the console's log cannot be written; mend that or give another state directory";
                let log = append(log).map_err(|source| Error::Io { path: log.into(), what, source })?;
                Box::new(Tee { output, log })
            }
            None => output,
        };
        Ok(Console { output, source })
    }

    /// What the I/O thread is to watch for input; `leave` is called for the escape Ctrl-A x.
    pub fn into_input(self, serial: Arc<Serial>, leave: Box<dyn Fn() + Send>) -> Input {
        Input { source: self.source, serial, leave, escape: Escape::default(), watching: true }
    }

    /// Splits off the output for the device.
    pub fn take_output(&mut self) -> Box<dyn Write + Send> {
        std::mem::replace(&mut self.output, Box::new(io::sink()))
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `error` about a field that names a path; a mend that speaks of another option is left away.
fn unusable(field: &str, error: &str) -> Error {
    let what = error.split_once("; ").map_or(error, |(what, _)| what);
    ConfigError::field(field, what, "give another path").into()
}

/// Watches the host's end for input.
pub struct Input {
    source: Source,
    serial: Arc<Serial>,
    leave: Box<dyn Fn() + Send>,
    escape: Escape,
    /// The source is in the epoll set: it is taken out while the guest's FIFO is full.
    watching: bool,
}

impl Input {
    fn watch(&self, fd: RawFd, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
            // A regular file or /dev/null cannot be waited for: no input then.
            tracing::debug!(%error, "serial input cannot be watched");
        }
    }

    fn unwatch(&self, fd: RawFd, ops: &mut EventOps) {
        if let Err(error) = ops.remove(Events::empty_raw(fd)) {
            tracing::debug!(%error, "serial input was not watched");
        }
    }

    /// Reads as much as the guest has room for: the rest stays where it is, also across a checkpoint. False at the end
    /// of the input.
    fn pump(&mut self, mut from: impl Read) -> bool {
        let mut buffer = [0; CHUNK];
        let room = self.serial.input_room().min(CHUNK);
        let read = match from.read(&mut buffer[..room]) {
            Ok(0) => return room == 0,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return true,
            Err(_) => return false,
        };
        let is_stdin = matches!(self.source, Source::Stdin);
        for byte in &buffer[..read] {
            match if is_stdin { self.escape.feed(*byte) } else { Typed::Guest(*byte) } {
                Typed::Guest(byte) => drop(self.serial.enqueue(&[byte])),
                Typed::Leave => (self.leave)(),
                Typed::Nothing => {}
            }
        }
        true
    }

    fn accept(&self, socket: &BoundSocket, client: &Client, ops: &mut EventOps) {
        let Ok((new, _)) = socket.listener().accept() else { return };
        if new.set_nonblocking(true).is_err() {
            return;
        }
        let mut current = lock(client);
        if let Some(old) = current.take() {
            self.unwatch(old.as_raw_fd(), ops);
        }
        self.watch(new.as_raw_fd(), ops);
        *current = Some(new);
    }

    /// The descriptor from which bytes come now.
    fn with_source(&self, act: impl FnOnce(RawFd)) {
        match &self.source {
            Source::Nothing => {}
            Source::Stdin => act(io::stdin().as_raw_fd()),
            Source::Socket(_, client) => {
                if let Some(client) = lock(client).as_ref() {
                    act(client.as_raw_fd());
                }
            }
        }
    }

    fn read_source(&mut self) -> bool {
        match &self.source {
            Source::Nothing => true,
            // Standard input's own buffer would hide bytes from epoll.
            Source::Stdin => self.pump(Unbuffered(io::stdin().as_fd())),
            Source::Socket(_, client) => {
                let client = lock(client).as_ref().and_then(|client| client.try_clone().ok());
                client.is_some_and(|client| self.pump(client))
            }
        }
    }
}

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps) {
        if matches!(self.source, Source::Stdin) && !terminal::may_read_stdin() {
            self.source = Source::Nothing;
        }
        if let Source::Socket(socket, _) = &self.source {
            self.watch(socket.listener().as_raw_fd(), ops);
        }
        self.watch(self.serial.room().as_raw_fd(), ops);
        self.with_source(|fd| self.watch(fd, ops));
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Source::Socket(socket, client) = &self.source
            && events.fd() == socket.listener().as_raw_fd()
        {
            return self.accept(socket, client, ops);
        }
        if events.fd() == self.serial.room().as_raw_fd() {
            drop(self.serial.room().read());
            if !self.watching && self.serial.input_room() > 0 {
                self.watching = true;
                self.with_source(|fd| self.watch(fd, ops));
            }
            return;
        }
        if self.serial.input_room() == 0 {
            self.watching = false;
            self.with_source(|fd| self.unwatch(fd, ops));
            return;
        }
        if !self.read_source() {
            self.with_source(|fd| self.unwatch(fd, ops));
            match &self.source {
                Source::Socket(_, client) => *lock(client) = None,
                _ => self.source = Source::Nothing,
            }
        }
    }
}

fn lock(client: &Client) -> MutexGuard<'_, Option<UnixStream>> {
    client.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Unbuffered<'a>(BorrowedFd<'a>);

impl Read for Unbuffered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(self.0, buffer).map_err(io::Error::from)
    }
}

struct ToClient(Client);

impl Write for ToClient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(client) = lock(&self.0).as_mut() {
            // What a slow or vanished client does not take is lost to it.
            drop(client.write(bytes));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Output that is also logged. A full disk costs the log, not the guest.
struct Tee {
    output: Box<dyn Write + Send>,
    log: File,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        drop(self.log.write_all(bytes));
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
