//! A TCP connection from each node to each other, from the beginning to the end.
//!
//! ```text
//! u64 sender's index, then pieces: u64 words that follow, and these words: n is value(key, n)
//! a piece of no words is the last: u64 rounds of frames that were sent, and then the receiver answers with a byte
//! ```

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use crate::{GOES_ON, Node, frames::rest, model::value};

const PORT: u16 = 7002;
/// Words of a piece.
const PIECE: u64 = 1024;

pub(crate) fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))
}

/// Sends `to` numbered words until frames are no longer sent either; returns when it has all that we sent.
pub(crate) fn send(node: &Node, to: usize) -> io::Result<()> {
    let mut stream = connect(node, to);
    node.met.fetch_add(1, Ordering::Release);
    stream.write_all(&(node.me as u64).to_le_bytes())?;
    let (mut next, mut due) = (0, Instant::now());
    let mut bytes = Vec::new();
    let rounds = loop {
        let rounds = node.rounds.load(Ordering::Acquire);
        if rounds != GOES_ON {
            break rounds;
        }
        bytes.clear();
        bytes.extend(PIECE.to_le_bytes());
        (next..next + PIECE).for_each(|word| bytes.extend(value(key(node.me, to), word).to_le_bytes()));
        stream.write_all(&bytes)?;
        next += PIECE;
        due = rest(due, node);
    };
    stream.write_all(&0u64.to_le_bytes())?;
    stream.write_all(&rounds.to_le_bytes())?;
    stream.read_exact(&mut [0])
}

/// Tries until the other one listens; it may still be booting.
fn connect(node: &Node, to: usize) -> TcpStream {
    loop {
        match TcpStream::connect((node.hosts[to], PORT)) {
            Ok(stream) => return stream,
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Takes what one other node sends, until it ends; then waits for its frames.
pub(crate) fn take(node: &Node, listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let from = word(&mut stream)? as usize;
    node.met.fetch_add(1, Ordering::Release);
    let (mut next, mut bytes) = (0, Vec::new());
    loop {
        let words = word(&mut stream)?.min(PIECE);
        if words == 0 {
            break;
        }
        bytes.resize(words as usize * 8, 0);
        stream.read_exact(&mut bytes)?;
        let right = |(at, word): (u64, &[u8])| *word == value(key(from, node.me), next + at).to_le_bytes();
        let corrupt = (0..).zip(bytes.chunks_exact(8)).filter(|piece| !right(*piece)).count();
        next += words;
        let mut account = node.account(from);
        account.tcp_bytes += words * 8;
        account.tcp_corrupt += corrupt as u64;
    }
    let rounds = word(&mut stream)?;
    node.account(from).sent = Some(rounds);
    node.drain(from);
    stream.write_all(&[0])
}

fn key(from: usize, to: usize) -> u64 {
    (from << 8 | to) as u64
}

fn word(stream: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
