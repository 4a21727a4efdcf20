//! Tests of net_model.rs.

use super::*;

fn frame() -> Frame {
    Frame {
        destination: [2, 0, 0, 0, 0, 2],
        source: [2, 0, 0, 0, 0, 1],
        sender: 1,
        receiver: 2,
        kind: Kind::Numbered,
        number: 7,
        expected: 3,
        expected_broadcast: 2,
        broadcasts: 1 << 40,
    }
}

#[test]
fn what_is_written_is_read() {
    for length in [SHORTEST, 65, 71, 1500, LONGEST] {
        for kind in [Kind::Numbered, Kind::Word, Kind::LastWord, Kind::Hello] {
            let mut bytes = vec![0xaa; length];
            let frame = Frame { kind, ..frame() };
            frame.write(&mut bytes);
            assert_eq!(Frame::read(&bytes), Ok(frame), "{length}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let mut bytes = vec![0; 75];
    frame().write(&mut bytes);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        match Frame::read(&bytes) {
            Err(Wrong::Foreign) => assert_eq!(bit / 16, 6, "only the ethertype makes it a stranger's"),
            found => assert!(matches!(found, Err(Wrong::Corrupt { .. })), "bit {bit}"),
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_cut_or_padded_frame_is_found() {
    let mut bytes = vec![0; 100];
    frame().write(&mut bytes);
    for length in 0..100 {
        let wrong = Frame::read(&bytes[..length]).expect_err("it is too short");
        assert_eq!(wrong == Wrong::Foreign, length < 14, "{length}");
    }
    bytes.push(0);
    assert_eq!(Frame::read(&bytes), Err(Wrong::Corrupt { sender: 1 }));
}

#[test]
fn macs_follow_from_the_index() {
    let mine = [2, 0, 0, 0, 0, 0xff];
    assert_eq!(mac(mine, 3, 3), mine);
    assert_eq!(mac(mine, 3, 4), [2, 0, 0, 0, 1, 0]);
    assert_eq!(mac(mine, 3, 0), [2, 0, 0, 0, 0, 0xfc]);
    assert_eq!(mac(mine, 3, EVERYBODY), [0xff; 6]);
}

/// [received, lost, duplicated, reordered, next] after these numbers.
fn counts(numbers: &[u64]) -> [u64; 5] {
    let mut stream = Stream::default();
    numbers.iter().for_each(|number| stream.note(*number));
    let Stream { received, lost, duplicated, reordered, next, seen: _ } = stream;
    [received, lost, duplicated, reordered, next]
}

#[test]
fn gaps_doubles_and_latecomers_are_counted() {
    assert_eq!(counts(&[0, 1, 2]), [3, 0, 0, 0, 3]);
    assert_eq!(counts(&[2]), [1, 2, 0, 0, 3]);
    assert_eq!(counts(&[0, 1, 5, 6]), [4, 3, 0, 0, 7]);
    assert_eq!(counts(&[0, 1, 1, 0, 2]), [3, 0, 2, 0, 3]);
    assert_eq!(counts(&[0, 2, 1, 3]), [4, 0, 0, 1, 4]);
    assert_eq!(counts(&[3, 0, 1, 2, 2]), [4, 0, 1, 3, 4]);
    // One that has been missing for as long as can be told, and for longer.
    let gap = |length: u64| [0].into_iter().chain(2..2 + length).chain([1]).collect::<Vec<_>>();
    assert_eq!(counts(&gap(63)), [65, 0, 0, 1, 65]);
    assert_eq!(counts(&gap(64)), [65, 1, 1, 0, 66]);
    // A gap as wide as what is remembered, and wider.
    for number in [63, 64, 65, 1000] {
        assert_eq!(counts(&[number, number]), [1, number, 1, 0, number + 1]);
    }
}

#[test]
fn what_a_sender_has_sent_is_missing_until_it_comes() {
    let mut stream = Stream::default();
    stream.note(0);
    stream.told(1);
    assert_eq!((stream.lost, stream.next), (0, 1));
    stream.told(3);
    assert_eq!((stream.lost, stream.next), (2, 3));
    stream.told(2);
    stream.note(1);
    stream.note(3);
    let Stream { received, lost, duplicated, reordered, next, seen } = stream;
    assert_eq!([received, lost, duplicated, reordered, next, seen], [3, 1, 0, 1, 4, 0b1101]);
}

#[test]
fn layout_is_pinned() {
    assert_eq!(size_of::<Peer>(), 128);
    assert_eq!(Table::BYTES, 64 + MOST_NODES * 128);
    const { assert!(Table::BYTES <= 4096) };
    assert_eq!(core::mem::offset_of!(Table, peers), 64);
    assert_eq!(core::mem::offset_of!(Peer, corrupt), 96);
    let mut bytes = [0; SHORTEST];
    frame().write(&mut bytes);
    assert_eq!(bytes[12..24], [0x88, 0xb5, 64, 0, 1, 0, 2, 0, 1, b'n', b'u', b'm']);
    assert_eq!(bytes[24..32], 7u64.to_le_bytes());
    assert_eq!(bytes[56..], 0x5d64_f7cc_eec6_ce22u64.to_le_bytes());
}

#[test]
fn parse_reads_each_field_from_its_place() {
    let bytes: Vec<u8> = (0..Table::BYTES as u64 / 8).flat_map(u64::to_le_bytes).collect();
    let table = Table::parse(&bytes);
    let Table { nodes, me, broadcasts, stopped, corrupt, astray, ahead, foreign, peers } = table;
    assert_eq!([nodes, me, broadcasts, stopped, corrupt, astray, ahead, foreign], [0, 1, 2, 3, 4, 5, 6, 7]);
    for (peer, first) in peers.into_iter().zip((8..).step_by(16)) {
        let stream = |at: u64| Stream {
            received: at,
            lost: at + 1,
            duplicated: at + 2,
            reordered: at + 3,
            next: at + 4,
            seen: at + 5,
        };
        let expected = Peer {
            stream: stream(first),
            broadcasts: stream(first + 6),
            corrupt: first + 12,
            sent: first + 13,
            acknowledged: first + 14,
            broadcasts_acknowledged: first + 15,
        };
        assert_eq!(peer, expected);
    }
}
