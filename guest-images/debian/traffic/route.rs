//! A route to each other node on which TCP is patient: what is late, on a machine as slow as an emulated one, is not sent
//! again, while what is lost is, since the receiver says that it has later bytes. So whatever is sent again was lost.
//!
//! Messages are rtnetlink(7)'s.

use std::{
    ffi::c_int,
    fs,
    io::{self, Read, Write},
    net::Ipv4Addr,
};

use crate::packet::raw_socket;

/// Until TCP takes a segment for lost of which it hears nothing, at least, in ms: as long as it ever does (TCP_RTO_MAX).
const RTO_MIN: u32 = 120_000;

const AF_NETLINK: c_int = 16;
const NETLINK_ROUTE: c_int = 0;
const RTM_NEWROUTE: u16 = 24;
/// NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE
const FLAGS: u16 = 0x1 | 0x4 | 0x100 | 0x400;
const HEADER: usize = 16;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_METRICS: u16 = 8;
/// Which metrics hold; TCP heeds no RTO that is not locked.
const RTAX_LOCK: u16 = 1;
const RTAX_RTO_MIN: u16 = 13;

/// Makes one through the interface of this number.
pub(crate) fn patient(to: Ipv4Addr, interface: u32) -> io::Result<()> {
    // Else a probe is sent long before that.
    fs::write("/proc/sys/net/ipv4/tcp_early_retrans", "0")?;
    // rtmsg: AF_INET, all of the address counts, table main, by boot, on the link, unicast.
    let mut body = vec![2, 32, 0, 0, 254, 3, 253, 1, 0, 0, 0, 0];
    body.extend(attribute(RTA_DST, &to.octets()));
    body.extend(attribute(RTA_OIF, &interface.to_ne_bytes()));
    let lock = attribute(RTAX_LOCK, &(1u32 << RTAX_RTO_MIN).to_ne_bytes());
    let metrics = [lock, attribute(RTAX_RTO_MIN, &RTO_MIN.to_ne_bytes())].concat();
    body.extend(attribute(RTA_METRICS, &metrics));
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(RTM_NEWROUTE.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let mut socket = raw_socket(AF_NETLINK, NETLINK_ROUTE)?;
    socket.write_all(&message)?;
    let mut answer = [0; 1024];
    let length = socket.read(&mut answer)?;
    // nlmsgerr: a header, and an error number below zero.
    match answer[..length].get(HEADER..HEADER + 4) {
        Some([0, 0, 0, 0]) => Ok(()),
        Some(number) => {
            Err(io::Error::from_raw_os_error(-i32::from_ne_bytes([number[0], number[1], number[2], number[3]])))
        }
        None => Err(io::Error::other("the kernel's answer is too short")),
    }
}

/// All of ours are whole words.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (4 + value.len()) as u16;
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat()
}
