//! Ports with real sockets between them; the test is their cards, I/O threads and main loops.

use std::sync::mpsc::{Receiver, channel};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;
use crate::cut::Limits;
use crate::link::HEADER_BYTES;
use crate::packet::Incarnation;
use crate::switch::mac_of;
use crate::wire::FRAME_BYTES_MIN;

const LIMITS: Limits = Limits { slots: 8, pending_bytes: 2 << 20, log_bytes: 8 << 20 };
const ONE: Colour = Colour(1);

struct Vm {
    port: Port,
    events: Receiver<Event>,
}

fn macs(nodes: u16) -> Vec<Mac> {
    (0..nodes).map(|node| mac_of([10, 0, 0, node as u8 + 1].into())).collect()
}

fn network(incarnations: &[u64]) -> Vec<Vm> {
    let nodes = incarnations.len();
    let mut links: Vec<Vec<(Node, OwnedFd)>> = (0..nodes).map(|_| Vec::new()).collect();
    for a in 0..nodes {
        for b in 0..a {
            let kind = (AddressFamily::Unix, SockType::SeqPacket);
            let (one, other) = socketpair(kind.0, kind.1, None, SockFlag::SOCK_CLOEXEC).unwrap();
            links[a].push((Node(b as u16), one));
            links[b].push((Node(a as u16), other));
        }
    }
    let vms = links.into_iter().zip(incarnations).zip(0..).map(|((links, incarnation), me)| {
        let (sender, events) = channel();
        let setup = Setup { me: Node(me), nodes: nodes as u16, incarnation: Incarnation(*incarnation), limits: LIMITS };
        let macs = macs(nodes as u16);
        let config = PortConfig { name: "eth0".into(), setup, macs, links, preload: Vec::new() };
        Vm { port: Port::open(config, move |event| sender.send(event).unwrap()).unwrap(), events }
    });
    vms.collect()
}

/// Frame `number`, of `bytes` bytes.
fn frame(to: u16, number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend_from_slice(&macs(to + 1)[usize::from(to)]);
    frame.resize(bytes.max(FRAME_BYTES_MIN + 4), 0);
    frame[FRAME_BYTES_MIN..FRAME_BYTES_MIN + 4].copy_from_slice(&number.to_le_bytes());
    frame
}

impl Vm {
    /// What the guest gets now.
    fn got(&self) -> Vec<u32> {
        let mut buffer = [0; 70_000];
        let frames = std::iter::from_fn(|| self.port.read(&mut buffer).ok().map(|length| number(&buffer[..length])));
        frames.collect()
    }

    fn takes_cut(&self) -> Colour {
        match self.events.try_recv() {
            Ok(Event::Cut(Output::TakeCut(cut))) => cut,
            other => panic!("{other:?}"),
        }
    }
}

fn number(frame: &[u8]) -> u32 {
    u32::from_le_bytes(frame[FRAME_BYTES_MIN..FRAME_BYTES_MIN + 4].try_into().unwrap())
}

/// All frames arrive, however often the sender had to wait for room.
#[test]
fn a_full_link_makes_its_sender_wait_and_then_tells_it() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    let (mut sent, mut got, mut refusals) = (0, Vec::new(), 0);
    while got.len() < 5000 {
        while sent < 5000 && sender.may_write() {
            sender.write(&frame(1, sent, 1500)).unwrap();
            sent += 1;
        }
        refusals += u32::from(sent < 5000);
        let before = sender.0.poll.card_count();
        receiver.port.turn();
        got.extend(receiver.got());
        if sent < 5000 {
            sender.0.poll.wait(Duration::from_secs(5));
            sender.turn();
            assert!(sender.0.poll.card_count() > before, "it was not told that there is room");
        }
    }
    assert_eq!(got, (0..5000).collect::<Vec<_>>());
    assert!(refusals > 10, "the link was never full");
    assert_eq!(receiver.port.counters(), Counters::default());
}

#[test]
fn a_marker_on_a_link_makes_the_cut_and_what_waits_is_logged() {
    let vms = network(&[1, 1, 1]);
    vms[0].port.write(&frame(2, 7, 100)).unwrap();
    vms[1].port.write(&frame(2, 8, 100)).unwrap();
    vms[2].port.turn();
    vms[0].port.tell(Input::CutRequested(ONE)).unwrap();
    assert_eq!(vms[0].takes_cut(), ONE);
    vms[0].port.tell(Input::CutTaken(ONE)).unwrap();
    vms[0].port.write(&frame(2, 9, 100)).unwrap();
    vms[0].port.turn();
    for vm in &vms[1..] {
        vm.port.turn();
        assert_eq!(vm.takes_cut(), ONE, "nobody but the marker has told it");
        vm.port.tell(Input::CutTaken(ONE)).unwrap();
        vm.port.turn();
    }
    vms[2].port.turn();
    let Ok(Event::Cut(Output::LinksClosed { cut: ONE, log })) = vms[2].events.try_recv() else { panic!("it is open") };
    let log: Vec<_> = log.iter().map(|(from, frame)| (from.0, number(frame))).collect();
    assert_eq!(log, [(0, 7), (1, 8)]);
    assert_eq!(vms[2].got(), [7, 8, 9], "the running guest gets all");
    assert_eq!(vms[2].port.counters().held, 2, "the first marker made the cut, the second came too early as well");
}

#[test]
fn a_guest_that_takes_frames_is_waited_for_and_one_that_takes_none_is_not() {
    let vms = network(&[1, 1]);
    let (sender, receiver) = (&vms[0].port, &vms[1]);
    sender.write(&frame(1, 0, 100)).unwrap();
    receiver.port.turn();
    assert_eq!(receiver.got(), [0]);
    let fill = |from: u32| {
        let mut sent = from;
        while sender.may_write() {
            sender.write(&frame(1, sent, 60_000)).unwrap();
            sent += 1;
            receiver.port.turn();
            sender.turn();
        }
        sent
    };
    let sent = fill(1);
    assert!((18..60).contains(&sent), "{sent}: it reads ahead, and then not");
    receiver.port.0.poll.wait(Duration::from_secs(5));
    receiver.port.turn();
    sender.turn();
    assert!(sender.may_write(), "a dead guest stalls nobody");
    for more in 0..200 {
        sender.write(&frame(1, sent + more, 60_000)).unwrap();
        receiver.port.turn();
        sender.turn();
    }
    assert!(receiver.port.counters().dropped > 0);
    let got = receiver.got();
    assert!(got.is_sorted() && got[0] == 1, "what it gets in the end is in order");
}

#[test]
fn a_broadcast_reaches_all_and_a_stranger_nobody() {
    let vms = network(&[1, 1, 2]);
    let mut broadcast = frame(0, 5, 100);
    broadcast[HEADER_BYTES..HEADER_BYTES + 6].fill(0xff);
    vms[0].port.write(&broadcast).unwrap();
    vms[0].port.write(&frame(0, 6, 100)).unwrap();
    vms[1].port.turn();
    assert_eq!(vms[1].got(), [5]);
    vms[2].port.turn();
    assert!(vms[2].got().is_empty(), "another life of the network");
    let Ok(Event::Broken(error)) = vms[2].events.try_recv() else { panic!("it was let in") };
    assert!(error.to_string().contains("another life"), "{error}");
}

#[test]
fn a_guest_that_leaves_is_missed_by_nobody() {
    let mut vms = network(&[1, 1]);
    let left = vms.remove(0);
    left.port.write(&frame(1, 1, 100)).unwrap();
    left.port.leave(Duration::from_secs(5));
    drop(left);
    vms[0].port.turn();
    assert_eq!(vms[0].got(), [1]);
    vms[0].port.tell(Input::CutRequested(ONE)).unwrap();
    assert_eq!(vms[0].takes_cut(), ONE);
    vms[0].port.tell(Input::CutTaken(ONE)).unwrap();
    assert!(matches!(vms[0].events.try_recv(), Ok(Event::Cut(Output::LinksClosed { .. }))));
    vms[0].port.write(&frame(0, 2, 100)).unwrap();
    assert_eq!(vms[0].port.counters().unreachable, 1);
}
