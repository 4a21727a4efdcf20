//! Ports with real sockets between them; the test is their cards, I/O threads and main loops.

mod slow_guest;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, channel};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::*;
use crate::cut::Limits;
use crate::link::{HEADER_BYTES, Link};
use crate::packet::Incarnation;
use crate::switch::mac_of;
use crate::transport::SeqPacket;
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
    network_over(incarnations, |socket| Box::new(SeqPacket::new(socket)))
}

fn network_over(incarnations: &[u64], transport: impl Fn(OwnedFd) -> Box<dyn Transport>) -> Vec<Vm> {
    let nodes = incarnations.len();
    let mut links: Vec<Vec<(Node, Box<dyn Transport>)>> = (0..nodes).map(|_| Vec::new()).collect();
    for a in 0..nodes {
        for b in 0..a {
            let kind = (AddressFamily::Unix, SockType::SeqPacket);
            let (one, other) = socketpair(kind.0, kind.1, None, SockFlag::SOCK_CLOEXEC).unwrap();
            links[a].push((Node(b as u16), transport(one)));
            links[b].push((Node(a as u16), transport(other)));
        }
    }
    let vms = links.into_iter().zip(incarnations).zip(0..).map(|((links, incarnation), me)| {
        let (sender, events) = channel();
        let setup = Setup { me: Node(me), nodes: nodes as u16, incarnation: Incarnation(*incarnation), limits: LIMITS };
        let macs = macs(nodes as u16);
        let config = PortConfig { name: "eth0".into(), setup, macs, links, preload: Vec::new(), offloads: true };
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
    let Ok(Event::Broken(_, error)) = vms[2].events.try_recv() else { panic!("it was let in") };
    assert!(error.to_string().contains("another life"), "{error}");
}

#[test]
fn a_guest_that_leaves_is_missed_by_nobody() {
    let mut vms = network(&[1, 1]);
    let left = vms.remove(0);
    left.port.write(&frame(1, 1, 100)).unwrap();
    // It will not read this.
    vms[0].port.write(&frame(0, 9, 100)).unwrap();
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

/// Turns all until `vm` has got `frames` frames.
fn await_frames(vms: &[Vm], vm: usize, frames: usize) -> Vec<u32> {
    let (deadline, mut got) = (Instant::now() + Duration::from_secs(10), Vec::new());
    while got.len() < frames {
        vms.iter().for_each(|vm| vm.port.turn());
        got.extend(vms[vm].got());
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{} of {frames} frames have come", got.len());
        if got.len() < frames {
            vms[vm].port.0.poll.wait(left);
        }
    }
    got
}

#[test]
fn packets_on_a_slow_link_take_their_time_and_come_in_order() {
    let vms = network(&[1, 1]);
    let (least, most) = (Duration::from_millis(5), Duration::from_millis(40));
    vms[1].port.set_fault(Node(0), Fault::Delay { least, most, seed: 3 });
    let begin = Instant::now();
    (0..8).for_each(|number| _ = vms[0].port.write(&frame(1, number, 100)).unwrap());
    vms[1].port.turn();
    assert!(begin.elapsed() > least || vms[1].got().is_empty());
    assert_eq!(await_frames(&vms, 1, 8), (0..8).collect::<Vec<_>>());
    assert!(begin.elapsed() >= least);
}

#[test]
fn a_link_that_stands_still_fills_makes_its_sender_wait_and_loses_nothing() {
    let vms = network(&[1, 1]);
    vms[1].port.set_fault(Node(0), Fault::Hold);
    let mut sent = 0;
    while vms[0].port.may_write() {
        vms[0].port.write(&frame(1, sent, 1500)).unwrap();
        sent += 1;
        vms[1].port.turn();
        vms[0].port.turn();
    }
    assert!(sent > 256, "{sent}: the stretch, the socket and the slots are full");
    assert_eq!((vms[1].got().len(), vms[0].port.waits()), (0, 1));
    vms[1].port.set_fault(Node(0), Fault::NONE);
    assert_eq!(await_frames(&vms, 1, sent as usize), (0..sent).collect::<Vec<_>>());
    assert!(vms[0].port.may_write());
}

/// A cut is taken by a VM whose link is slow: what is on its way is logged, and the marker of a later one is held.
#[test]
fn what_is_on_a_slow_link_at_a_cut_is_logged() {
    let vms = network(&[1, 1]);
    vms[1].port.set_fault(Node(0), Fault::Hold);
    vms[0].port.write(&frame(1, 7, 100)).unwrap();
    for vm in &vms {
        vm.port.turn();
        vm.port.tell(Input::CutRequested(ONE)).unwrap();
        assert_eq!(vm.takes_cut(), ONE);
        vm.port.tell(Input::CutTaken(ONE)).unwrap();
    }
    vms.iter().for_each(|vm| vm.port.turn());
    assert!(vms[1].events.try_recv().is_err(), "its marker is on its way");
    vms[1].port.set_fault(Node(0), Fault::NONE);
    assert_eq!(await_frames(&vms, 1, 1), [7]);
    let Ok(Event::Cut(Output::LinksClosed { log, .. })) = vms[1].events.try_recv() else { panic!("it is open") };
    assert_eq!(log.iter().map(|(_, frame)| number(frame)).collect::<Vec<_>>(), [7]);
}

#[test]
fn a_link_that_is_broken_is_told_at_both_ends() {
    let vms = network(&[1, 1]);
    vms[0].port.turn();
    vms[0].port.set_fault(Node(1), Fault::Break);
    let Ok(Event::Broken(_, error)) = vms[0].events.try_recv() else { panic!("it holds") };
    assert!(error.to_string().contains("link to node 1"), "{error}");
    vms[1].port.turn();
    vms.iter().for_each(|vm| vm.port.tell(Input::CutRequested(ONE)).unwrap());
    for vm in &vms {
        assert_eq!(vm.takes_cut(), ONE);
        vm.port.tell(Input::CutTaken(ONE)).unwrap();
        assert!(matches!(vm.events.try_recv(), Ok(Event::Cut(Output::Failed(ONE, _)))), "no cut has all that was sent");
    }
}

/// A host that has no memory for a packet each second time.
#[derive(Debug)]
struct Short(SeqPacket, u32);

impl AsFd for Short {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Transport for Short {
    fn send(&mut self, prefix: &[u8], frame: &[u8]) -> io::Result<()> {
        self.1 += 1;
        match self.1 % 4 {
            1 => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            3 => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            _ => self.0.send(prefix, frame),
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.receive(buffer)
    }
}

#[test]
fn a_packet_for_which_the_host_has_no_memory_goes_out_later() {
    // The first that each sends is its hello.
    let vms = network_over(&[1, 1], |socket| Box::new(Short(SeqPacket::new(socket), 1)));
    (0..8).for_each(|number| _ = vms[0].port.write(&frame(1, number, 100)).unwrap());
    let (deadline, mut got) = (Instant::now() + Duration::from_secs(10), Vec::new());
    while got.len() < 8 {
        assert!(Instant::now() < deadline, "{got:?}: {:?}", vms[0].events.try_recv());
        vms[0].port.0.poll.wait(Duration::from_secs(1));
        vms.iter().for_each(|vm| vm.port.turn());
        got.extend(vms[1].got());
    }
    assert_eq!(got, (0..8).collect::<Vec<_>>());
}

/// Its I/O thread is parked, so nobody turns its port.
#[test]
fn a_cut_of_a_machine_that_stands_still_is_completed_and_nothing_more_is_read() {
    let mut vms = network(&[1, 1]);
    let running = vms.pop().unwrap();
    let still = vms.pop().unwrap();
    running.port.write(&frame(0, 7, 100)).unwrap();
    still.port.write(&frame(1, 8, 100)).unwrap();
    for vm in [&still, &running] {
        vm.port.tell(Input::CutRequested(ONE)).unwrap();
        assert_eq!(vm.takes_cut(), ONE);
        vm.port.tell(Input::CutTaken(ONE)).unwrap();
    }
    running.port.write(&frame(0, 9, 100)).unwrap();
    running.port.turn();
    still.port.stand();
    still.port.complete_cut();
    running.port.turn();
    for (vm, logged) in [(&still, 7), (&running, 8)] {
        let Ok(Event::Cut(Output::LinksClosed { log, .. })) = vm.events.try_recv() else { panic!("it is open") };
        assert_eq!(log.iter().map(|(_, frame)| number(frame)).collect::<Vec<_>>(), [logged]);
    }
    assert_eq!(still.port.lock().cut.pending_bytes(), frame(0, 7, 100).len(), "only what is of the cut was read");
    still.port.turn();
    assert_eq!(still.got(), [7, 9]);
}

#[test]
fn a_capture_sees_what_comes_and_goes_and_ends_with_its_file() {
    let vms = network(&[1, 1, 1]);
    let file = tempfile::NamedTempFile::new().unwrap();
    let (sender, ended) = channel();
    let capture = Capture::start(file.reopen().unwrap(), None, move |end| sender.send(end).unwrap()).unwrap();
    vms[0].port.set_capture(Some(capture));
    vms[0].port.write(&frame(1, 1, 100)).unwrap();
    vms[2].port.write(&frame(0, 2, 200)).unwrap();
    vms[1].port.write(&frame(2, 3, 300)).unwrap();
    vms.iter().for_each(|vm| vm.port.turn());
    vms[0].port.set_capture(None);
    let end = ended.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!((end.frames, end.bytes), (2, 24 + 2 * 16 + 88 + 188));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (sender, ended) = channel();
    vms[0].port.set_capture(Some(Capture::start(full, None, move |end| sender.send(end).unwrap()).unwrap()));
    assert!(ended.recv_timeout(Duration::from_secs(5)).unwrap().error.is_some());
    vms[0].port.write(&frame(1, 4, 100)).unwrap();
    vms[1].port.turn();
    assert_eq!(vms[1].got(), [1, 4], "the guest goes on");
    assert!(vms[0].port.lock().capture.is_none());
}
