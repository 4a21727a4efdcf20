//! A client of the API socket that shares no code with the product: HTTP/1.1 by hand, one connection a request.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::LIMIT;

/// How often something is looked at for which there is no event.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A VM's socket.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// What came after the headers.
    pub body: String,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The line of an error: the answer must be a problem+json with this status.
    ///
    /// # Panics
    /// If it is not.
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        problem["detail"].as_str().unwrap_or_else(|| panic!("no detail: {problem}")).to_owned()
    }
}

impl Api {
    /// The API of the VM that listens at `socket`.
    pub fn new(socket: &Path) -> Self {
        Api { socket: socket.to_owned() }
    }

    /// Asks; `None` if nobody answers.
    pub fn try_ask(&self, method: &str, path: &str, body: &str) -> Option<Answer> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        let bytes = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Length: {bytes}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned()));
        Some(Answer { status, headers: headers.collect(), body: body.to_owned() })
    }

    /// Asks.
    ///
    /// # Panics
    /// If nobody answers.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.try_ask(method, path, body).unwrap_or_else(|| panic!("no answer to {method} {path}"))
    }

    /// `GET`.
    ///
    /// # Panics
    /// If nobody answers.
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "")
    }

    /// What `GET /v1/vm` says.
    ///
    /// # Panics
    /// If nobody answers, or not with 200.
    pub fn vm(&self) -> Value {
        let answer = self.get("/v1/vm");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Begins a checkpoint; the operation's path.
    ///
    /// # Panics
    /// If it is not accepted.
    pub fn begin_checkpoint(&self, body: &str) -> String {
        let answer = self.ask("POST", "/v1/checkpoints", body);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.header("location").unwrap_or_else(|| panic!("no Location: {answer:?}")).to_owned()
    }

    /// Waits until the operation at `path` has ended, by asking again. What it says then.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn ended(&self, path: &str) -> Value {
        wait_until("the operation has ended", || {
            let operation = self.get(path).json();
            (operation["state"] != "running").then_some(operation)
        })
    }
}

/// Looks at a condition for which there is no event until it holds.
///
/// # Panics
/// If that takes too long.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "time is over, and not yet: {what}");
        thread::sleep(LOOK_EVERY);
    }
}
