//! The laws of the state map, and a trip wire on its bytes.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Port {
    divisor: u16,
    #[serde(with = "serde_bytes")]
    fifo: Vec<u8>,
}

impl Saved for Port {
    const KIND: &'static str = "port";
    const VERSION: u16 = 1;
}

/// What `Port` has become: it reads its own version and the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewPort {
    divisor: u16,
    #[serde(with = "serde_bytes")]
    fifo: Vec<u8>,
    #[serde(default)]
    overruns: u32,
}

impl Saved for NewPort {
    const KIND: &'static str = "port";
    const VERSION: u16 = 2;
    const OLDEST: u16 = 1;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct FarPort {}

impl Saved for FarPort {
    const KIND: &'static str = "port";
    const VERSION: u16 = 7;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Clock {
    nanoseconds: u64,
}

impl Saved for Clock {
    const KIND: &'static str = "clock";
    const VERSION: u16 = 1;
}

fn port() -> Port {
    Port { divisor: 12, fifo: vec![1, 0xff] }
}

fn map() -> StateMap {
    let mut map = StateMap::new();
    map.put("serial/0", &port()).expect("new");
    map.put("clock", &Clock { nanoseconds: 5 }).expect("new");
    map
}

/// Moves when a byte of the format does: then [`STATE_FORMAT_VERSION`] is to be raised and a golden image added.
#[test]
fn the_bytes_are_those_of_version_1() {
    let expected: Vec<u8> = [
        b"CKVMMSTA".as_slice(),
        &[1, 0, 0, 0],
        &[87, 0, 0, 0, 0, 0, 0, 0],
        &[2, 0, 0, 0],
        &[5, 0],
        b"clock",
        &[5, 0],
        b"clock",
        &[1, 0],
        &[14, 0, 0, 0, 0, 0, 0, 0],
        &[0x81, 0xab],
        b"nanoseconds",
        &[5],
        &[8, 0],
        b"serial/0",
        &[4, 0],
        b"port",
        &[1, 0],
        &[19, 0, 0, 0, 0, 0, 0, 0],
        &[0x82, 0xa7],
        b"divisor",
        &[12, 0xa4],
        b"fifo",
        &[0xc4, 2, 1, 0xff],
    ]
    .concat();
    assert_eq!(map().encode(), expected);
    assert_eq!(StateMap::decode(&expected).expect("decodes"), map());
}

#[test]
fn each_state_goes_to_one_taker() {
    let mut map = StateMap::decode(&map().encode()).expect("decodes");
    assert_eq!(map.names().collect::<Vec<_>>(), ["clock", "serial/0"]);
    assert_eq!(map.take::<Port>("serial/0").expect("is there"), port());
    assert!(matches!(map.take::<Port>("serial/0"), Err(Error::StateMissing { name }) if name == "serial/0"));
    let left = map.clone().finish().expect_err("the clock is left");
    assert!(matches!(&left, Error::StateLeft { names } if names == &["clock"]));
    assert!(left.to_string().contains("`clock`"), "{left}");
    assert_eq!(map.take::<Clock>("clock").expect("is there"), Clock { nanoseconds: 5 });
    assert_eq!(map.encode(), StateMap::new().encode(), "taking gives the space back");
    map.finish().expect("all taken");
}

#[test]
fn a_name_is_given_once() {
    let mut map = map();
    let error = map.put("clock", &port()).expect_err("taken");
    assert!(matches!(&error, Error::StateDuplicate { name } if name == "clock"), "{error}");
    assert_eq!(map, self::map(), "and the first one stays");
}

#[test]
fn another_kind_is_refused_and_stays() {
    let mut map = map();
    let error = map.take::<Port>("clock").expect_err("a clock is no port");
    assert!(matches!(&error, Error::StateKind { .. }), "{error}");
    let line = error.to_string();
    assert!(line.contains("`clock`") && line.contains("`port`"), "{line}");
    map.take::<Clock>("clock").expect("is still there");
}

#[test]
fn versions_that_are_not_read_are_named() {
    let mut new = StateMap::new();
    new.put("serial/0", &FarPort {}).expect("new");
    let line = new.take::<Port>("serial/0").expect_err("too new").to_string();
    assert!(line.contains("version 7, this ckvmm reads 1;"), "{line}");
    let line = new.take::<NewPort>("serial/0").expect_err("too new").to_string();
    assert!(line.contains("version 7, this ckvmm reads 1 to 2;"), "{line}");
    let line = map().take::<FarPort>("serial/0").expect_err("too old").to_string();
    assert!(line.contains("version 1, this ckvmm reads 7;"), "{line}");
}

#[test]
fn an_older_version_gets_defaults() {
    let new = map().take::<NewPort>("serial/0").expect("reads version 1");
    assert_eq!(new, NewPort { divisor: 12, fifo: vec![1, 0xff], overruns: 0 });
}

#[test]
fn contents_are_decoded_to_the_last_byte() {
    let mut map = map();
    map.entries.get_mut("clock").expect("is there").content.push(0xc0);
    let line = map.take::<Clock>("clock").expect_err("more than a clock").to_string();
    assert!(line.contains("`clock`") && line.contains("1 bytes follow"), "{line}");
    map.entries.get_mut("clock").expect("is there").content.truncate(9);
    assert!(matches!(map.take::<Clock>("clock"), Err(Error::StateContent { .. })));
}

#[test]
fn bounds_hold_when_writing_as_when_reading() {
    let mut map = StateMap::new();
    for name in ["", &"n".repeat(STATE_NAME_BYTES_MAX + 1)] {
        assert!(matches!(map.put(name, &Clock { nanoseconds: 0 }), Err(Error::StateName { .. })));
    }
    map.put(&"n".repeat(STATE_NAME_BYTES_MAX), &Clock { nanoseconds: 0 }).expect("just short enough");
    for index in 1..STATE_ENTRIES_MAX {
        map.put(&index.to_string(), &Clock { nanoseconds: 0 }).expect("room");
    }
    assert!(matches!(map.put("more", &Clock { nanoseconds: 0 }), Err(Error::StateName { .. })));
    assert_eq!(StateMap::decode(&map.encode()).expect("as much as may be"), map);
}

#[test]
fn a_map_of_another_format_says_so() {
    let mut bytes = map().encode();
    bytes[8] = 7;
    let line = StateMap::decode(&bytes).expect_err("another version").to_string();
    assert!(line.contains("format version 7, this ckvmm reads 1"), "{line}");
    bytes[0] = b'X';
    assert!(matches!(StateMap::decode(&bytes), Err(Error::Damaged { .. })));
}

#[test]
fn entries_come_in_order_and_once() {
    let mut bytes = map().encode();
    let at = bytes.windows(5).position(|window| window == b"clock").expect("is there");
    bytes[at] = b'z';
    let line = StateMap::decode(&bytes).expect_err("out of order").to_string();
    assert!(line.contains("out of order"), "{line}");

    let mut map = StateMap::new();
    map.put("a0", &Clock { nanoseconds: 0 }).expect("new");
    map.put("a1", &Clock { nanoseconds: 1 }).expect("new");
    let mut bytes = map.encode();
    let at = bytes.windows(2).position(|window| window == b"a1").expect("is there");
    bytes[at + 1] = b'0';
    let line = StateMap::decode(&bytes).expect_err("twice").to_string();
    assert!(line.contains("out of order"), "{line}");
}

proptest! {
    #[test]
    fn what_is_put_is_taken(ports in proptest::collection::btree_map("[a-z0-9/]{1,20}",
        (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..300)), 0..20))
    {
        let mut map = StateMap::new();
        for (name, (divisor, fifo)) in &ports {
            map.put(name, &Port { divisor: *divisor, fifo: fifo.clone() })?;
        }
        let bytes = map.encode();
        let mut again = StateMap::decode(&bytes)?;
        prop_assert_eq!(&again, &map);
        prop_assert_eq!(again.encode(), bytes);
        for (name, (divisor, fifo)) in ports {
            prop_assert_eq!(again.take::<Port>(&name)?, Port { divisor, fifo });
        }
        again.finish()?;
    }
}
