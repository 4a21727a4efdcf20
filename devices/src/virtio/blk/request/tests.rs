//! Whatever a guest writes into a request, what is understood of it stays within the disk.

use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::Bytes;

use super::*;
use crate::virtio::blk::space::SEGMENT_BYTES_MAX;
use crate::virtio::testing::{DATA, REGION_BYTES, new_ram};

const HEADER: u64 = DATA;
const BUFFER: u64 = DATA + 0x1000;
const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// What each request may be told to do to a disk of `sectors`.
fn check(action: &Action, geometry: Geometry) {
    let end = geometry.sectors * SECTOR_BYTES;
    let within = |offset: u64, bytes: u64| {
        assert!(offset.is_multiple_of(SECTOR_BYTES) && bytes.is_multiple_of(SECTOR_BYTES));
        assert!(offset.checked_add(bytes).is_some_and(|last| last <= end), "{offset} + {bytes}");
    };
    match action {
        Action::Read { offset, data } => within(*offset, data.bytes()),
        Action::Write { offset, data } => {
            assert!(!geometry.read_only);
            within(*offset, data.bytes());
        }
        Action::Discard(ranges) => {
            assert!(!geometry.read_only && ranges.len() <= RANGES_MAX as usize);
            ranges.iter().for_each(|range| {
                within(range.offset, range.bytes);
                assert!(range.bytes <= u64::from(DISCARD_SECTORS_MAX) * SECTOR_BYTES);
            });
        }
        Action::WriteZeroes(ranges) => {
            assert!(!geometry.read_only && ranges.len() <= RANGES_MAX as usize);
            ranges.iter().for_each(|(range, _)| {
                within(range.offset, range.bytes);
                assert!(range.bytes <= u64::from(ZEROES_SECTORS_MAX) * SECTOR_BYTES);
            });
        }
        Action::Flush | Action::Id(_) => {}
    }
}

fn any_sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..20,
        1 => (0_u64..20).prop_map(|n| u64::MAX - n),
        1 => (50_u32..64).prop_map(|n| 1 << n),
        1 => any::<u64>(),
    ]
}

fn any_count() -> impl Strategy<Value = u32> {
    prop_oneof![0_u32..20, any::<u32>()]
}

fn any_flags() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0), 1 => any::<u32>()]
}

proptest! {
    /// Whatever the guest writes into a request, what comes out of it stays within the disk and its limits.
    #[test]
    fn an_action_stays_within_the_disk(
        kind in prop_oneof![8 => prop::sample::select(vec![0_u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()],
        sector in any_sector(),
        sectors in prop_oneof![4 => 0_u64..20, 1 => 1_u64 << 21..1 << 23, 1 => any::<u64>()],
        ranges in prop::collection::vec((any_sector(), any_count(), any_flags()), 0..18),
        out in prop_oneof![
            4 => (0_u32..20).prop_map(|n| n * 512),
            2 => (0_u32..18).prop_map(|n| n * 16),
            1 => 0..0x8_0000_u32
        ],
        input in prop_oneof![4 => (0_u32..20).prop_map(|n| n * 512 + 1), 1 => 0..SEGMENT_BYTES_MAX / 4],
        read_only in any::<bool>(), features in any::<u64>(),
    ) {
        let ram = new_ram();
        let geometry = Geometry { sectors: sectors % (u64::MAX / SECTOR_BYTES), read_only };
        ram.write_obj(u128::from(kind) | u128::from(sector) << 64, GuestAddress(HEADER)).unwrap();
        for (n, &(sector, sectors, flags)) in (0..).zip(&ranges) {
            let range = u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96;
            ram.write_obj(range, GuestAddress(BUFFER + 16 * n)).unwrap();
        }
        let mock = MockSplitQueue::new(&ram, 8);
        let descriptor =
            |address, bytes, flags, next| RawDescriptor::from(Descriptor::new(address, bytes, flags, next));
        let table = [
            descriptor(HEADER, 16, NEXT, 1),
            descriptor(BUFFER, out, NEXT, 2),
            descriptor(REGION_BYTES as u64, input, WRITE, 0),
        ];
        mock.add_desc_chains(&table, 0).unwrap();
        let mut queue: Queue = mock.create_queue().unwrap();
        let chain = Chain::read(&ram, queue.iter(&ram).unwrap().next().unwrap(), 8).unwrap();
        let request = Request::parse(&ram, chain, geometry, features);
        prop_assert_eq!(request.is_ok(), input > 0, "only the status byte must have room");
        if let Ok(request) = request {
            prop_assert_eq!(request.room, u64::from(input) - 1);
            prop_assert_eq!(request.status_at.0, REGION_BYTES as u64 + request.room);
            if let Ok(action) = &request.action {
                check(action, geometry);
            }
        }
    }
}
