//! Tests of model.rs: the check against writing for real.

use super::*;

fn header(cells: u64, hot: u64, steps: u64) -> Header {
    Header {
        magic: MAGIC,
        version: VERSION,
        job: Job::Write as u32,
        seed: 7,
        arena: ARENA_LOWEST,
        arena_bytes: cells * CELL,
        hot_bytes: hot * CELL,
        steps,
        ..Header::EMPTY
    }
}

/// Memory after so many writes, by doing them.
fn replay(cells: u64, hot: u64, steps: u64) -> Vec<u64> {
    let mut memory = vec![0; cells as usize];
    for (cell, value) in header(cells, hot, 0).writes().take(steps as usize) {
        memory[cell as usize] = value;
    }
    memory
}

#[test]
fn check_agrees_with_replay_at_every_step() {
    for (cells, hot) in [(1, 1), (8, 8), (12, 5), (16, 1), (9, 0), (64, 64)] {
        let last = if hot == 0 { cells } else { cells + 3 * hot + 2 };
        for steps in 0..=last {
            let memory = replay(cells, hot, steps);
            assert_eq!(check(&header(cells, hot, steps), |i| memory[i as usize]), Ok(()), "{cells} {hot} {steps}");
        }
    }
}

#[test]
fn one_step_may_be_begun_and_no_more() {
    for steps in [0, 3, 12, 14, 19, 23] {
        let head = header(12, 5, steps);
        let one_more = replay(12, 5, steps + 1);
        assert_eq!(check(&head, |i| one_more[i as usize]), Ok(()), "{steps}");
        let two_more = replay(12, 5, steps + 2);
        assert!(check(&head, |i| two_more[i as usize]).is_err(), "{steps}");
        if steps > 0 {
            let one_less = replay(12, 5, steps - 1);
            assert!(check(&head, |i| one_less[i as usize]).is_err(), "{steps}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    for cell in 0..12 {
        let mut memory = replay(12, 5, 21);
        memory[cell] ^= 1 << 17;
        let found = check(&header(12, 5, 21), |i| memory[i as usize]).expect_err("a bit was flipped");
        assert_eq!(found.address, ARENA_LOWEST + cell as u64 * CELL);
        assert!(found.to_string().contains("after 21 steps"));
    }
}

#[test]
fn rounds_visit_every_hot_cell_once() {
    for hot in [1, 2, 3, 1 << 10, 131_072, 3 * 131_072] {
        let mut seen = vec![false; hot as usize];
        for (cell, _) in header(hot, hot, 0).writes().skip(hot as usize).take(hot as usize) {
            assert!(!std::mem::replace(&mut seen[cell as usize], true));
        }
    }
}

#[test]
fn layout_is_pinned() {
    assert_eq!(Header::BYTES, 104 + 64 * 8);
    assert_eq!(core::mem::offset_of!(Header, job), 12);
    assert_eq!(core::mem::offset_of!(Header, steps), 48);
    assert_eq!(core::mem::offset_of!(Header, backwards), 96);
    assert_eq!(core::mem::offset_of!(Header, gaps), 104);
    assert_eq!(value(1, 0), 0x910a_2dec_8902_5cc1);
}

#[test]
fn parse_reads_each_field_from_its_place() {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((Job::Write as u32).to_le_bytes());
    for number in [7, ARENA_LOWEST, 96, 40, 4, 5, 6, 7, 8, 9, 10] {
        bytes.extend(u64::to_le_bytes(number));
    }
    for class in 0..64 {
        bytes.extend(u64::to_le_bytes(class));
    }
    let head = Header::parse(&bytes).expect("a header");
    let fields =
        Header { units: 5, first_tsc: 6, last_tsc: 7, longest_gap: 8, longest_gap_unit: 9, ..header(12, 5, 4) };
    assert_eq!(head, Header { backwards: 10, gaps: core::array::from_fn(|class| class as u64), ..fields });
    assert!(Header::parse(&bytes[..100]).is_err());
    assert!(Header::parse(&[0; 4096]).is_err());
    bytes[8] = 2;
    assert!(Header::parse(&bytes).is_err());
}
