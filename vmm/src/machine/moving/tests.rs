//! RAM that is moved, and what is written to it meanwhile.

use std::{path::Path, sync::Arc};

use ckvmm_snapshot::{Copies, Image, ManifestHead, Progress, StagedImage};
use vm_memory::Bytes;

use super::*;

const MIB: u64 = 1 << 20;
/// The last chunk is half of one.
const RAM: u64 = 13 * MIB;

/// Writes what `ram` holds as the checkpoint `dir`, on top of `base`.
fn image(ram: &Ram, dir: &Path, base: Option<&Arc<Image>>) -> Image {
    let mut staged = StagedImage::create(dir).unwrap();
    base.iter().for_each(|base| staged.build_on(base).unwrap());
    staged.write_state(&ckvmm_snapshot::StateMap::new()).unwrap();
    staged.write_memory(ram.memory(), ram.mapped(), &Progress::default()).unwrap();
    let head = ManifestHead {
        name: "moving".into(),
        lineage: uuid::Uuid::nil(),
        parent: base.map(|base| base.manifest().id),
        created: jiff::Timestamp::UNIX_EPOCH,
        mode: "stop".into(),
        config: serde_json::json!({}),
        host: serde_json::json!({}),
        pause_us: 0,
        started: Instant::now(),
    };
    Image::open(&staged.commit(head).unwrap()).unwrap()
}

/// RAM as `image` has it.
fn mapped(image: &Image) -> Ram {
    let mut ram = Ram::zeroed(RAM).unwrap();
    ram.map(image.memory()).unwrap();
    ram
}

fn content(ram: &Ram) -> Vec<u8> {
    let mut content = vec![0; RAM as usize];
    ram.memory().read_slice(&mut content, GuestAddress(0)).unwrap();
    content
}

fn write(ram: &Ram, expected: &mut [u8], at: u64, bytes: &[u8]) {
    ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
    expected[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
}

/// Two images: all but the second chunk holds data; and another one on top, in which single pages differ.
fn images(dir: &Path) -> [Image; 2] {
    let ram = Ram::zeroed(RAM).unwrap();
    let data: Vec<u8> = (0..2 * MIB).map(|at| (at % 253) as u8 | 1).collect();
    [0, 4, 6, 8, 10].into_iter().for_each(|at| ram.memory().write_slice(&data, GuestAddress(at * MIB)).unwrap());
    ram.memory().write_slice(&data[..MIB as usize], GuestAddress(12 * MIB)).unwrap();
    let first = Arc::new(image(&ram, &dir.join("first"), None));
    for at in [4 * MIB + 8192, 6 * MIB, 13 * MIB - 4096] {
        ram.memory().write_slice(&[7; 4096], GuestAddress(at)).unwrap();
    }
    let second = image(&ram, &dir.join("second"), Some(&first));
    [Arc::into_inner(first).unwrap(), second]
}

#[test]
fn ram_is_the_same_wherever_it_was_written_to_meanwhile_and_can_be_lent_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    for image in images(dir.path()) {
        let mut ram = mapped(&image);
        let as_saved = content(&ram);
        let mut expected = as_saved.clone();
        let mut moving = Moving::new(&ram).unwrap();
        assert!(!moving.prepare(&ram, Wanted::Changed).unwrap(), "nothing has changed");
        // Before the copy, in the middle of a chunk; in one that is a hole; in the last page.
        for at in [5 * MIB - 3, 3 * MIB, RAM - 1] {
            write(&ram, &mut expected, at, &[1]);
        }
        // So much of one chunk has changed that it comes first.
        write(&ram, &mut expected, 10 * MIB + 4095, &vec![9; MANY * PAGE]);
        assert!(moving.prepare(&ram, Wanted::Changed).unwrap());
        assert_eq!(moving.prepared, [10 * MIB]);
        moving.take_over(&mut ram).unwrap();
        assert!(!moving.prepare(&ram, Wanted::Changed).unwrap(), "the others have not");
        assert!(moving.prepare(&ram, Wanted::All).unwrap());
        assert_eq!(moving.prepared, [0, 4, 6, 8, 12].map(|at| at * MIB), "all others but the hole");
        // Afterwards: there, and elsewhere, over the border of two pages.
        for at in [4 * MIB + 4095, 8 * MIB, 10 * MIB, 12 * MIB + 5] {
            write(&ram, &mut expected, at, &[2, 3, 4]);
        }
        while moving.prepare(&ram, Wanted::All).unwrap() {
            let before = moving.prepared.len();
            moving.take_over(&mut ram).unwrap();
            assert!(moving.prepared.len() < before, "none is prepared twice");
            assert!(content(&ram) == expected);
        }
        assert!(ram.mapped().is_empty() && !moving.is_prepared());
        drop(moving);
        assert!(content(&ram) == expected);
        let copies = Copies { most_bytes: MIB, ready_bytes: MIB, room: Arc::new(|| u64::MAX) };
        assert!(ram.lend(copies).is_some());
        assert!(content(&mapped(&image)) == as_saved, "the image has not changed");
    }
}

#[test]
fn what_is_not_moved_yet_is_still_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let [image, _] = images(dir.path());
    let mut ram = mapped(&image);
    let expected = content(&ram);
    let all = ram.mapped().to_vec();
    for (own, left) in [
        (3..3, 11), // nothing
        (5..6, 10), // in the middle of a run
        (2..4, 10), // a hole
        (0..5, 7),  // a run, a hole, and the rest of what is before the middle
        (8..9, 6),
        (12..14, 5),
        (7..13, 1), // several
        (0..13, 0),
    ] {
        ram.is_own(own.start * MIB..own.end * MIB);
        assert_eq!(ram.mapped().iter().map(|run| run.bytes).sum::<u64>(), left * MIB, "without {own:?}");
        for part in ram.mapped() {
            let whole =
                all.iter().find(|run| run.guest_address <= part.guest_address && part.guest_end() <= run.guest_end());
            let whole = whole.expect("it was mapped");
            assert_eq!(part.guest_address - whole.guest_address, part.file_offset - whole.file_offset);
        }
    }
    assert!(content(&ram) == expected);
}

#[test]
fn a_copy_takes_the_place_of_what_could_not_be_moved() {
    let dir = tempfile::tempdir().unwrap();
    let [image, _] = images(dir.path());
    let ram = mapped(&image);
    let expected = content(&ram);
    let mut moving = Moving::new(&ram).unwrap();
    moving.prepare(&ram, Wanted::All).unwrap();
    let place = moving.place(&ram, 4 * MIB).unwrap();
    // SAFETY: nobody uses this chunk of RAM meanwhile.
    unsafe { libc::munmap(place.ram.cast(), place.bytes) };
    place.copy_back(io::ErrorKind::OutOfMemory.into()).unwrap();
    assert!(content(&ram) == expected);
}

#[test]
fn an_image_that_cannot_be_read_is_an_error_and_ram_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let [image, _] = images(dir.path());
    let ram = mapped(&image);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("first/memory")).unwrap();
    file.set_len(6 * MIB).unwrap();
    let mut moving = Moving::new(&ram).unwrap();
    let error = moving.prepare(&ram, Wanted::All).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "not a signal, as a look at the mapping would be");
    assert_eq!(moving.prepared, [0, 4 * MIB], "what comes before can be read");
    assert!(!ram.mapped().is_empty());
}
