//! QEMU's machine protocol: a JSON object a line, an answer to each command, events in between.

use std::{
    fs::File,
    io::{BufRead, BufReader, IoSlice, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use ckvmm_tests::{LIMIT, api::wait_until};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// Between two questions whether a migration has ended. QEMU has events for that, which are lost for who comes late.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Bytes in a second that no migration reaches.
const UNLIMITED: u64 = 1 << 40;

pub(crate) struct Qmp {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to a QEMU that has just been started.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = wait_until("QEMU listens", || UnixStream::connect(socket).ok());
        stream.set_read_timeout(Some(LIMIT)).expect("a socket has timeouts");
        let answers = BufReader::new(stream.try_clone().expect("a descriptor can be duplicated"));
        let mut qmp = Qmp { stream, answers };
        qmp.line();
        qmp.ok("qmp_capabilities", json!({}));
        qmp.ok("migrate-set-parameters", json!({ "max-bandwidth": UNLIMITED }));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("QEMU answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU says {line:?}: {error}"))
    }

    fn ask(&mut self, command: &str, arguments: Value, descriptor: Option<&File>) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments }).to_string();
        match descriptor {
            None => self.stream.write_all(request.as_bytes()).expect("QEMU listens"),
            Some(file) => {
                let (bytes, descriptors) = ([IoSlice::new(request.as_bytes())], [file.as_raw_fd()]);
                let control = [ControlMessage::ScmRights(&descriptors)];
                sendmsg::<()>(self.stream.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None)
                    .expect("QEMU takes a descriptor");
            }
        }
        loop {
            let answer = self.line();
            if answer.get("event").is_none() {
                let error = answer["error"]["desc"].as_str();
                return error.map_or_else(|| Ok(answer["return"].clone()), |error| Err(error.to_owned()));
            }
        }
    }

    /// A command that does not fail.
    pub(crate) fn ok(&mut self, command: &str, arguments: Value) -> Value {
        self.ask(command, arguments, None).unwrap_or_else(|error| panic!("QEMU's {command}: {error}"))
    }

    /// From now on a migration is a snapshot of the instant at which it begins, and the guest goes on.
    pub(crate) fn set_background_snapshot(&mut self) -> Result<(), String> {
        let capabilities = json!([{ "capability": "background-snapshot", "state": true }]);
        self.ask("migrate-set-capabilities", json!({ "capabilities": capabilities }), None).map(|_| ())
    }

    /// Waits until the VM has been read from its image, and lets the guest run, which may have been stopped before.
    pub(crate) fn go_on(&mut self) {
        let begun = Instant::now();
        while self.ok("query-status", json!({}))["status"] == "inmigrate" {
            assert!(begun.elapsed() < LIMIT, "QEMU does not come to an end with an image");
            thread::sleep(LOOK_EVERY);
        }
        self.ok("cont", json!({}));
    }

    /// Writes the VM to a file. It gets the file itself: no other process copies what it writes.
    pub(crate) fn migrate_to(&mut self, file: &File) {
        self.ask("getfd", json!({ "fdname": "image" }), Some(file)).expect("QEMU takes a descriptor");
        self.ok("migrate", json!({ "uri": "fd:image" }));
        let begun = Instant::now();
        loop {
            let answer = self.ok("query-migrate", json!({}));
            match answer["status"].as_str() {
                Some("completed") => return,
                Some("failed" | "cancelled") => panic!("QEMU's migration: {answer}"),
                _ => assert!(begun.elapsed() < LIMIT, "QEMU's migration does not end: {answer}"),
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}
