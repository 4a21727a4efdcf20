//! What a card sees of its port: a link.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::Port;
use crate::{Link, Offloads, Result};

/// The largest packet that a guest is told of: what cards agree on otherwise is the same for all of the network.
const MTU: u16 = 1500;

impl AsRawFd for Port {
    fn as_raw_fd(&self) -> RawFd {
        self.0.poll.card()
    }
}

impl Link for Port {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn mtu(&self) -> Result<u16> {
        Ok(MTU)
    }

    fn offers_offloads(&self) -> bool {
        self.0.offloads
    }

    /// The others' cards offer what this one does; what a guest has nevertheless not agreed to, its card drops.
    fn set_offloads(&self, _: Offloads) -> Result<()> {
        Ok(())
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.lock().read(buffer, &self.0.poll)
    }

    fn may_write(&self) -> bool {
        self.lock().may_write()
    }

    fn write(&self, frame: &[u8]) -> io::Result<usize> {
        self.lock().write(frame, &self.0.poll)
    }
}
