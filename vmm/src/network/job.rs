//! The job of a network: what `net.json` says of it, and how its end is heard on the console of its node.
//!
//! ```json
//! "job": { "on": "n-0", "command": ["mpirun", "--hostfile", "/etc/ckvmm/hostfile", "./a.out"] }
//! ```
//!
//! The guest of that node says two lines of their own on its serial port, and what stands between them is the output:
//!
//! ```text
//! ckvmm: begin
//! ckvmm: exit 3
//! ```
//!
//! It may say the second again and again: the first that comes whole counts, and something else may come in between.
//!
//! Invariant: what is no such line goes through as it comes, also if its end never does; a carriage return before the end
//! of a line is the terminal's, and goes.

use serde::{Deserialize, Serialize};

use super::config::Node;
use crate::config::{ConfigError, Id};

/// How a node says that its job begins.
const BEGIN: &[u8] = b"ckvmm: begin";
/// How it says how its job has ended; a number follows.
const EXIT: &[u8] = b"ckvmm: exit ";
/// Longest number of an exit status.
const DIGITS_MAX: usize = 3;
/// Most bytes of a line that are held back: those of one for us, and more carriage returns than a terminal puts behind it.
const HELD_MAX: usize = 64;

/// Longest command, bytes.
const COMMAND_MAX: usize = 64 << 10;
/// Most words of it.
const WORDS_MAX: usize = 1024;

/// What is to be run in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The node whose guest says how it ends.
    pub on: Id,
    /// What is run there; absent: its guest knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
}

impl Job {
    /// What `node` is to run; empty: nothing.
    pub fn command_on(&self, node: &str) -> &[String] {
        self.command.as_deref().filter(|_| *self.on == *node).unwrap_or_default()
    }

    /// Looks whether these nodes can run it.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn check(&self, nodes: &[Node]) -> Result<(), ConfigError> {
        if let Some(node) = nodes.iter().find(|node| node.name == self.on) {
            return self.command.as_ref().map_or(Ok(()), |command| check_command(command, node));
        }
        let names: Vec<&str> = nodes.iter().map(|node| &*node.name).collect();
        let mend = format!("give one of {}", names.join(", "));
        Err(ConfigError::field("job.on", format!("{:?} is no node", &*self.on), mend))
    }
}

fn check_command(command: &[String], node: &Node) -> Result<(), ConfigError> {
    let wrong = |what: String, mend: &str| Err(ConfigError::field("job.command", what, mend));
    if command.first().is_none_or(String::is_empty) {
        return wrong("names no program".into(), "give a list like [\"./a.out\", \"-v\"], or leave it away");
    }
    let bytes: usize = command.iter().map(String::len).sum();
    if bytes > COMMAND_MAX || command.len() > WORDS_MAX {
        let what = format!("{} words of {bytes} bytes are too long", command.len());
        return wrong(what, "put it into a script on the guest's disk, and give that");
    }
    // What YAML does not take, whose reader is in the guest.
    let unfit = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{fffe}' | '\u{ffff}');
    if let Some(c) = command.iter().flat_map(|word| word.chars()).find(|c| unfit(*c)) {
        return wrong(format!("holds {c:?}"), "leave that character away");
    }
    if !node.seed && !node.is_told {
        let what = format!("nothing takes it to {}, which has no seed", node.name);
        return wrong(what, "give \"seed\": true, or write {network} into its kernel.cmdline");
    }
    Ok(())
}

/// Listens to a console.
#[derive(Debug)]
pub struct Ear {
    /// What is said is output: the job has begun.
    begun: bool,
    /// The start of a line that may become one for us.
    held: Vec<u8>,
    /// The line that is being said is none for us.
    plain: bool,
}

impl Ear {
    /// Listens from here on; `begun` if the job may have begun before.
    pub fn new(begun: bool) -> Ear {
        Ear { begun, held: Vec::new(), plain: false }
    }

    /// Takes in what was said, appends to `output` what the job has said, and returns how the job has ended, if it has.
    pub fn hear(&mut self, said: &[u8], output: &mut Vec<u8>) -> Option<u8> {
        for byte in said {
            self.held.push(*byte);
            if *byte == b'\n' {
                let line = self.held.trim_ascii_end();
                if !self.plain && line == BEGIN {
                    self.begun = true;
                    self.held.clear();
                } else if let Some(status) = exit_status(line).filter(|_| !self.plain) {
                    self.held.clear();
                    return Some(status);
                }
                if self.held.ends_with(b"\r\n") {
                    self.held.remove(self.held.len() - 2);
                }
                self.let_go(output);
                self.plain = false;
            } else if *byte != b'\r' && (self.plain || !may_be_ours(&self.held)) {
                self.plain = true;
                self.let_go(output);
            } else if self.held.len() > HELD_MAX {
                // Only carriage returns come. The last may still be the terminal's.
                self.plain = true;
                self.held.pop();
                self.let_go(output);
                self.held.push(b'\r');
            }
        }
        None
    }

    /// The console has ended: what was held back is output, too.
    pub fn end(mut self, output: &mut Vec<u8>) {
        self.let_go(output);
    }

    fn let_go(&mut self, output: &mut Vec<u8>) {
        if self.begun {
            output.extend_from_slice(&self.held);
        }
        self.held.clear();
    }
}

fn may_be_ours(start: &[u8]) -> bool {
    let of =
        |line: &[u8], more| line.starts_with(start) || (start.starts_with(line) && start.len() <= line.len() + more);
    of(BEGIN, 0) || of(EXIT, DIGITS_MAX)
}

fn exit_status(line: &[u8]) -> Option<u8> {
    let number = line.strip_prefix(EXIT)?;
    let digits = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    digits.then(|| std::str::from_utf8(number).ok()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is heard, however the bytes come.
    fn heard(begun: bool, said: &str) -> (Option<u8>, String) {
        let all = |size: usize| {
            let (mut ear, mut output) = (Ear::new(begun), Vec::new());
            let ended = said.as_bytes().chunks(size).find_map(|some| ear.hear(some, &mut output));
            if ended.is_none() {
                ear.end(&mut output);
            }
            (ended, String::from_utf8(output).unwrap())
        };
        let whole = all(said.len());
        for size in 1..said.len() {
            assert_eq!(all(size), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn the_output_stands_between_the_lines() {
        let said = "Linux boots\r\nckvmm: begin\r\none\rtwo\r\nckvmm: exits 3\r\nckvmm: exit 3\r\nckvmm: exit 4\r\n";
        assert_eq!(heard(false, said), (Some(3), "one\rtwo\nckvmm: exits 3\n".into()));
        assert_eq!(heard(false, "ckvmm: exit 0\n"), (Some(0), String::new()));
        let said = "ckvmm: ex[ 7.1] crng init done\nit 3\n\nckvmm: exit 3\n\nckvmm: exit 3\n";
        assert_eq!(heard(true, said), (Some(3), "ckvmm: ex[ 7.1] crng init done\nit 3\n\n".into()));
        assert_eq!(heard(true, "goes on\nckvmm: exit 255\n"), (Some(255), "goes on\n".into()));
    }

    #[test]
    fn what_is_no_status_is_output() {
        for line in
            ["ckvmm: exit 256\n", "ckvmm: exit \n", "ckvmm: exit +1\n", " ckvmm: exit 1\n", "ckvmm: exit 1", "# "]
        {
            assert_eq!(heard(true, line), (None, line.into()));
        }
    }

    #[test]
    fn carriage_returns_that_do_not_end_are_output_and_not_kept() {
        for start in ["", "x", "ckvmm: exit 3"] {
            let (mut ear, mut output) = (Ear::new(true), Vec::new());
            let said = start.to_owned() + &"\r".repeat(1000);
            assert_eq!(ear.hear(said.as_bytes(), &mut output), None);
            assert!(ear.held.len() <= HELD_MAX, "{} bytes are kept", ear.held.len());
            assert_eq!(ear.hear(b"\n", &mut output), None);
            let whole = start.to_owned() + &"\r".repeat(999) + "\n";
            assert_eq!(String::from_utf8(output).unwrap(), whole, "the last one is the terminal's");
        }
        assert_eq!(heard(true, "ckvmm: exit 3\r\r\n"), (Some(3), String::new()));
    }

    #[test]
    fn what_is_no_line_for_us_does_not_wait_for_its_end() {
        let (mut ear, mut output) = (Ear::new(true), Vec::new());
        assert_eq!(ear.hear(b"50 %", &mut output), None);
        assert_eq!(output, b"50 %");
    }
}
