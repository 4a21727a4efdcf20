//! Numbered Ethernet frames and UDP datagrams, to each other node one of each a round. What they are is net_model.rs'.

use std::{fs, io, net::UdpSocket, os::fd::AsFd, sync::atomic::Ordering, thread, time::Instant};

use crate::{
    Node,
    net_model::{Frame, Kind, LONGEST, Wrong, mac},
    packet::{self, Packet},
    route,
};

const PORT: u16 = 7001;
/// Bytes of a datagram: with its headers it fills a frame.
const DATAGRAM: usize = 1472;

pub(crate) struct Frames {
    mac: [u8; 6],
    ethernet: Packet,
    udp: UdpSocket,
}

impl Frames {
    pub(crate) fn open(node: &Node) -> io::Result<Self> {
        let about = |what: &str| fs::read_to_string(format!("/sys/class/net/eth0/{what}"));
        let bytes: Option<Vec<u8>> =
            about("address")?.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let mac = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| io::Error::other("eth0 has no MAC"))?;
        let number: u32 = about("ifindex")?.trim().parse().map_err(io::Error::other)?;
        node.others().try_for_each(|other| route::patient(node.hosts[other], number))?;
        let udp = UdpSocket::bind((node.hosts[node.me], PORT))?;
        packet::widen(udp.as_fd())?;
        Ok(Frames { mac, ethernet: Packet::open(number as i32)?, udp })
    }

    /// Frames for which there was no room in our Ethernet socket.
    pub(crate) fn dropped(&self) -> u64 {
        self.ethernet.dropped()
    }

    /// Sends from when all are connected until the word comes.
    pub(crate) fn send(&self, node: &Node) -> io::Result<()> {
        let (mut frame, mut datagram) = ([0; LONGEST], [0; DATAGRAM]);
        node.meet();
        let mut due = Instant::now();
        let mut number = 0;
        while !node.stopped() {
            for to in node.others() {
                let content = self.content(node, to, number);
                content.write(&mut frame);
                self.ethernet.send(&frame)?;
                content.write(&mut datagram);
                self.udp.send_to(&datagram, (node.hosts[to], PORT))?;
            }
            number += 1;
            due = rest(due, node);
        }
        node.rounds.store(number, Ordering::Release);
        Ok(())
    }

    fn content(&self, node: &Node, to: usize, number: u64) -> Frame {
        let (me, receiver) = (node.me as u16, to as u16);
        Frame {
            destination: mac(self.mac, me, receiver),
            source: self.mac,
            sender: me,
            receiver,
            kind: Kind::Numbered,
            number,
            expected: 0,
            expected_broadcast: 0,
            broadcasts: 0,
        }
    }

    /// Keeps account of what comes, for ever.
    pub(crate) fn take_ethernet(&self, node: &Node) {
        let mut bytes = [0; LONGEST + 1];
        while let Ok(length) = self.ethernet.receive(&mut bytes) {
            note(node, &bytes[..length], 0);
        }
    }

    pub(crate) fn take_udp(&self, node: &Node) {
        let mut bytes = [0; LONGEST + 1];
        while let Ok(length) = self.udp.recv(&mut bytes) {
            note(node, &bytes[..length], 1);
        }
    }
}

/// `way`: 0 for Ethernet, 1 for UDP.
fn note(node: &Node, bytes: &[u8], way: usize) {
    let known = |sender: u16| usize::from(sender) < node.hosts.len();
    match Frame::read(bytes) {
        Ok(frame) if usize::from(frame.receiver) == node.me && known(frame.sender) => {
            let mut account = node.account(frame.sender.into());
            if way == 0 { account.ethernet.note(frame.number) } else { account.udp.note(frame.number) }
        }
        Err(Wrong::Corrupt { sender }) if known(sender) => node.account(sender.into()).corrupt[way] += 1,
        // What nobody says to have sent is everybody's trouble.
        _ => node.others().for_each(|other| node.account(other).corrupt[way] += 1),
    }
}

/// Rests until a round that is due at `due` has had its time; returns when the next is due. What is late is not made up for.
pub(crate) fn rest(due: Instant, node: &Node) -> Instant {
    let next = due + node.period;
    let now = Instant::now();
    if next > now {
        thread::sleep(next - now);
        next
    } else {
        now
    }
}
