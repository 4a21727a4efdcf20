//! The transport with the simplest of devices behind it.

use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;

use super::*;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{DATA, Piece, READY_STEPS, Rig, copy_ram};

fn rig() -> Rig {
    Rig::new(Box::new(Rng::new()))
}

fn started() -> Rig {
    let mut rig = rig();
    rig.start_with_all();
    rig
}

#[test]
fn registers_are_whole_aligned_words() {
    let rig = rig();
    for (offset, bytes) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 4), (3, 1)] {
        let mut data = vec![0xaa; bytes];
        rig.mmio.read(offset, &mut data);
        assert!(data.iter().all(|&byte| byte == 0), "{offset:#x}, {bytes} bytes");
    }
    rig.mmio.write(0x70, &[1]);
    rig.mmio.write(0x70, &[1, 0]);
    rig.mmio.write(0x70, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.status(), 0);
    rig.mmio.write(0x70, &[1, 0, 0, 0]);
    assert_eq!(rig.status(), 1);
}

#[test]
fn a_notification_by_register_write_is_one_by_eventfd() {
    let rig = started();
    rig.run();
    rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(rig.mmio.queue_events()[0].read().unwrap(), 1);
    rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, 1); // there is no such queue
    assert!(rig.mmio.queue_events()[0].read().is_err());
}

#[test]
fn a_notification_that_came_before_ready_is_made_up_for() {
    let mut rig = rig();
    rig.negotiate(rig.offered());
    rig.set_up_queue(0, 8);
    rig.offer(0, &[Piece::In(DATA, 8)]);
    rig.kick(0);
    assert!(rig.used(0).is_empty());
    rig.write(VIRTIO_MMIO_STATUS, READY_STEPS[3]);
    rig.run();
    assert_eq!(rig.used(0).len(), 1);
}

#[test]
fn used_buffers_raise_the_line_until_they_are_acknowledged() {
    let mut rig = started();
    rig.want_interrupt(0, true);
    rig.offer(0, &[Piece::In(DATA, 8)]);
    rig.kick(0);
    assert_eq!((rig.edges.take(), rig.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 1));
    rig.mmio.kick();
    assert_eq!(rig.edges.take(), 1, "raised again: it is not acknowledged");
    rig.write(VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(rig.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    rig.mmio.kick();
    assert_eq!(rig.edges.take(), 0);
    rig.used(0);
    rig.want_interrupt(0, false);
    rig.offer(0, &[Piece::In(DATA, 8)]);
    rig.kick(0);
    assert_eq!((rig.used(0).len(), rig.edges.take()), (1, 0), "the driver did not want to hear of it");
}

#[test]
fn a_broken_queue_asks_for_a_reset_and_works_after_it() {
    let mut rig = started();
    rig.corrupt_available_index(0, 1000);
    rig.kick(0);
    assert_eq!(rig.status(), READY_STEPS[3] | VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!((rig.edges.take(), rig.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 2), "a configuration change");
    rig.corrupt_available_index(0, 0);
    rig.offer(0, &[Piece::In(DATA, 8)]);
    rig.kick(0);
    assert!(rig.used(0).is_empty(), "nothing more before the reset");
    rig.reset();
    assert_eq!((rig.status(), rig.read(VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    rig.start_with_all();
    rig.offer(0, &[Piece::In(DATA, 8)]);
    rig.kick(0);
    assert_eq!(rig.used(0).len(), 1);
}

#[test]
fn a_queue_that_cannot_be_asks_for_a_reset_at_ready() {
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_NUM, 3),
        (VIRTIO_MMIO_QUEUE_NUM, 0x1_0008),
        (VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 1),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX),
    ] {
        let mut rig = rig();
        rig.negotiate(rig.offered());
        rig.set_up_queue(0, 8);
        rig.write(VIRTIO_MMIO_QUEUE_READY, 0);
        rig.write(register, value);
        rig.write(VIRTIO_MMIO_QUEUE_READY, 1);
        rig.write(VIRTIO_MMIO_STATUS, READY_STEPS[3]);
        assert_eq!(rig.status(), READY_STEPS[3] | VIRTIO_CONFIG_S_NEEDS_RESET, "{register:#x} = {value:#x}");
        rig.kick(0);
    }
}

#[test]
fn a_device_without_its_queue_does_nothing() {
    let rig = rig();
    rig.negotiate(rig.offered());
    rig.write(VIRTIO_MMIO_STATUS, READY_STEPS[3]);
    rig.kick(0);
    assert_eq!(rig.status(), READY_STEPS[3]);
    rig.mmio.drain().unwrap();
    let state = rig.mmio.save().unwrap();
    rig.mmio.restore(state.clone()).unwrap();
    assert_eq!(rig.mmio.save().unwrap(), state, "a drain stays in force");
    rig.mmio.undrain();
    rig.mmio.save().unwrap_err();
}

#[test]
fn a_queue_that_is_disabled_is_left_alone() {
    let mut rig = started();
    rig.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    rig.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 0);
    rig.offer(0, &[Piece::In(DATA, 8)]);
    rig.kick(0);
    assert!(rig.used(0).is_empty());
    assert_eq!(rig.status(), READY_STEPS[3]);
}

#[test]
fn a_full_event_goes_on_after_others_had_their_turn() {
    let mut rig = started();
    for _ in 0..64 {
        rig.offer(0, &[Piece::In(DATA, 1)]);
    }
    rig.mmio.process(DeviceEvent::Queue(0));
    assert_eq!(rig.used(0).len(), 64);
    rig.mmio.queue_events()[0].read().expect("it asked to be called again");
}

#[test]
fn the_subscriber_serves_an_event_loop() {
    let mut rig = started();
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(rig.mmio.subscriber());
    for _ in 0..3 {
        rig.offer(0, &[Piece::In(DATA, 8)]);
        rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        while rig.used(0).is_empty() {
            manager.run_with_timeout(1000).unwrap();
        }
    }
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "nothing is left to be told");
}

#[test]
fn a_device_with_impossible_queues_is_refused() {
    struct Odd;
    impl VirtioDevice for Odd {
        fn kind(&self) -> u32 {
            42
        }
        fn name(&self) -> String {
            "odd".into()
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &'static [u16] {
            &[8, 100]
        }
        fn read_config(&self, _: u64, _: &mut [u8]) {}
        fn activate(&mut self, _: Active) -> Result<()> {
            Ok(())
        }
        fn deactivate(&mut self) {}
        fn process(&mut self, _: DeviceEvent) -> Result<Progress, QueueError> {
            Ok(Progress::Idle)
        }
        fn save(&self) -> Result<crate::DeviceState> {
            Rng::new().save()
        }
        fn restore(&mut self, _: crate::DeviceState) -> Result<()> {
            Ok(())
        }
    }
    let line = Arc::new(crate::virtio::testing::Edges::default());
    let error = VirtioMmio::new(crate::virtio::testing::new_ram(), Box::new(Odd), line).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("[8, 100]"), "{error}");
}

#[test]
fn vcpus_and_the_io_thread_meet_without_harm() {
    let rig = started();
    let mmio = rig.mmio.clone();
    let device = std::thread::spawn(move || {
        for _ in 0..2000 {
            mmio.process_notified(0);
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..300 {
                    rig.negotiate(1 << 32);
                    rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
                    rig.write(VIRTIO_MMIO_INTERRUPT_ACK, rig.read(VIRTIO_MMIO_INTERRUPT_STATUS));
                    rig.reset();
                }
            });
        }
    });
    device.join().unwrap();
    assert_eq!(rig.status(), 0);
}

/// What a vCPU or the I/O thread may do.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Run,
}

fn any_step() -> impl Strategy<Value = Step> {
    let offset = prop_oneof![
        4 => prop::sample::select(vec![
            0x14_u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xa0
        ]),
        1 => 0_u64..0x1000,
        1 => any::<u64>(),
    ];
    let word = prop_oneof![
        4 => prop::sample::select(vec![0_u32, 1, 3, 8, 11, 15, 64, 0x3000_0001, 0x1_0000, 0x1_4000, 0x1_8000]),
        1 => any::<u32>(),
    ];
    let data = prop_oneof![
        4 => word.prop_map(|word| word.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..=8),
    ];
    prop_oneof![
        1 => (offset.clone(), 0_usize..=8).prop_map(|(offset, bytes)| Step::Read(offset, bytes)),
        6 => (offset, data).prop_map(|(offset, data)| Step::Write(offset, data)),
        1 => Just(Step::Run),
    ]
}

proptest! {
    /// The device survives any accesses, keeps the status rules, writes no RAM before it is ready, and is as new after
    /// a reset; and at any time its state can be saved and restored.
    #[test]
    fn any_accesses_of_any_width_are_survived(steps in prop::collection::vec(any_step(), 0..120)) {
        let mut rig = rig();
        let ram = copy_ram(&rig.ram);
        let mut was_ready = false;
        for step in steps {
            let before = rig.status();
            match &step {
                Step::Read(offset, bytes) => rig.mmio.read(*offset, &mut vec![0; *bytes]),
                Step::Write(offset, data) => rig.mmio.write(*offset, data),
                Step::Run => rig.run(),
            }
            let status = rig.status();
            let reset = matches!(&step, Step::Write(0x70, data) if *data == [0; 4]);
            prop_assert!(Registers::is_status(status & !VIRTIO_CONFIG_S_NEEDS_RESET), "{status:#x}");
            prop_assert_eq!(status, if reset { 0 } else { status | before });
            was_ready |= status & 4 != 0;
        }
        prop_assert!(was_ready || copy_ram(&rig.ram) == ram, "RAM was written before the device was ready");
        rig.mmio.drain().unwrap();
        let state = rig.mmio.save().unwrap();
        rig.mmio.restore(state.clone()).unwrap();
        rig.mmio.drain().unwrap();
        prop_assert_eq!(rig.mmio.save().unwrap(), state);
        rig.mmio.undrain();
        rig.reset();
        rig.start_with_all();
        rig.offer(0, &[Piece::In(DATA, 8)]);
        rig.kick(0);
        prop_assert_eq!(rig.used(0).len(), 1);
    }
}
