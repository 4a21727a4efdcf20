//! A serial port under the laws of devices, and what its guest and its input see of it.

use std::sync::atomic::AtomicUsize;

use super::*;
use crate::laws::{Subject, device_laws, recode};

const IER: u64 = 1;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const SCR: u64 = 7;
const FIFO: usize = 64;

#[derive(Default)]
struct Edges(AtomicUsize);

impl InterruptLine for Edges {
    fn raise(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// An output whose bytes can be looked at, and that can be full.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<(Vec<u8>, bool)>>);

impl Write for Paper {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut paper = lock(&self.0);
        if paper.1 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        paper.0.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Rig {
    serial: Serial,
    edges: Arc<Edges>,
    paper: Paper,
}

impl Rig {
    fn read(&self, port: u64) -> u8 {
        let mut data = [0];
        self.serial.read(port, &mut data);
        data[0]
    }

    fn write(&self, port: u64, value: u8) {
        self.serial.write(port, &[value]);
    }

    fn edges(&self) -> usize {
        self.edges.0.swap(0, Ordering::SeqCst)
    }
}

impl Subject for Rig {
    type State = SerialState;
    const MUTATIONS: usize = 8;

    fn new() -> Self {
        let (edges, paper) = (Arc::new(Edges::default()), Paper::default());
        let serial = Serial::new(Box::new(paper.clone()), edges.clone()).unwrap();
        Self { serial, edges, paper }
    }

    fn save(&self) -> Result<SerialState> {
        self.serial.save()
    }

    fn restore(&mut self, state: SerialState) -> Result<()> {
        self.serial.restore(state)
    }

    fn mutate(&mut self, what: usize) {
        match what {
            0 => self.write(LCR, 0x83),
            1 => self.serial.write(0, &[1, 2]), // the divisor
            2 => self.write(LCR, 0x13),
            3 => self.write(MCR, 0x0b),
            4 => self.write(IER, 0x03),
            5 => self.write(SCR, 0x5a),
            6 => assert_eq!(self.serial.enqueue(b"input"), 5),
            _ => assert_eq!(self.read(0), b'i'),
        }
    }

    fn recode(state: SerialState) -> SerialState {
        recode(&state)
    }

    fn misfits(state: &SerialState) -> Vec<(SerialState, &'static str)> {
        vec![(SerialState { received: vec![0; FIFO + 1], ..state.clone() }, "FIFO holds 65 bytes")]
    }

    fn works_from_the_start(&mut self) {
        self.write(0, b'!');
        assert_eq!(lock(&self.paper.0).0, b"!");
        assert_eq!(self.serial.enqueue(b"?"), 1);
        assert_eq!(self.read(0), b'?');
    }
}

device_laws!(Rig);

#[test]
fn input_that_does_not_fit_waits_for_the_guest_to_make_room() {
    let rig = Rig::new();
    assert_eq!(rig.serial.enqueue(&[b'x'; 100]), FIFO);
    assert_eq!(rig.serial.input_room(), 0);
    assert_eq!(rig.serial.enqueue(b"y"), 0);
    assert!(rig.serial.room().read().is_err(), "signalled without room");
    for _ in 0..FIFO {
        assert_eq!(rig.read(LSR) & LSR_DATA_READY, LSR_DATA_READY);
        assert_eq!(rig.read(0), b'x');
    }
    assert_eq!(rig.read(LSR) & LSR_DATA_READY, 0);
    rig.serial.room().read().unwrap();
    assert_eq!(rig.serial.input_room(), FIFO);
}

#[test]
fn a_pending_interrupt_is_raised_again_after_a_restore() {
    let rig = Rig::new();
    rig.write(IER, IER_RECEIVED);
    rig.serial.enqueue(b"a");
    assert_eq!(rig.edges(), 1);
    let mut other = Rig::new();
    other.restore(rig.save().unwrap()).unwrap();
    assert!(other.edges() > 0);
    other.serial.kick();
    assert_eq!(other.edges(), 1);
    assert_eq!(other.read(IIR) & 0x0f, 0x04);
    assert_eq!(other.read(0), b'a');
    other.serial.kick();
    assert_eq!(other.edges(), 0, "nothing is pending any more");
}

#[test]
fn an_output_that_is_full_costs_bytes_but_not_the_guest() {
    let rig = Rig::new();
    rig.write(0, b'a');
    lock(&rig.paper.0).1 = true;
    rig.serial.write(0, b"b");
    rig.write(0, b'c');
    lock(&rig.paper.0).1 = false;
    rig.write(0, b'd');
    assert_eq!(lock(&rig.paper.0).0, b"ad");
    assert_eq!(rig.serial.lost_bytes(), 2);
    assert_eq!(rig.read(LSR) & 0x60, 0x60, "still ready to send");
}

#[test]
fn accesses_of_any_width_anywhere_do_no_harm() {
    let rig = Rig::new();
    for offset in (0..16).chain([255, 256, u64::MAX]) {
        for bytes in [0, 1, 2, 4, 8] {
            rig.serial.read(offset, &mut vec![0; bytes]);
            rig.serial.write(offset, &vec![0xff; bytes]);
        }
    }
}
