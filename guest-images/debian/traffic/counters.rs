//! The kernel's own counters of TCP and UDP (Documentation/networking/snmp_counter.rst).

use std::fs;

/// A counter of /proc/net/snmp or /proc/net/netstat; 0 if the kernel has none of that name.
pub(crate) fn tcp(name: &str) -> u64 {
    ["Tcp:", "TcpExt:"].into_iter().find_map(|group| counter(group, name)).unwrap_or(0)
}

pub(crate) fn udp(name: &str) -> u64 {
    counter("Udp:", name).unwrap_or(0)
}

/// A group has a line of names and a line of numbers.
fn counter(group: &str, name: &str) -> Option<u64> {
    let text =
        ["/proc/net/snmp", "/proc/net/netstat"].map(|file| fs::read_to_string(file).unwrap_or_default()).concat();
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(group));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let number = names.split(' ').zip(numbers.split(' ')).find(|(known, _)| *known == name)?.1;
    number.parse().ok()
}
