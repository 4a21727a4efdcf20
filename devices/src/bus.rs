//! A bus: which device answers at an address. One for ports, one for memory.
//!
//! Invariant: ranges do not overlap, and an access goes to one device as a whole or to none; none is cut in two.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::{Error, Result};

/// A device with registers. Calls come from several vCPU threads at once.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset` bytes from the device's base.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset` bytes from the device's base.
    fn write(&self, offset: u64, data: &[u8]);
}

/// The devices of one address space.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, Slot>,
}

struct Slot {
    bytes: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `base`, `bytes` long.
    ///
    /// # Errors
    /// The range is empty, ends beyond the address space or overlaps that of another device.
    pub fn insert(&mut self, base: u64, bytes: u64, device: Arc<dyn BusDevice>) -> Result<()> {
        let last = match bytes.checked_sub(1).and_then(|more| base.checked_add(more)) {
            Some(last) => last,
            None => return Err(Error::BusRange { base, bytes }),
        };
        // The device with the highest base not above our last byte is the only one that can overlap us from below.
        if let Some((&other, slot)) = self.devices.range(..=last).next_back()
            && slot.bytes > base.saturating_sub(other)
        {
            return Err(Error::BusOverlap { base, bytes, other });
        }
        self.devices.insert(base, Slot { bytes, device });
        Ok(())
    }

    /// Reads `data.len()` bytes at `address`. `false`: nobody is there, and `data` is untouched.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        match self.find(address, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => false,
        }
    }

    /// Writes `data` at `address`. `false`: nobody is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        match self.find(address, data.len()) {
            Some((device, offset)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }

    fn find(&self, address: u64, bytes: usize) -> Option<(&dyn BusDevice, u64)> {
        let (base, slot) = self.devices.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(bytes as u64)?;
        (end <= slot.bytes).then_some((&*slot.device, offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_device_that_covers_it() {
        let (first, second) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::new();
        bus.insert(0x100, 8, first.clone()).unwrap();
        bus.insert(0x108, 8, second.clone()).unwrap();
        let mut data = [0xaa; 2];
        assert!(bus.read(0x103, &mut data));
        assert_eq!(data, [3, 3]);
        assert!(bus.write(0x10f, &[7]));
        assert_eq!(*second.0.lock().unwrap(), [(7, vec![7])]);
        assert!(first.0.lock().unwrap().is_empty());
    }

    #[test]
    fn an_access_that_no_device_covers_as_a_whole_reaches_none() {
        let mut bus = Bus::new();
        bus.insert(0x100, 8, Arc::new(Recorder::default())).unwrap();
        bus.insert(u64::MAX - 1, 2, Arc::new(Recorder::default())).unwrap();
        let mut data = [0xaa; 4];
        for address in [0, 0xff, 0x105, 0x108, u64::MAX - 2, u64::MAX] {
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert!(!bus.write(address, &data), "{address:#x}");
        }
        assert_eq!(data, [0xaa; 4]);
    }

    #[test]
    fn ranges_that_overlap_or_cannot_be_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, Arc::new(Recorder::default())).unwrap();
        for (base, bytes) in [(0x100, 0x10), (0x10f, 1), (0xf0, 0x11), (0, u64::MAX), (0x104, 2)] {
            let error = bus.insert(base, bytes, Arc::new(Recorder::default())).unwrap_err();
            assert!(matches!(error, Error::BusOverlap { other: 0x100, .. }), "{base:#x}: {error}");
        }
        for (base, bytes) in [(0, 0), (u64::MAX, 2)] {
            let error = bus.insert(base, bytes, Arc::new(Recorder::default())).unwrap_err();
            assert!(matches!(error, Error::BusRange { .. }), "{base:#x}: {error}");
        }
        bus.insert(0xf0, 0x10, Arc::new(Recorder::default())).unwrap();
        bus.insert(0x110, 1, Arc::new(Recorder::default())).unwrap();
    }
}
