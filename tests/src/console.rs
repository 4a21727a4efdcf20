//! Lines that a process writes, kept, and waited for.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// A guest's console that is a socket.
#[derive(Debug)]
pub struct Console {
    socket: UnixStream,
    /// What the guest says.
    pub lines: Lines,
}

impl Console {
    /// Connects to the socket `path` as soon as it is there.
    ///
    /// # Panics
    /// If `limit` passes.
    pub fn open(path: &Path, limit: Duration) -> Self {
        let deadline = Instant::now() + limit;
        let socket = loop {
            match UnixStream::connect(path) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
            }
            thread::sleep(Duration::from_millis(2));
        };
        let lines = Lines::read(&path.to_string_lossy(), socket.try_clone().expect("a descriptor is left"));
        Console { socket, lines }
    }

    /// Types at it.
    ///
    /// # Panics
    /// If it is gone.
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the VMM reads its console");
    }
}

/// Lines of one stream, from the first to the last so far.
#[derive(Debug, Clone)]
pub struct Lines(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    more: Condvar,
    name: String,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
    /// Lines before this one were looked at by `next`.
    seen: usize,
}

impl Lines {
    /// Reads `stream` to its end, on a thread. `name` stands before the lines of a failed test.
    pub fn read(name: &str, stream: impl Read + Send + 'static) -> Self {
        let inner = Inner { state: Mutex::default(), more: Condvar::new(), name: name.to_owned() };
        let lines = Lines(Arc::new(inner));
        let writer = lines.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                writer.lock().lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                writer.0.more.notify_all();
                line.clear();
            }
            writer.lock().ended = true;
            writer.0.more.notify_all();
        });
        lines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a line, not looked at before, of which `pick` makes something.
    ///
    /// # Panics
    /// If the stream ends or `limit` passes without one.
    pub fn next<T>(&self, what: &str, limit: Duration, pick: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            while state.seen < state.lines.len() {
                state.seen += 1;
                if let Some(found) = pick(&state.lines[state.seen - 1]) {
                    return found;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended { "the stream ended" } else { "time is over" };
                let tail = tail(&state);
                drop(state);
                panic!("{}: no {what}: {why}; its last lines:\n    {tail}", self.0.name);
            }
            state = self.0.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line that contains `text`, and returns it.
    ///
    /// # Panics
    /// As [`Lines::next`].
    pub fn expect(&self, text: &str, limit: Duration) -> String {
        self.next(&format!("line with \"{text}\""), limit, |line| line.contains(text).then(|| line.to_owned()))
    }

    /// Waits until each of `texts` has come in some line, in any order, the lines already looked at included.
    ///
    /// # Panics
    /// As [`Lines::next`].
    pub fn expect_all(&self, texts: &[&str], limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            let missing: Vec<_> =
                texts.iter().filter(|text| !state.lines.iter().any(|line| line.contains(**text))).collect();
            if missing.is_empty() {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let (missing, tail) = (format!("{missing:?}"), tail(&state));
                drop(state);
                panic!("{}: no lines with {missing}; its last lines:\n    {tail}", self.0.name);
            }
            state = self.0.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the stream has ended and all of its lines are here.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    pub fn wait_for_end(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        while !state.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{}: the stream does not end", self.0.name);
            state = self.0.more.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// All lines so far.
    pub fn all(&self) -> Vec<String> {
        self.lock().lines.clone()
    }

    /// From now on `next` looks at later lines only.
    pub fn skip(&self) {
        let mut state = self.lock();
        state.seen = state.lines.len();
    }
}

fn tail(state: &State) -> String {
    state.lines[state.lines.len().saturating_sub(40)..].join("\n    ")
}

/// The value of `key=` in a line of words.
pub fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}
