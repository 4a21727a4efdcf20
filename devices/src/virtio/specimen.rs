//! Virtio devices as subjects of the laws (see `laws.rs`), and the laws that only they have. [`virtio_laws!`] makes
//! them tests of a device.

use std::any::Any;
use std::marker::PhantomData;

use virtio_bindings::virtio_mmio::*;

use super::VirtioDevice;
use super::state::{DeviceState, VirtioMmioState};
use super::testing::{Memory, Rig};
use crate::Result;
use crate::laws::{Subject, recode};

/// A kind of device, with a piece of work that any of it can do at any time.
pub(crate) trait Specimen {
    /// The queue that its work goes through.
    const QUEUE: usize;

    /// A device, always of the same shape, and what it needs to be kept.
    fn make() -> (Box<dyn VirtioDevice>, Box<dyn Any>);
    /// Makes one piece of work available, without a notification.
    fn offer(rig: &mut Rig);
    /// Waits until one piece of work is done, and checks it.
    fn check(rig: &mut Rig);
    /// Turns a good state into ones of other shapes, each with words of the error that they must give.
    fn misfits(state: &DeviceState) -> Vec<(DeviceState, &'static str)>;

    fn work(rig: &mut Rig) {
        Self::offer(rig);
        rig.kick(Self::QUEUE);
        Self::check(rig);
    }
}

/// A specimen in a machine.
pub(crate) struct InMachine<S> {
    pub(crate) rig: Rig,
    _kept: Box<dyn Any>,
    _kind: PhantomData<S>,
}

impl<S: Specimen> Subject for InMachine<S> {
    type State = (VirtioMmioState, Memory);
    const MUTATIONS: usize = 8;

    fn new() -> Self {
        let (device, kept) = S::make();
        Self { rig: Rig::new(device), _kept: kept, _kind: PhantomData }
    }

    fn save(&self) -> Result<Self::State> {
        self.rig.mmio.drain()?;
        let state = self.rig.mmio.save();
        self.rig.mmio.undrain();
        Ok((state?, self.rig.memory()))
    }

    fn restore(&mut self, (state, memory): Self::State) -> Result<()> {
        self.rig.set_memory(memory);
        self.rig.mmio.restore(state)
    }

    fn mutate(&mut self, what: usize) {
        let rig = &mut self.rig;
        match what {
            0 => rig.negotiate(rig.offered()),
            1 => rig.set_up_queues_and_go(),
            2 | 3 => S::work(rig),
            4 => rig.mmio.interrupt.config_changed(),
            5 => rig.write(VIRTIO_MMIO_INTERRUPT_ACK, rig.read(VIRTIO_MMIO_INTERRUPT_STATUS)),
            6 => {
                rig.corrupt_available_index(S::QUEUE, 0x7000);
                rig.kick(S::QUEUE);
                assert!(rig.mmio.interrupt.needs_reset());
            }
            _ => rig.reset(),
        }
    }

    fn recode((state, memory): Self::State) -> Self::State {
        (recode(&state), memory)
    }

    fn misfits((state, memory): &Self::State) -> Vec<(Self::State, &'static str)> {
        let mut misfits = Vec::new();
        let mut add = |words, change: &dyn Fn(&mut VirtioMmioState)| {
            let mut state = state.clone();
            change(&mut state);
            misfits.push(((state, memory.clone()), words));
        };
        add("device type", &|state| state.kind = 26);
        add("number of queues", &|state| state.queues.truncate(0));
        add("number of queues", &|state| state.queues.push(state.queues[0].clone()));
        add("feature set", &|state| (state.status, state.driver_features) = (11, 1 << 63));
        add("feature set", &|state| (state.status, state.driver_features) = (11, 0));
        add("corrupt: status 0x4", &|state| state.status = 4);
        add("corrupt: status 0x17", &|state| state.status = 0x17);
        add("corrupt: interrupt status", &|state| state.interrupt_status = 4);
        add("chains in flight", &|state| state.queues[0].next_used ^= 1);
        if state.status & 4 != 0 && !state.needs_reset {
            add("not in RAM", &|state| state.queues[0].used = 0xffff_ffff_ffff_fffc);
            add("not in RAM", &|state| state.queues[0].descriptors = 0x1f_fff0);
            add("not in RAM", &|state| state.queues[0].available = 0);
            add("corrupt", &|state| state.queues[0].descriptors += 1);
            add("corrupt", &|state| state.queues[0].size = 3);
            add("corrupt", &|state| state.queues[0].size = 0x8000);
        }
        for (device, words) in S::misfits(&state.device) {
            add(words, &|state| state.device = device.clone());
        }
        misfits
    }

    fn works_from_the_start(&mut self) {
        assert_eq!(self.rig.status(), 0, "not in reset after a failed restore");
        self.rig.start_with_all();
        S::work(&mut self.rig);
    }
}

/// Reset undoes everything that the driver has done, and the device touches guest RAM no more.
pub(crate) fn reset_is_the_inverse_of_ready<S: Specimen>() {
    let mut subject = InMachine::<S>::new();
    let (fresh, _) = subject.save().unwrap();
    for _ in 0..2 {
        subject.rig.start_with_all();
        S::work(&mut subject.rig);
        S::offer(&mut subject.rig);
        subject.rig.reset();
        let (after, memory) = subject.save().unwrap();
        assert_eq!(after, fresh);
        subject.rig.kick(S::QUEUE);
        subject.rig.wake();
        assert_eq!(subject.rig.memory(), memory, "RAM was written after the reset");
    }
}

/// What is held back at a checkpoint is done afterwards, here and in a machine that is restored from it.
pub(crate) fn work_that_is_held_back_is_done_here_and_there<S: Specimen>() {
    let mut here = InMachine::<S>::new();
    here.rig.start_with_all();
    // Enough that positions wrap around the ring and are not those of a new device.
    for _ in 0..300 {
        S::work(&mut here.rig);
    }
    here.rig.mmio.drain().unwrap();
    S::offer(&mut here.rig);
    here.rig.kick(S::QUEUE);
    let (state, memory) = (here.rig.mmio.save().unwrap(), here.rig.memory());
    assert!(here.rig.used(S::QUEUE).is_empty(), "a drained device has worked");

    let mut there = InMachine::<S>::new();
    there.restore((state, memory)).unwrap();
    there.rig.mmio.kick();
    here.rig.mmio.undrain();
    for machine in [&mut here, &mut there] {
        machine.rig.run();
        S::check(&mut machine.rig);
        S::work(&mut machine.rig);
    }
}

/// A device at work is not saved unless it is drained.
pub(crate) fn a_device_at_work_is_not_saved<S: Specimen>() {
    let mut subject = InMachine::<S>::new();
    subject.rig.mmio.save().unwrap();
    subject.rig.start_with_all();
    let error = subject.rig.mmio.save().unwrap_err().to_string();
    assert!(error.contains("not drained"), "{error}");
}

/// Makes the laws tests of a [`Specimen`].
macro_rules! virtio_laws {
    ($specimen:ty) => {
        $crate::laws::device_laws!($crate::virtio::specimen::InMachine<$specimen>);

        mod virtio_laws {
            use super::*;

            #[test]
            fn reset_is_the_inverse_of_ready() {
                $crate::virtio::specimen::reset_is_the_inverse_of_ready::<$specimen>();
            }

            #[test]
            fn work_that_is_held_back_is_done_here_and_there() {
                $crate::virtio::specimen::work_that_is_held_back_is_done_here_and_there::<$specimen>();
            }

            #[test]
            fn a_device_at_work_is_not_saved() {
                $crate::virtio::specimen::a_device_at_work_is_not_saved::<$specimen>();
            }
        }
    };
}
pub(crate) use virtio_laws;
