//! Rings: order, notifications both ways, wrap-around, and rings that cannot be.

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;

use super::*;
use crate::virtio::testing::{Edges, new_ram};

const SIZE: u16 = 8;
/// Apart from the mock's, which overlaps its available ring.
const USED: u64 = 0x4000;

struct Bench {
    ram: GuestRam,
    edges: Arc<Edges>,
    queue: VirtQueue,
}

/// A queue at `at` over rings that hold `chains` chains of one descriptor each.
fn bench(event_idx: bool, chains: u16, at: Positions) -> Bench {
    let (ram, edges) = (new_ram(), Arc::new(Edges::default()));
    let mock = MockSplitQueue::new(&ram, SIZE);
    let descriptor = |n: u16| RawDescriptor::from(Descriptor::new(0x9000 + u64::from(n), 1, 0, 0));
    let descriptors: Vec<_> = (0..chains).map(descriptor).collect();
    mock.add_desc_chains(&descriptors, 0).unwrap();
    ram.write_slice(&[0; 6 + 8 * SIZE as usize], GuestAddress(USED)).unwrap();
    let layout = layout(&mock, event_idx);
    drop(mock);
    let queue = VirtQueue::new(ram.clone(), Arc::new(Interrupt::new(edges.clone())), layout, at).unwrap();
    Bench { ram, edges, queue }
}

fn layout(mock: &MockSplitQueue<'_, GuestRam>, event_idx: bool) -> Layout {
    Layout {
        max_size: SIZE,
        size: SIZE,
        descriptors: mock.desc_table_addr().0,
        available: mock.avail_addr().0,
        used: USED,
        event_idx,
    }
}

impl Bench {
    fn at(&self, from: impl Fn(&Queue) -> u64, offset: u64) -> GuestAddress {
        GuestAddress(from(&lock(&self.queue.ring).queue) + offset)
    }

    fn used_index(&self) -> u16 {
        self.ram.read_obj(self.at(Queue::used_ring, 2)).unwrap()
    }

    fn set_available_index(&self, index: u16) {
        self.ram.write_obj(index, self.at(Queue::avail_ring, 2)).unwrap();
    }

    fn set_used_event(&self, event: u16) {
        self.ram.write_obj(event, self.at(Queue::avail_ring, 4 + 2 * u64::from(SIZE))).unwrap();
    }

    fn available_event(&self) -> u16 {
        self.ram.read_obj(self.at(Queue::used_ring, 4 + 8 * u64::from(SIZE))).unwrap()
    }

    fn pop(&self) -> Option<Chain> {
        self.queue.pop().unwrap()
    }
}

#[test]
fn chains_come_in_order_and_then_a_notification_is_asked_for() {
    let bench = bench(true, 3, Positions::default());
    for head in 0..3 {
        assert_eq!(bench.pop().unwrap().head, head);
    }
    assert!(bench.queue.has_available().is_ok_and(|available| !available));
    assert!(bench.pop().is_none());
    assert_eq!(bench.available_event(), 3, "notify me of the fourth");
    assert_eq!(bench.queue.positions(), Positions { next_avail: 3, next_used: 0 });
}

#[test]
fn buffers_used_together_are_one_step_of_the_index() {
    let bench = bench(true, 3, Positions::default());
    let used: Vec<(u16, u32)> = (0..3).map(|n| (bench.pop().unwrap().head, 100 + n)).collect();
    assert_eq!(bench.used_index(), 0);
    bench.queue.complete(&used).unwrap();
    assert_eq!(bench.used_index(), 3);
    for n in 0..3 {
        let at = bench.at(Queue::used_ring, 4 + 8 * n);
        assert_eq!(bench.ram.read_obj::<[u32; 2]>(at).unwrap(), [n as u32, 100 + n as u32]);
    }
    let done = bench.queue.positions();
    assert_eq!(done, Positions { next_avail: 3, next_used: 3 });
}

#[test]
fn an_interrupt_comes_when_the_index_passes_the_drivers_event() {
    // (used_event, buffers used before, buffers used now, interrupt)
    for (event, before, now, wanted) in
        [(0, 0, 1, true), (1, 0, 1, false), (1, 0, 2, true), (0, 1, 1, false), (0, 0, 3, true), (2, 1, 2, true)]
    {
        let bench = bench(true, 8, Positions::default());
        bench.set_used_event(0x8000);
        let complete = |count: u16| {
            let used: Vec<(u16, u32)> = (0..count).map(|_| (bench.pop().unwrap().head, 0)).collect();
            bench.queue.complete(&used).unwrap();
        };
        complete(before);
        assert_eq!(bench.edges.take(), 0);
        bench.set_used_event(event);
        complete(now);
        assert_eq!(bench.edges.take(), usize::from(wanted), "event {event}, {before} then {now}");
    }
}

#[test]
fn the_event_is_passed_across_the_wrap_of_the_index() {
    let bench = bench(true, SIZE, Positions { next_avail: 0xffff, next_used: 0xffff });
    bench.set_available_index(1);
    let heads: Vec<(u16, u32)> = (0..2).map(|_| (bench.pop().unwrap().head, 0)).collect();
    bench.set_used_event(0);
    bench.queue.complete(&heads[..1]).unwrap();
    assert_eq!((bench.used_index(), bench.edges.take()), (0, 0));
    bench.queue.complete(&heads[1..]).unwrap();
    assert_eq!((bench.used_index(), bench.edges.take()), (1, 1));
}

#[test]
fn without_event_indices_the_drivers_flag_decides() {
    let bench = bench(false, 2, Positions::default());
    bench.ram.write_obj(1_u16, bench.at(Queue::avail_ring, 0)).unwrap();
    bench.queue.complete(&[(bench.pop().unwrap().head, 0)]).unwrap();
    assert_eq!(bench.edges.take(), 0);
    bench.ram.write_obj(0_u16, bench.at(Queue::avail_ring, 0)).unwrap();
    bench.queue.complete(&[(bench.pop().unwrap().head, 0)]).unwrap();
    assert_eq!(bench.edges.take(), 1);
}

#[test]
fn chains_given_back_come_again() {
    let bench = bench(true, 3, Positions::default());
    let first = bench.pop().unwrap();
    bench.pop().unwrap();
    bench.queue.give_back(2);
    assert_eq!(bench.pop().unwrap(), first);
    bench.queue.give_back(9);
    assert_eq!(bench.queue.positions(), Positions::default(), "no more than were taken");
}

#[test]
fn a_broken_chain_was_never_taken() {
    let bench = bench(true, 1, Positions::default());
    let cut = RawDescriptor::from(Descriptor::new(0x9000, 1, 1, 0));
    bench.ram.write_obj(cut, bench.at(Queue::desc_table, 0)).unwrap();
    assert!(matches!(bench.queue.pop(), Err(QueueError::Cut { head: 0 })));
    assert_eq!(bench.queue.positions(), Positions::default());
}

#[test]
fn an_available_index_that_runs_ahead_is_an_error() {
    let bench = bench(true, 1, Positions::default());
    bench.set_available_index(SIZE + 1);
    assert!(matches!(bench.queue.pop(), Err(QueueError::Ring(virtio_queue::Error::InvalidAvailRingIndex))));
}

#[test]
fn no_more_chains_are_in_flight_than_there_are_descriptors() {
    let bench = bench(true, SIZE, Positions::default());
    for _ in 0..SIZE {
        bench.pop().unwrap();
    }
    bench.set_available_index(SIZE + 1);
    assert!(matches!(bench.queue.pop(), Err(QueueError::TooMany { size: SIZE })));
    bench.queue.complete(&[(0, 0)]).unwrap();
    bench.pop().unwrap();
}

#[test]
fn a_stopped_queue_is_not_touched() {
    let bench = bench(true, 2, Positions::default());
    let chain = bench.pop().unwrap();
    bench.queue.stop();
    assert!(bench.pop().is_none());
    assert!(!bench.queue.has_available().unwrap());
    bench.queue.complete(&[(chain.head, 1)]).unwrap();
    assert_eq!((bench.used_index(), bench.edges.take()), (0, 0));
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let (ram, edges) = (new_ram(), Arc::new(Edges::default()));
    let good =
        Layout { max_size: SIZE, size: SIZE, descriptors: 0x1000, available: 0x2000, used: 0x3000, event_idx: true };
    let make = |layout| {
        VirtQueue::new(ram.clone(), Arc::new(Interrupt::new(edges.clone())), layout, Positions::default()).map(|_| ())
    };
    make(good).unwrap();
    let far = 0x1f_fff0;
    for bad in [
        Layout { size: 0, ..good },
        Layout { size: 3, ..good },
        Layout { size: 2 * SIZE, ..good },
        Layout { descriptors: 0x1008, ..good },
        Layout { available: 0x2001, ..good },
        Layout { used: 0x3002, ..good },
        Layout { available: 0, ..good },
        Layout { descriptors: far, ..good },
        Layout { available: far, ..good },
        Layout { used: far, ..good },
        Layout { used: u64::MAX - 3, ..good },
        Layout { descriptors: u64::MAX - 15, ..good },
        Layout { available: u64::MAX - 1, ..good },
    ] {
        assert!(make(bad).is_err(), "{bad:?}");
    }
}
