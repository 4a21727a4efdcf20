//! virtio-rng (virtio 1.2 §5.4): one queue of buffers to be filled with random bytes.
//!
//! Invariant: an event fills at most [`BUFFERS_PER_EVENT`] buffers with [`BYTES_PER_BUFFER`] each, so that a greedy
//! guest does not keep the I/O thread from others. A buffer that is longer is filled in part, as §5.4.6 allows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::queue::{QueueError, VirtQueue};
use super::state::{self, DeviceState};
use super::{Active, DeviceEvent, Progress, VirtioDevice, read_space};
use crate::{GuestRam, Result, entropy};

const NAME: &str = "random number device";
const REQUESTS: usize = 0;
const QUEUE_SIZES: &[u16] = &[64];
/// How many buffers one event fills.
const BUFFERS_PER_EVENT: usize = 64;
/// How much of a buffer is filled, in bytes. Linux asks for 64.
const BYTES_PER_BUFFER: usize = 4096;

/// A source of random numbers: the host's.
#[derive(Default)]
pub struct Rng {
    active: Option<(GuestRam, Arc<VirtQueue>)>,
}

/// A saved source of random numbers: it has nothing to save, on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

impl Rng {
    /// An idle device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> String {
        NAME.into()
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&[], offset, data);
    }

    fn activate(&mut self, active: Active) -> Result<()> {
        let queue = active.queue(REQUESTS).cloned();
        self.active = queue.map(|queue| (active.ram, queue));
        Ok(())
    }

    fn deactivate(&mut self) {
        self.active = None;
    }

    fn process(&mut self, _event: DeviceEvent) -> Result<Progress, QueueError> {
        let Some((ram, queue)) = &self.active else { return Ok(Progress::Idle) };
        for _ in 0..BUFFERS_PER_EVENT {
            let Some(chain) = queue.pop()? else { return Ok(Progress::Idle) };
            let mut bytes = [0; BYTES_PER_BUFFER];
            let wanted = chain.writable.bytes().min(bytes.len() as u64) as usize;
            let written = match entropy::fill(&mut bytes[..wanted]) {
                Ok(()) => chain.writable.write(ram, &bytes[..wanted])?,
                // Nothing written is what the driver takes for "try again".
                Err(error) => {
                    tracing::warn!("{NAME}: the host gives no random numbers: {error}");
                    0
                }
            };
            queue.complete(&[(chain.head, written as u32)])?;
        }
        Ok(Progress::Again(REQUESTS))
    }

    fn save(&self) -> Result<DeviceState> {
        let Self { active: _ } = self;
        Ok(DeviceState::Rng(RngState {}))
    }

    fn restore(&mut self, state: DeviceState) -> Result<()> {
        match state {
            DeviceState::Rng(RngState {}) => Ok(()),
            other => Err(other.not_of(self.name(), state::RNG)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use super::*;
    use crate::virtio::blk::BlkState;
    use crate::virtio::specimen::{Specimen, virtio_laws};
    use crate::virtio::testing::{DATA, FILL, Piece, Rig};

    struct RngSpecimen;

    impl Specimen for RngSpecimen {
        const QUEUE: usize = REQUESTS;

        fn make() -> (Box<dyn VirtioDevice>, Box<dyn Any>) {
            (Box::new(Rng::new()), Box::new(()))
        }

        fn offer(rig: &mut Rig) {
            rig.offer(REQUESTS, &[Piece::In(DATA, 64)]);
        }

        fn check(rig: &mut Rig) {
            let used = rig.wait_used(REQUESTS, 1);
            assert_eq!(used[0].1, 64);
        }

        fn misfits(_: &DeviceState) -> Vec<(DeviceState, &'static str)> {
            let disk = BlkState { id: "root".into(), sectors: 8, read_only: false };
            vec![(DeviceState::Blk(disk), "kind of device is virtio-blk, this machine's is virtio-rng")]
        }
    }

    virtio_laws!(RngSpecimen);

    fn rig() -> Rig {
        let mut rig = Rig::new(Box::new(Rng::new()));
        rig.start_with_all();
        rig
    }

    #[test]
    fn all_of_a_buffer_is_random_and_nothing_beyond_it() {
        let mut rig = rig();
        rig.offer(REQUESTS, &[Piece::In(DATA, 100), Piece::In(DATA + 0x1000, 28)]);
        rig.kick(REQUESTS);
        assert_eq!(rig.used(REQUESTS)[0].1, 128);
        for (address, bytes) in [(DATA, 100), (DATA + 0x1000, 28)] {
            let filled = rig.bytes(address, bytes);
            assert!(filled.iter().filter(|&&byte| byte == FILL).count() < bytes / 2);
            assert_eq!(rig.bytes(address + bytes as u64, 8), [FILL; 8]);
        }
    }

    #[test]
    fn a_greedy_buffer_is_filled_in_part() {
        let mut rig = rig();
        rig.offer(REQUESTS, &[Piece::In(DATA, 0x2_0000)]);
        rig.kick(REQUESTS);
        assert_eq!(rig.used(REQUESTS)[0].1 as usize, BYTES_PER_BUFFER);
        assert_eq!(rig.bytes(DATA + BYTES_PER_BUFFER as u64, 1), [FILL]);
    }

    #[test]
    fn a_buffer_that_cannot_be_written_is_used_with_nothing_in_it() {
        let mut rig = rig();
        let head = rig.offer(REQUESTS, &[Piece::Out(DATA, 64)]);
        rig.kick(REQUESTS);
        assert_eq!(rig.used(REQUESTS), [(head, 0)]);
        assert_eq!(rig.bytes(DATA, 64), [FILL; 64]);
    }
}
