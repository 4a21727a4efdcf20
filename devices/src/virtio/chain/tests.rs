//! Descriptor chains, whole and broken.

use proptest::prelude::*;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};

use super::*;
use crate::virtio::testing::{DATA, FILL, REGION_BYTES, new_ram};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const SIZE: u16 = 16;
const END_OF_RAM: u64 = 2 * REGION_BYTES as u64;

type Raw = (u64, u32, u16, u16);

/// Reads the chain that begins at descriptor `head` of a table.
fn read_at(head: u16, table: &[Raw], indirect: &[Raw]) -> Result<Chain, QueueError> {
    let ram = new_ram();
    let mock = MockSplitQueue::new(&ram, SIZE);
    let put = |index: usize, at: u64, &(address, bytes, flags, next): &Raw| {
        let descriptor = RawDescriptor::from(Descriptor::new(address, bytes, flags, next));
        ram.write_obj(descriptor, GuestAddress(at + 16 * index as u64)).unwrap();
    };
    table.iter().enumerate().for_each(|(index, raw)| put(index, 0, raw));
    indirect.iter().enumerate().for_each(|(index, raw)| put(index, DATA, raw));
    mock.avail().ring().ref_at(0).unwrap().store(head);
    mock.avail().idx().store(1);
    let mut queue: Queue = mock.create_queue().unwrap();
    let chain = queue.iter(&ram).unwrap().next().unwrap();
    Chain::read(&ram, chain, SIZE)
}

fn read(table: &[Raw]) -> Result<Chain, QueueError> {
    read_at(0, table, &[])
}

fn segments(pieces: &[(u64, usize)]) -> Segments {
    Segments(pieces.iter().map(|&(address, bytes)| Segment { address: GuestAddress(address), bytes }).collect())
}

#[test]
fn a_chain_is_its_segments_in_order() {
    let chain = read(&[(0x9000, 16, NEXT, 3), (0, 0, 0, 0), (0xb000, 1, WRITE, 0), (0xa000, 512, NEXT | WRITE, 2)]);
    let chain = chain.unwrap();
    assert_eq!((chain.head, chain.readable), (0, segments(&[(0x9000, 16)])));
    assert_eq!(chain.writable, segments(&[(0xa000, 512), (0xb000, 1)]));
}

#[test]
fn an_indirect_table_is_the_chain() {
    let table = [(DATA, 48, INDIRECT, 0)];
    let indirect = [(0x9000, 16, NEXT, 2), (0, 0, 0, 0), (0xa000, 8, WRITE, 0)];
    let chain = read_at(0, &table, &indirect).unwrap();
    assert_eq!((chain.readable, chain.writable), (segments(&[(0x9000, 16)]), segments(&[(0xa000, 8)])));
}

#[test]
fn a_chain_that_makes_no_sense_is_an_error() {
    let ok = (0x9000, 16, NEXT, 1);
    let cut = |table: &[Raw], indirect: &[Raw]| matches!(read_at(0, table, indirect), Err(QueueError::Cut { .. }));
    assert!(cut(&[(0x9000, 16, NEXT, 0)], &[]), "a loop");
    assert!(cut(&[ok, (0x9000, 16, NEXT, 0)], &[]), "a longer loop");
    assert!(cut(&[(0x9000, 16, NEXT, SIZE)], &[]), "beyond the table");
    assert!(cut(&[(DATA, 15, INDIRECT, 0)], &[ok]), "not whole descriptors");
    assert!(cut(&[(DATA, 0, INDIRECT, 0)], &[ok]), "an empty table");
    assert!(cut(&[(END_OF_RAM, 16, INDIRECT, 0)], &[ok]), "a table outside RAM");
    assert!(cut(&[(END_OF_RAM - 16, 32, INDIRECT, 0)], &[ok]), "a table half outside RAM");
    assert!(cut(&[(DATA, 16, INDIRECT, 0)], &[(DATA, 16, INDIRECT, 0)]), "indirect in indirect");
    assert!(cut(&[(DATA, 32, INDIRECT, 0)], &[ok, (0x9000, 16, NEXT, 2)]), "beyond the indirect table");
    assert!(cut(&[(0, u32::MAX, NEXT, 0)], &[]) || read(&[(0, u32::MAX, NEXT, 0)]).is_err(), "more than 4 GiB");
    assert!(matches!(read_at(SIZE, &[ok], &[]), Err(QueueError::Head { head: SIZE, .. })));
    let order = read(&[(0x9000, 16, NEXT | WRITE, 1), (0xa000, 16, 0, 0)]);
    assert!(matches!(order, Err(QueueError::Order { .. })));
}

#[test]
fn a_chain_is_not_longer_than_the_queue_even_behind_an_indirect_table() {
    let table = |count: u16| -> Vec<Raw> {
        (1..=count).map(|next| (0x9000, 1, if next < count { NEXT } else { 0 }, next)).collect()
    };
    let head = [(DATA, 16 * 17, INDIRECT, 0)];
    assert_eq!(read_at(0, &head, &table(16)).unwrap().readable.bytes(), 16);
    assert!(matches!(read_at(0, &head, &table(17)), Err(QueueError::TooLong { .. })));
}

#[test]
fn a_segment_outside_ram_is_an_error() {
    for (address, bytes) in [
        (END_OF_RAM, 1),
        (END_OF_RAM - 1, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - 15, 16),
        (1 << 63, 4096),
    ] {
        let error = read(&[(address, bytes, 0, 0)]).unwrap_err();
        assert!(matches!(error, QueueError::OutsideRam { .. }), "{address:#x}+{bytes:#x}: {error}");
    }
    let across = read(&[(REGION_BYTES as u64 - 8, 16, 0, 0), (0, 0, 0, 0)]).unwrap();
    assert_eq!(across.readable.bytes(), 16, "two regions that touch are one run");
}

#[test]
fn copies_go_through_all_segments_and_no_further() {
    let ram = new_ram();
    let edge = REGION_BYTES as u64;
    let run = segments(&[(DATA, 3), (DATA + 0x100, 0), (edge - 2, 4)]);
    assert_eq!(run.write(&ram, b"abcdefgh").unwrap(), 7);
    let mut buffer = [0; 9];
    assert_eq!(run.read(&ram, &mut buffer).unwrap(), 7);
    assert_eq!(&buffer, b"abcdefg\0\0");
    assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(DATA)).unwrap(), [b'a', b'b', b'c', FILL]);
    assert_eq!(ram.read_obj::<[u8; 6]>(GuestAddress(edge - 3)).unwrap(), [FILL, b'd', b'e', b'f', b'g', FILL]);
}

proptest! {
    /// Cut anywhere, both parts together are the whole, byte for byte.
    #[test]
    fn a_split_loses_nothing(lengths in prop::collection::vec(0_usize..40, 0..8), at in 0_u64..300) {
        let pieces: Vec<(u64, usize)> = lengths.iter().zip(0..).map(|(&bytes, n)| (DATA + 0x100 * n, bytes)).collect();
        let whole = segments(&pieces);
        let mut front = whole.clone();
        let back = front.split_off(at);
        prop_assert_eq!(front.bytes(), whole.bytes().min(at));
        prop_assert_eq!(front.bytes() + back.bytes(), whole.bytes());
        let addresses = |segments: &Segments| -> Vec<u64> {
            segments.iter().flat_map(|segment| (0..segment.bytes as u64).map(move |n| segment.address.0 + n)).collect()
        };
        let mut both = addresses(&front);
        both.extend(addresses(&back));
        prop_assert_eq!(both, addresses(&whole));
    }
}
