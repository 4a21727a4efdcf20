//! A guest and the test itself exchange numbered frames over a TAP, each looking for gaps, while checkpoints are made
//! and the guest is restored: both are nodes of one network, by the same code (`net_node.rs`).
//!
//! What is on its way to a guest that ends is no part of a checkpoint, so the test's own numbered frames have all come
//! when the guest is stopped; the guest sends as fast as it can until it stands still.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use ckvmm_tests::{
    LIMIT,
    bare_metal::{self, Home},
    console::{Lines, value},
    network::{TAP, enter_namespace_with_tap},
    packets::Packets,
    process::Ckvmm,
};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    guest,
    net_model::{ETHERTYPE, Frame, Kind, LONGEST, Peer, SHORTEST, Stream, Table},
    net_node::{Node, Plan},
    picture,
};

/// The test's own index, and the guest's.
const ME: u16 = 0;
const GUEST: u16 = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xff];
const GUEST_MAC: &str = "02:00:00:00:01:00";
/// Between two words to a guest that answers.
const REST: Duration = Duration::from_millis(5);
/// Numbered frames that may be under way each way.
const WINDOW: u64 = 64;
/// Numbers that come between one event and the next.
const NUMBERS: u64 = 500;
const LIVE_CHECKPOINTS: u32 = 3;

/// The test as a node.
struct Host {
    node: Node,
    packets: Packets,
    begin: Instant,
    /// What becomes of numbered frames that are sent one after the other, once.
    mischief: Option<fn(&mut [Vec<u8>; 5])>,
}

impl Host {
    fn new(bytes: usize, broadcast: u64) -> Host {
        let rest = REST.as_nanos() as u64;
        let plan = Plan { nodes: 2, me: ME, bytes, window: WINDOW, period: 0, broadcast, rest };
        let packets = Packets::of(TAP, ETHERTYPE);
        Host { node: Node::new(plan, MAC), packets, begin: Instant::now(), mischief: None }
    }

    /// Hears and speaks until `done`.
    fn talk(&mut self, what: &str, mut done: impl FnMut(&Table) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 2048];
        while !done(&self.node.table) {
            assert!(Instant::now() < deadline, "time is over at {what}: {:?}", self.node.table.peers[1]);
            let mut frames = Vec::new();
            while let Some(length) = self.node.speak(self.begin.elapsed().as_nanos() as u64, &mut buffer) {
                frames.push(buffer[..length].to_vec());
            }
            let numbered = |bytes: &Vec<u8>| Frame::read(bytes).is_ok_and(|frame| frame.kind == Kind::Numbered);
            if let Some(last) = frames.last_chunk_mut()
                && last.iter().all(numbered)
                && let Some(mischief) = self.mischief.take()
            {
                mischief(last);
            }
            frames.iter().for_each(|frame| self.packets.send(frame));
            let mut wait = REST;
            while let Some(frame) = self.packets.receive(&mut buffer, wait) {
                self.node.hear(frame);
                wait = Duration::ZERO;
            }
        }
    }

    /// Until so many more numbers have come each way.
    fn exchange(&mut self, numbers: u64) {
        let progress = |table: &Table| {
            let peer = &table.peers[usize::from(GUEST)];
            peer.stream.received.min(peer.acknowledged)
        };
        let enough = progress(&self.node.table) + numbers;
        self.talk("an exchange", |table| progress(table) >= enough);
    }

    /// Talks from `ask` on until there is one more line with `text`.
    fn talk_until(&mut self, lines: &Lines, text: &str, ask: impl FnOnce()) {
        let count = || lines.all().iter().filter(|line| line.contains(text)).count();
        let before = count();
        ask();
        self.talk(text, |_| count() > before);
    }

    /// Sends no numbered frames any more, or again.
    fn set_quiet(&mut self, quiet: bool) {
        self.node.table.stopped = quiet.into();
    }

    fn peer(&self) -> &Peer {
        &self.node.table.peers[usize::from(GUEST)]
    }
}

fn boot(home: &Home, job: &str) -> Ckvmm {
    let mut config = guest::config("linux", "16MiB", job);
    config["nics"] = json!([{ "id": "eth0", "mac": GUEST_MAC, "uplink": { "tap": TAP } }]);
    home.boot(&config)
}

/// The values of these words in the guest's next line that has `text`.
fn numbers<const N: usize>(vm: &Ckvmm, text: &str, words: [&str; N]) -> [u64; N] {
    let line = vm.console.expect(text, LIMIT);
    words.map(|word| value(&line, word).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {word}: {line}")))
}

fn whole(stream: &Stream, sent: u64, what: &str) {
    let Stream { received, lost, duplicated, reordered, next, seen: _ } = *stream;
    assert_eq!([received, lost, duplicated, reordered, next], [sent, 0, 0, 0, sent], "{what}");
}

/// Stops the VM with a checkpoint while the guest sends.
fn stop(mut vm: Ckvmm, host: &mut Host) -> PathBuf {
    host.set_quiet(true);
    host.talk("what it sent has come", |table| {
        let peer = &table.peers[usize::from(GUEST)];
        peer.acknowledged == peer.sent && peer.broadcasts_acknowledged == table.broadcasts
    });
    host.talk_until(&vm.messages, "durable", || vm.signal(Signal::SIGUSR2));
    let image = bare_metal::committed(&vm);
    assert_eq!(vm.wait(LIMIT), 85);
    image
}

#[test]
fn no_frame_is_lost_doubled_or_changed_by_checkpoints_and_a_restore() {
    if guest::skipped() {
        return;
    }
    enter_namespace_with_tap();
    let home = Home::in_memory();
    let vm = boot(&home, &format!("job=net peers=2 me=1 broadcast=1/8 window={WINDOW}"));
    let mut host = Host::new(LONGEST, 8);
    host.exchange(NUMBERS);
    for _ in 0..LIVE_CHECKPOINTS {
        host.talk_until(&vm.messages, "durable", || vm.signal(Signal::SIGUSR1));
        bare_metal::committed(&vm);
        host.exchange(NUMBERS);
    }
    let image = stop(vm, &mut host);
    let saved = {
        let image = picture::open(&image);
        Table::parse(&picture::read(&image, picture::header(&image).arena, Table::BYTES as u64))
    };
    let peer = &saved.peers[usize::from(ME)];
    whole(&peer.stream, host.peer().sent, "in the image");
    // What the card had not taken from the guest's queue is sent when the guest is restored.
    let received = host.peer().stream.received;
    whole(&host.peer().stream, received, "from the guest, at the cut");
    assert!((received..=received + WINDOW).contains(&peer.sent), "{} numbers in RAM, {received} sent", peer.sent);

    let mut vm = guest::restore(&home, &image, &[]);
    // More than it may send if it hears nothing.
    let heard = peer.sent + WINDOW;
    host.talk("the restored guest hears and sends", |table| table.peers[usize::from(GUEST)].stream.received > heard);
    host.set_quiet(false);
    host.exchange(NUMBERS);
    host.set_quiet(true);
    host.talk_until(&vm.console.clone(), "net final", || vm.type_bytes(b"x"));
    let from_host = numbers(&vm, "net from=0", ["received", "lost", "duplicated", "reordered", "corrupt"]);
    assert_eq!(from_host, [host.peer().sent, 0, 0, 0, 0]);
    let from_host = numbers(&vm, "net broadcasts from=0", ["received", "lost", "duplicated", "reordered"]);
    assert_eq!(from_host, [host.node.table.broadcasts, 0, 0, 0]);
    let [sent, broadcasts, ahead] = numbers(&vm, "net final drained=yes", ["sent", "broadcasts", "ahead"]);
    whole(&host.peer().stream, sent, "from the guest");
    whole(&host.peer().broadcasts, broadcasts, "from the guest, to everybody");
    assert_eq!((ahead, host.node.table.ahead, host.peer().corrupt), (0, 0, 0));
    println!("{} numbers to the guest, {sent} from it", host.peer().sent);
}

#[test]
fn the_guest_sees_what_becomes_of_frames() {
    if guest::skipped() {
        return;
    }
    enter_namespace_with_tap();
    let home = Home::in_memory();
    let mut vm = boot(&home, "job=net peers=2 me=1 bytes=64 rate=10000");
    let mut host = Host::new(SHORTEST, 0);
    host.exchange(NUMBERS);
    host.mischief = Some(|frames| {
        frames[0][60] ^= 1;
        frames.swap(1, 2);
        frames[4] = frames[3].clone();
    });
    while host.mischief.is_some() {
        host.exchange(1);
    }
    host.exchange(NUMBERS);
    host.talk_until(&vm.console.clone(), "status", || vm.type_bytes(b"s"));
    let words = ["lost", "duplicated", "reordered", "corrupt"];
    assert_eq!(numbers(&vm, "net from=0", words), [2, 1, 1, 1]);
}
