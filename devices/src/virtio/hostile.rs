//! Devices against drivers that write anything at all into their rings. Whatever it is: no panic, an end to the work,
//! and no byte of guest RAM changes but those that the driver has offered as writable, and the used ring.

use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ckvmm_snapshot::LiveDisk;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use super::blk::{Blk, BlkConfig};
use super::net::{Net, NetConfig};
use super::rng::Rng;
use super::testing::{DATA, REGION_BYTES, Rig, copy_ram};

const SIZE: u16 = 16;
const RAM_BYTES: u64 = 2 * REGION_BYTES as u64;
/// Where hostile chains have their indirect tables.
const TABLES: u64 = DATA + 0x1_0000;
const TABLE_ENTRIES: u64 = 8;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// More than any of this takes, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

type Raw = (u64, u32, u16, u16);

/// A driver's rings, full of anything.
#[derive(Clone, Debug)]
struct Hostile {
    table: Vec<Raw>,
    indirect: Vec<Raw>,
    heads: Vec<u16>,
    index: u16,
    /// The beginnings of buffers: requests that nearly make sense.
    headers: Vec<(u32, u64)>,
}

/// An address in a buffer, at the edges of RAM, beyond it, or in the rings themselves if they may be hit.
fn any_address(rings: bool) -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0_u64..16).prop_map(|n| DATA + 0x100 * n),
        2 => (TABLES / 16..TABLES / 16 + 16).prop_map(move |n| if rings { n * 16 } else { DATA + n % 16 }),
        1 => Just(RAM_BYTES - 16),
        1 => Just(RAM_BYTES),
        1 => Just(REGION_BYTES as u64 - 7),
        1 => (0_u64..32).prop_map(|n| u64::MAX - n),
        1 => (0x1_0000_u64..0x2_0000).prop_map(move |n| if rings { n } else { DATA }),
        1 => any::<u64>(),
    ]
}

fn any_length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => prop::sample::select(vec![0_u32, 1, 15, 16, 17, 32, 128, 511, 512, 513, 4096]),
        1 => Just(u32::MAX),
        1 => any::<u32>(),
    ]
}

fn any_descriptor(rings: bool) -> impl Strategy<Value = Raw> {
    let flags = prop_oneof![
        8 => prop::sample::select(vec![0, NEXT, WRITE, NEXT | WRITE]),
        1 => any::<u16>(),
    ];
    let plain = (any_address(rings), any_length(), flags, prop_oneof![8 => 0..SIZE, 1 => any::<u16>()]);
    let indirect = (0_u64..4, prop_oneof![4 => Just(16 * TABLE_ENTRIES as u32), 1 => any::<u32>()])
        .prop_map(|(table, bytes)| (TABLES + table * 16 * TABLE_ENTRIES, bytes, INDIRECT, 0));
    prop_oneof![5 => plain, 1 => indirect]
}

/// A descriptor as an honest driver has it at place `n`: chains of a header, data, and room for a status.
fn honest_descriptor(n: u16) -> impl Strategy<Value = Raw> {
    let (last, header) = (n % 3 == 2 || n == SIZE - 1, n.is_multiple_of(3));
    let length = prop::sample::select(if header { vec![16_u32] } else { vec![1_u32, 100, 512, 513, 4096] });
    let write = if header { Just(false).boxed() } else { prop_oneof![Just(last), Just(true)].boxed() };
    (0_u64..16, length, write).prop_map(move |(place, bytes, write)| {
        let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
        (DATA + 0x100 * place, bytes, flags, n + 1)
    })
}

/// Rings in which about one descriptor in `honesty` is anything, and the others are honest.
fn any_rings(rings: bool) -> impl Strategy<Value = Hostile> {
    prop_oneof![Just(1_u32), Just(8), Just(60)].prop_flat_map(move |honesty| {
        let descriptor = |n| prop_oneof![1 => any_descriptor(rings), honesty - 1 => honest_descriptor(n)];
        let table: Vec<_> = (0..SIZE).map(descriptor).collect();
        let indirect: Vec<_> = (0..4 * TABLE_ENTRIES as u16).map(|n| descriptor(n % 3)).collect();
        let head = prop_oneof![2 => 0..SIZE, 1 => any::<u16>(), 4 * (honesty - 1) => (0..5_u16).prop_map(|n| 3 * n)];
        let kind = prop_oneof![6 => 0_u32..16, 1 => any::<u32>()];
        let sector = prop_oneof![6 => 0_u64..12, 1 => any::<u64>()];
        (
            table,
            indirect,
            prop::collection::vec(head, usize::from(SIZE)),
            prop_oneof![20 => 0..=SIZE, 1 => any::<u16>()],
            prop::collection::vec((kind, sector), 16),
        )
            .prop_map(|(table, indirect, heads, index, headers)| Hostile {
                table,
                indirect,
                heads,
                index,
                headers,
            })
    })
}

impl Hostile {
    fn write(&self, rig: &Rig) {
        for queue in [0, 1] {
            let (table, available, _) = match queue < rig.mmio.queue_events().len() {
                true => rig.rings(queue),
                false => continue,
            };
            let put = |at: u64, &(address, bytes, flags, next): &Raw| {
                rig.ram.write_obj(Descriptor::new(address, bytes, flags, next), GuestAddress(at)).unwrap();
            };
            (0..).zip(&self.table).for_each(|(n, raw)| put(table + 16 * n, raw));
            (0..).zip(&self.indirect).for_each(|(n, raw)| put(TABLES + 16 * n, raw));
            for (n, &head) in (0..).zip(&self.heads) {
                rig.ram.write_obj(head, GuestAddress(available + 4 + 2 * n)).unwrap();
            }
            rig.ram.write_obj(self.index, GuestAddress(available + 2)).unwrap();
        }
        for (n, &(kind, sector)) in (0..).zip(&self.headers) {
            let mut header = u128::from(kind).to_le_bytes();
            header[8..].copy_from_slice(&sector.to_le_bytes());
            rig.put(DATA + 0x100 * n, &header);
        }
    }

    /// Whether the driver has offered this byte as writable, or it is in a used ring.
    fn writable(&self, rig: &Rig, address: u64) -> bool {
        let in_used_ring = (0..rig.mmio.queue_events().len()).any(|queue| {
            let (_, _, used) = rig.rings(queue);
            (used..used + 6 + 8 * u64::from(SIZE)).contains(&address)
        });
        let mut offered = self.table.iter().chain(&self.indirect).filter(|raw| raw.2 & WRITE != 0);
        in_used_ring || offered.any(|raw| address.checked_sub(raw.0).is_some_and(|offset| offset < raw.1.into()))
    }
}

/// Sets a device up with small queues, lets it loose on the rings, and returns what has changed in RAM.
fn unleash(device: Box<dyn VirtioDevice>, hostile: &Hostile) -> (Rig, Vec<u64>) {
    let mut rig = Rig::new(device);
    rig.negotiate(rig.offered());
    for queue in 0..rig.mmio.queue_events().len() {
        rig.set_up_queue(queue, SIZE);
    }
    hostile.write(&rig);
    let before = copy_ram(&rig.ram);
    let began = Instant::now();
    rig.write(0x70, 15);
    for queue in 0..rig.mmio.queue_events().len() {
        rig.kick(queue);
    }
    rig.wake();
    rig.mmio.drain().unwrap();
    assert!(began.elapsed() < PATIENCE, "unbounded work");
    let after = copy_ram(&rig.ram);
    let changed = (0..).zip(before.iter().zip(&after)).filter(|(_, (before, after))| before != after);
    let changed = changed.map(|(address, _)| address).collect();
    (rig, changed)
}

/// The device has done all it was given, or has asked for a reset; after one it works for an honest driver.
fn check(rig: &mut Rig, hostile: &Hostile) {
    let needs_reset = rig.status() & 64 != 0;
    if !needs_reset {
        assert!(hostile.index <= SIZE);
        for queue in &rig.mmio.save().unwrap().queues {
            assert!(queue.next_used <= hostile.index);
        }
    }
    rig.mmio.undrain();
    rig.reset();
    assert_eq!(rig.status(), 0);
    rig.start_with_all();
}

fn disk() -> Box<dyn VirtioDevice> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8 * 512).unwrap();
    Box::new(
        Blk::new(BlkConfig { id: "hostile".into(), disk: Arc::new(LiveDisk::new(file)), read_only: false }).unwrap(),
    )
}

/// A card with frames to be received.
fn card() -> (Box<dyn VirtioDevice>, UnixDatagram) {
    let (link, far) = super::net::tests::pair();
    for bytes in [60, 1500, 9000, 5, 60] {
        far.send(&super::net::tests::frame(bytes)).unwrap();
    }
    (Box::new(Net::new(NetConfig { link, mac: [2; 6] }).unwrap()), far)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_disk_survives_any_rings(hostile in any_rings(false)) {
        let (mut rig, changed) = unleash(disk(), &hostile);
        for address in changed {
            prop_assert!(hostile.writable(&rig, address), "{address:#x} was written");
        }
        check(&mut rig, &hostile);
    }

    #[test]
    fn a_network_card_survives_any_rings(hostile in any_rings(false)) {
        let (card, _far) = card();
        let (mut rig, changed) = unleash(card, &hostile);
        for address in changed {
            prop_assert!(hostile.writable(&rig, address), "{address:#x} was written");
        }
        check(&mut rig, &hostile);
    }

    #[test]
    fn a_source_of_random_numbers_survives_any_rings(hostile in any_rings(false)) {
        let (mut rig, changed) = unleash(Box::new(Rng::new()), &hostile);
        for address in changed {
            prop_assert!(hostile.writable(&rig, address), "{address:#x} was written");
        }
        check(&mut rig, &hostile);
    }

    /// Buffers may lie in the rings: devices then write into the descriptors that they are reading.
    #[test]
    fn any_device_survives_rings_that_it_is_made_to_overwrite(hostile in any_rings(true), which in 0..3) {
        let (card, _far) = card();
        let device = match which {
            0 => disk(),
            1 => card,
            _ => Box::new(Rng::new()),
        };
        let (rig, _) = unleash(device, &hostile);
        rig.mmio.undrain();
        rig.reset();
        prop_assert_eq!(rig.status(), 0);
    }
}

/// The tests above are worth something: of the rings that they try, some lead to work done and some to a reset.
#[test]
fn the_rings_are_neither_all_good_nor_all_bad() {
    let mut runner = TestRunner::deterministic();
    let (mut worked, mut broke) = (0, 0);
    for _ in 0..100 {
        let hostile = any_rings(false).new_tree(&mut runner).unwrap().current();
        for device in [disk(), card().0, Box::new(Rng::new())] {
            let (rig, _) = unleash(device, &hostile);
            worked += usize::from(rig.used_index(0) > 0);
            broke += usize::from(rig.status() & 64 != 0);
            rig.mmio.undrain();
        }
    }
    assert!(worked > 100 && broke > 100, "{worked} worked, {broke} broke, of 300");
}
