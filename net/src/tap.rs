//! A TAP interface of the host: one file descriptor, one frame per read or write.

#![allow(unsafe_code)] // ioctls on the TUN/TAP driver

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

use crate::link::HEADER_BYTES;
use crate::{Error, Link, Offloads, Result};

/// The longest name of an interface (`IFNAMSIZ` less its zero byte).
const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// An open TAP interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Attaches to the existing TAP interface `name` of this thread's network namespace.
    ///
    /// # Errors
    /// The name is none, the interface is missing, busy, another user's or no TAP, or the host lacks the driver; each
    /// says what to do.
    pub fn open(name: &str) -> Result<Tap> {
        let mut request = interface_request(name)?;
        // Looked up first: TUNSETIFF makes an interface that does not exist, and it would vanish with us.
        if nix::net::if_::if_nametoindex(name).is_err() {
            return Err(Error::Missing { name: name.into() });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|source| Error::NoDriver { name: name.into(), source })?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: `request` is a valid ifreq for the whole call, and TUNSETIFF reads and writes no more than that.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
            .map_err(|source| attach_error(name, source))?;
        let tap = Tap { file, name: name.into() };
        tap.set_header_bytes()?;
        tap.set_offloads(Offloads::default())?;
        Ok(tap)
    }

    /// Whether the interface is up and running on the host's side. While it is not, writes fail with EIO.
    ///
    /// # Errors
    /// The interface has gone.
    pub fn is_up(&self) -> Result<bool> {
        let request = self.query(libc::SIOCGIFFLAGS, "read the flags")?;
        // SAFETY: SIOCGIFFLAGS has filled the `ifru_flags` member, an integer of which every bit pattern is valid.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_UP | libc::IFF_RUNNING;
        Ok(flags & wanted == wanted)
    }

    fn set_header_bytes(&self) -> Result<()> {
        let bytes = HEADER_BYTES as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int through a pointer that is valid for the call.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
            .map_err(|source| self.error("set the header size", source))
    }

    /// Asks about the interface through a socket: TAP descriptors do not answer these.
    fn query(&self, what: libc::Ioctl, words: &'static str) -> Result<libc::ifreq> {
        let mut request = interface_request(&self.name)?;
        let socket = UnixDatagram::unbound().map_err(|source| self.error("open a socket", source))?;
        // SAFETY: `request` is a valid ifreq for the whole call, and the two queries write no more than that.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) })
            .map_err(|source| self.error(words, source))?;
        Ok(request)
    }

    fn error(&self, what: &'static str, source: io::Error) -> Error {
        Error::Kernel { name: self.name.clone(), what, source }
    }
}

impl Link for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn mtu(&self) -> Result<u16> {
        let request = self.query(libc::SIOCGIFMTU, "read the MTU")?;
        // SAFETY: SIOCGIFMTU has filled the `ifru_mtu` member, an integer of which every bit pattern is valid.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        let flags = libc::c_ulong::from(offload_flags(offloads));
        // SAFETY: TUNSETOFFLOAD takes its argument by value; no memory is involved.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
            .map_err(|source| self.error("set offloads", source))
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(|| (&self.file).read(buffer))
    }

    fn write(&self, frame: &[u8]) -> io::Result<usize> {
        retry(|| (&self.file).write(frame))
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The flags of `TUNSETOFFLOAD`.
fn offload_flags(offloads: Offloads) -> libc::c_uint {
    let Offloads { checksum, tso4, tso6 } = offloads;
    let bit = |wanted, bit| if wanted { bit } else { 0 };
    bit(checksum, libc::TUN_F_CSUM) | bit(checksum && tso4, libc::TUN_F_TSO4) | bit(checksum && tso6, libc::TUN_F_TSO6)
}

/// An `ifreq` for the interface, if the name can be one. `%` is refused since the kernel would take it as a pattern.
fn interface_request(name: &str) -> Result<libc::ifreq> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    let path = matches!(name, "." | "..");
    if name.is_empty() || name.len() > NAME_BYTES_MAX || path || name.contains(bad) {
        return Err(Error::Name { name: name.into() });
    }
    // SAFETY: ifreq is made of integers and a union of integers, for which all zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn attach_error(name: &str, source: io::Error) -> Error {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => Error::Busy { name },
        Some(libc::EPERM | libc::EACCES) => Error::Denied { name },
        Some(libc::EINVAL | libc::ENOTUNIQ) => Error::NotATap { name },
        _ => Error::Kernel { name, what: "attach to it", source },
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// How often the host is asked, a hundred times a second.
    const ATTEMPTS: usize = 2000;

    /// Runs `test` on a thread in a network namespace of its own, or says why not.
    fn in_own_network(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            if let Err(errno) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                println!("skipped: no network namespace of our own: {errno}");
            } else if let Err(error) = File::open("/dev/net/tun") {
                println!("skipped: /dev/net/tun: {error}");
            } else {
                test();
            }
        });
        thread.join().unwrap();
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }

    #[test]
    fn names_that_are_none_are_refused_with_the_reason() {
        for name in ["", ".", "..", "a b", "a/b", "tap%d", "eth0:1", "a\0b", "sixteen-letters-"] {
            let error = Tap::open(name).unwrap_err();
            assert!(matches!(error, Error::Name { .. }), "{name:?}: {error}");
            assert!(error.to_string().contains("1 to 15 characters"), "{error}");
        }
    }

    #[test]
    fn a_missing_interface_is_not_made_but_told_how_to_make() {
        in_own_network(|| {
            let error = Tap::open("tap9").unwrap_err();
            assert!(matches!(error, Error::Missing { .. }), "{error}");
            assert!(error.to_string().contains("ip tuntap add dev tap9 mode tap"), "{error}");
            assert!(nix::net::if_::if_nametoindex("tap9").is_err());
        });
    }

    #[test]
    fn an_interface_that_is_busy_or_no_tap_is_named() {
        in_own_network(|| {
            ip("tuntap add dev tap0 mode tap");
            let _first = Tap::open("tap0").unwrap();
            let error = Tap::open("tap0").unwrap_err();
            assert!(matches!(error, Error::Busy { .. }), "{error}");
            assert!(error.to_string().contains("in use by another process"), "{error}");
            let error = Tap::open("lo").unwrap_err();
            assert!(matches!(error, Error::NotATap { .. }), "{error}");
            ip("tuntap add dev tun0 mode tun");
            let error = Tap::open("tun0").unwrap_err();
            assert!(matches!(error, Error::NotATap { .. }), "{error}");
        });
    }

    #[test]
    fn the_interface_tells_its_mtu_and_state() {
        in_own_network(|| {
            ip("tuntap add dev tap0 mode tap");
            let tap = Tap::open("tap0").unwrap();
            assert_eq!((tap.name(), tap.mtu().unwrap(), tap.is_up().unwrap()), ("tap0", 1500, false));
            ip("link set dev tap0 mtu 9000 up");
            assert_eq!((tap.mtu().unwrap(), tap.is_up().unwrap()), (9000, true));
        });
    }

    #[test]
    fn frames_go_both_ways_with_their_header() {
        in_own_network(|| {
            ip("tuntap add dev tap0 mode tap");
            ip("addr add 10.0.0.1/24 dev tap0");
            let tap = Tap::open("tap0").unwrap();
            tap.set_offloads(Offloads { checksum: true, tso4: true, tso6: true }).unwrap();
            let error = tap.write(&[0; HEADER_BYTES + 60]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "down");
            ip("link set dev tap0 up");
            // Who has 10.0.0.1? Tell 10.0.0.2. The host's answer comes back through the same TAP.
            let mut request = vec![0; HEADER_BYTES];
            request.extend([0xff; 6]);
            request.extend([2, 0, 0, 0, 0, 2, 0x08, 0x06]);
            request.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
            let mut frame = [0; 2048];
            // The host's stack loses what comes before it has seen the carrier: ask again, as a guest would.
            for _ in 0..ATTEMPTS {
                assert_eq!(tap.write(&request).unwrap(), request.len());
                std::thread::sleep(Duration::from_millis(10));
                while let Ok(bytes) = tap.read(&mut frame) {
                    let frame = &frame[HEADER_BYTES..bytes];
                    if frame[12..14] == [0x08, 0x06] && frame[20..22] == [0, 2] && frame[28..32] == [10, 0, 0, 1] {
                        return;
                    }
                }
            }
            panic!("no ARP reply");
        });
    }

    #[test]
    fn a_header_that_lies_is_refused_by_the_kernel() {
        in_own_network(|| {
            ip("tuntap add dev tap0 mode tap");
            ip("link set dev tap0 up");
            let tap = Tap::open("tap0").unwrap();
            let mut frame = [0; HEADER_BYTES + 60];
            frame[0] = 1; // NEEDS_CSUM …
            frame[6..8].copy_from_slice(&60_000_u16.to_le_bytes()); // … of bytes that are not there
            assert!(tap.write(&frame).is_err());
        });
    }
}
