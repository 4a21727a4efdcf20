//! The VM generation identifier: 16 bytes in guest RAM that change whenever the guest may have a twin, so that it stirs
//! its random pool (Microsoft, "Virtual Machine Generation ID"; Linux `drivers/virt/vmgenid.c`).
//!
//! Writing the number is half of it: the guest looks after an interrupt (a generic event device in the ACPI tables).

use vm_memory::{Bytes, GuestAddress};

use crate::{Error, GuestRam, Result, entropy};

/// Where the identifier of a machine stands.
#[derive(Clone, Copy, Debug)]
pub struct VmGenId {
    address: GuestAddress,
}

impl VmGenId {
    /// The identifier's length in bytes.
    pub const BYTES: usize = 16;

    /// The identifier at `address`, which the ACPI tables tell the guest. The specification wants 8-byte alignment.
    pub fn new(address: GuestAddress) -> Self {
        Self { address }
    }

    /// Writes a new random identifier and returns it.
    ///
    /// # Errors
    /// The address is not in RAM, or the host gives no random numbers.
    pub fn write_new(&self, ram: &GuestRam) -> Result<[u8; Self::BYTES]> {
        let mut id = [0; Self::BYTES];
        entropy::fill(&mut id).map_err(|source| Error::Entropy { source })?;
        ram.write_slice(&id, self.address).map_err(|source| Error::VmGenId { address: self.address.0, source })?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_identifier_is_new_and_stands_in_ram() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let generation = VmGenId::new(GuestAddress(0x1000));
        let first = generation.write_new(&ram).unwrap();
        let second = generation.write_new(&ram).unwrap();
        assert_ne!(first, second);
        assert_eq!(ram.read_obj::<[u8; 16]>(GuestAddress(0x1000)).unwrap(), second);
    }

    #[test]
    fn an_address_outside_ram_is_an_error() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        let error = VmGenId::new(GuestAddress(0x1ff8)).write_new(&ram).unwrap_err();
        assert!(error.to_string().contains("0x1ff8"), "{error}");
    }
}
