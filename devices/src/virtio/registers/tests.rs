//! The register machine step by step, and under any writes.

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;

use super::*;

const DEVICE_FEATURE: u64 = 1 << 5;
const ALL: u64 = COMMON_FEATURES | DEVICE_FEATURE;

fn any_features(_: u64) -> bool {
    true
}

fn registers() -> Registers {
    Registers::new(DEVICE_FEATURE, &[64, 256])
}

impl Registers {
    fn set(&mut self, offset: u32, value: u32) -> Effect {
        self.write(offset, value, any_features)
    }

    fn set_features(&mut self, features: u64) {
        for (select, half) in [(1, (features >> 32) as u32), (0, features as u32)] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
    }

    fn up_to(&mut self, status: u32, features: u64) -> Effect {
        self.set(VIRTIO_MMIO_STATUS, status & 1);
        self.set(VIRTIO_MMIO_STATUS, status & 3);
        self.set_features(features);
        self.set(VIRTIO_MMIO_STATUS, status & 11);
        if status & 4 != 0 { self.set(VIRTIO_MMIO_STATUS, status) } else { Effect::None }
    }
}

#[test]
fn a_driver_finds_a_device_of_version_2() {
    let registers = registers();
    assert_eq!(registers.read(4, VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!(registers.read(4, VIRTIO_MMIO_VERSION), 2);
    assert_eq!(registers.read(4, VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(registers.read(4, VIRTIO_MMIO_VENDOR_ID).to_le_bytes(), *b"CKVM");
    for region in [VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_BASE_LOW] {
        assert_eq!(registers.read(4, region), u32::MAX, "no shared memory");
    }
}

#[test]
fn features_are_offered_in_halves() {
    let mut registers = registers();
    assert_eq!(registers.read(4, VIRTIO_MMIO_DEVICE_FEATURES), ALL as u32);
    registers.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(registers.read(4, VIRTIO_MMIO_DEVICE_FEATURES), 1, "VERSION_1");
    registers.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(registers.read(4, VIRTIO_MMIO_DEVICE_FEATURES), 0);
}

#[test]
fn the_steps_of_the_initialisation_lead_to_ready() {
    let mut registers = registers();
    assert_eq!(registers.up_to(15, ALL), Effect::Activate);
    assert_eq!(registers.status, 15);
    assert!(registers.event_idx());
    assert_eq!(registers.set(VIRTIO_MMIO_STATUS, 15), Effect::None, "ready only once");
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_ok() {
    for (features, ok) in
        [(ALL, true), (1 << 32, true), (ALL & !(1 << 32), false), (ALL | 1 << 6, false), (ALL | 1 << 63, false)]
    {
        let mut registers = registers();
        registers.up_to(11, features);
        assert_eq!(registers.has(FEATURES_OK), ok, "{features:#x}");
    }
    let mut registers = registers();
    registers.up_to(3, 0);
    registers.set_features(ALL);
    registers.write(VIRTIO_MMIO_STATUS, 11, |features| features & DEVICE_FEATURE == 0);
    assert!(!registers.has(FEATURES_OK), "the device has a say");
}

#[test]
fn features_are_settled_once_they_are_ok() {
    let mut registers = registers();
    registers.set_features(ALL);
    assert_eq!(registers.driver_features, 0, "before DRIVER");
    registers.up_to(11, ALL);
    registers.set_features(1 << 32);
    assert_eq!(registers.driver_features, ALL);
}

#[test]
fn queues_are_set_up_between_features_and_ready() {
    let mut registers = registers();
    let set_up = |registers: &mut Registers| {
        registers.set(VIRTIO_MMIO_QUEUE_SEL, 1);
        registers.set(VIRTIO_MMIO_QUEUE_NUM, 128);
        registers.set(VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
        registers.set(VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
        registers.set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000);
        registers.set(VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 2);
        registers.set(VIRTIO_MMIO_QUEUE_USED_LOW, 0x3000);
        registers.set(VIRTIO_MMIO_QUEUE_USED_HIGH, 3);
        registers.set(VIRTIO_MMIO_QUEUE_READY, 1);
    };
    let fresh = QueueRegisters::new(256);
    set_up(&mut registers);
    assert_eq!(registers.queues[1], fresh, "before FEATURES_OK");
    registers.up_to(11, ALL);
    set_up(&mut registers);
    let mut ready = QueueRegisters { size: 128, ready: true, ..fresh };
    (ready.descriptors, ready.available, ready.used) = (0x1_0000_1000, 0x2_0000_2000, 0x3_0000_3000);
    assert_eq!(registers.queues[1], ready);
    assert_eq!(registers.read(4, VIRTIO_MMIO_QUEUE_READY), 1);
    registers.set(VIRTIO_MMIO_QUEUE_NUM, 64);
    assert_eq!(registers.queues[1], ready, "a ready queue is settled");
    assert_eq!(registers.set(VIRTIO_MMIO_QUEUE_READY, 0), Effect::None);
    registers.set(VIRTIO_MMIO_QUEUE_NUM, 0x1_0000 + 64);
    assert_eq!(registers.queues[1].size, 0, "a size that is none, not its low bits");
    registers.set(VIRTIO_MMIO_QUEUE_READY, 1);
    registers.set(VIRTIO_MMIO_STATUS, 15);
    assert_eq!(registers.set(VIRTIO_MMIO_QUEUE_READY, 0), Effect::StopQueue(1));
    registers.set(VIRTIO_MMIO_QUEUE_READY, 1);
    assert!(!registers.queues[1].ready, "not after DRIVER_OK");
}

#[test]
fn a_queue_that_is_not_there_reads_as_absent_and_takes_nothing() {
    let mut registers = registers();
    registers.up_to(11, ALL);
    let before = registers.clone();
    for select in [2, 3, u32::MAX] {
        registers.set(VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(registers.read(4, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        registers.set(VIRTIO_MMIO_QUEUE_NUM, 8);
        registers.set(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(registers.read(4, VIRTIO_MMIO_QUEUE_READY), 0);
        assert_eq!(registers.queues, before.queues);
    }
}

#[test]
fn a_failed_driver_says_so_and_is_reset() {
    let mut registers = registers();
    registers.up_to(3, ALL);
    registers.set(VIRTIO_MMIO_STATUS, 3 | FAILED);
    assert_eq!(registers.status, 3 | FAILED);
    assert_eq!(registers.set(VIRTIO_MMIO_STATUS, 0), Effect::Reset);
    registers.reset();
    assert_eq!(registers, self::registers());
}

proptest! {
    /// Whatever is written in whatever order, the rules at the head of the file hold.
    #[test]
    fn the_rules_hold_for_any_writes(
        writes in prop::collection::vec((prop_oneof![Just(0x70_u32), Just(0x20), Just(0x24), Just(0x44), 0_u32..0x100],
            prop_oneof![0_u32..16, Just(1), Just(ALL as u32), Just(128), any::<u32>()]), 0..200),
        refuse in any::<bool>(),
    ) {
        let mut registers = registers();
        for (offset, value) in writes {
            let before = registers.clone();
            let effect = registers.write(offset, value, |_| !refuse);
            let status = registers.status;
            prop_assert!(Registers::is_status(status));
            prop_assert_eq!(status & before.status, before.status, "a bit was lost without a reset");
            prop_assert_eq!(effect == Effect::Activate, status & !before.status & DRIVER_OK != 0);
            if registers.has(FEATURES_OK) {
                prop_assert!(!refuse && registers.may_accept(registers.driver_features));
            } else {
                prop_assert!(registers.queues.iter().all(|queue| *queue == QueueRegisters::new(queue.max_size)));
            }
            if before.has(FEATURES_OK) {
                prop_assert_eq!(registers.driver_features, before.driver_features);
            }
            if before.driver_ok() {
                let set_up = registers.queues.iter().zip(&before.queues);
                prop_assert!(set_up.clone().all(|(now, before)| now.ready <= before.ready));
                prop_assert!(set_up.clone().all(|(now, before)| now.layout(true) == before.layout(true)));
            }
            match effect {
                Effect::Reset => {
                    prop_assert_eq!((offset, value), (VIRTIO_MMIO_STATUS, 0));
                    registers.reset();
                    prop_assert_eq!(&registers, &Registers::new(DEVICE_FEATURE, &[64, 256]));
                }
                Effect::StopQueue(index) => prop_assert!(before.driver_ok() && before.queues[index].ready),
                Effect::None | Effect::Activate => {}
            }
            registers.read(4, offset);
        }
    }
}
