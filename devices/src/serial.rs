//! The serial port: a 16550 at eight ports, its receive FIFO 64 bytes deep. The chip itself is vm-superio's.
//!
//! Invariant: at a checkpoint all that is not yet the guest's is in [`SerialState`]: registers and the receive FIFO.
//! What the guest has sent was handed to the output at once.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ckvmm_snapshot::Saved;
use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{Error as UartError, Serial as Uart, SerialEvents, SerialState as UartState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::sync::lock;
use crate::{BusDevice, Error, InterruptLine, Result};

const NAME: &str = "serial";
const IER_RECEIVED: u8 = 1 << 0;
const IER_SENT: u8 = 1 << 1;
const IIR_SENT: u8 = 1 << 1;
const LSR_DATA_READY: u8 = 1 << 0;

type Chip = Uart<Line, Room, Output>;

/// A 16550 with its output and its interrupt.
pub struct Serial {
    chip: Mutex<Chip>,
    line: Line,
    room: Room,
    output: Output,
    lost: AtomicU64,
}

impl Serial {
    /// Its length in ports.
    pub const PORTS: u64 = 8;

    /// A port that writes what the guest sends to `output`, byte by byte on the vCPU's thread: an output that blocks
    /// blocks that vCPU, and with it a pause. What it refuses is lost.
    ///
    /// # Errors
    /// No eventfd.
    pub fn new(output: Box<dyn Write + Send>, line: Arc<dyn InterruptLine>) -> Result<Self> {
        let room = EventFd::new(EFD_NONBLOCK).map_err(|source| Error::EventFd { device: NAME.into(), source })?;
        let (line, room, output) = (Line(line), Room(Arc::new(room)), Output(Arc::new(Mutex::new(output))));
        let chip = Uart::with_events(line.clone(), room.clone(), output.clone());
        Ok(Self { chip: Mutex::new(chip), line, room, output, lost: AtomicU64::new(0) })
    }

    /// Gives the guest input, as much of it as the FIFO has room for; returns how much it took, from the front.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        // The one error is a full FIFO (or a port in loopback, which takes none): nothing taken.
        lock(&self.chip).enqueue_raw_bytes(input).unwrap_or(0)
    }

    /// How many bytes of input the FIFO has room for.
    pub fn input_room(&self) -> usize {
        lock(&self.chip).fifo_capacity()
    }

    /// Signalled each time the guest has emptied the FIFO: whoever has input waiting may enqueue it.
    pub fn room(&self) -> &EventFd {
        &self.room.0
    }

    /// Bytes that the guest has sent and the output did not take.
    pub fn lost_bytes(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The port's state. It is whole while no vCPU runs.
    ///
    /// # Errors
    /// None today.
    pub fn save(&self) -> Result<SerialState> {
        Ok(SerialState::from(lock(&self.chip).state()))
    }

    /// Puts the port into a saved state, and raises the interrupt if one was pending.
    ///
    /// # Errors
    /// The state's FIFO is longer than this port's; the port is as it was.
    pub fn restore(&self, state: SerialState) -> Result<()> {
        let state = UartState::from(state);
        let chip = Uart::from_state(&state, self.line.clone(), self.room.clone(), self.output.clone())
            .map_err(|_| Error::corrupt(NAME, format!("its receive FIFO holds {} bytes", state.in_buffer.len())))?;
        *lock(&self.chip) = chip;
        self.kick();
        Ok(())
    }

    /// Raises the interrupt again if the guest has a reason to wait for one: edges are no state.
    pub fn kick(&self) {
        let state = lock(&self.chip).state();
        let enabled = |bit| state.interrupt_enable & bit != 0;
        let received = enabled(IER_RECEIVED) && state.line_status & LSR_DATA_READY != 0;
        let sent = enabled(IER_SENT) && state.interrupt_identification & IIR_SENT != 0;
        if received || sent {
            self.line.0.raise();
        }
    }
}

impl BusDevice for Serial {
    /// An access wider than a byte is one to as many ports, as the ISA bus has it.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut chip = lock(&self.chip);
        for (ahead, byte) in data.iter_mut().enumerate() {
            *byte = chip.read(port(offset, ahead));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut chip = lock(&self.chip);
        for (ahead, &byte) in data.iter().enumerate() {
            if let Err(UartError::IOError(error)) = chip.write(port(offset, ahead), byte) {
                let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
                if lost.is_power_of_two() {
                    tracing::warn!("serial: {lost} bytes lost, the output does not take them: {error}");
                }
            }
        }
    }
}

/// The port `ahead` of `offset`; none of the chip's if there is no such port.
fn port(offset: u64, ahead: usize) -> u8 {
    offset.checked_add(ahead as u64).and_then(|port| u8::try_from(port).ok()).unwrap_or(u8::MAX)
}

/// A saved serial port: the 16550's registers by their names, and its receive FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch, low byte.
    pub divisor_low: u8,
    /// Divisor latch, high byte.
    pub divisor_high: u8,
    /// IER.
    pub interrupt_enable: u8,
    /// IIR.
    pub interrupt_identification: u8,
    /// LCR.
    pub line_control: u8,
    /// LSR.
    pub line_status: u8,
    /// MCR.
    pub modem_control: u8,
    /// MSR.
    pub modem_status: u8,
    /// SCR.
    pub scratch: u8,
    /// Input that the guest has not read, oldest first.
    #[serde(with = "serde_bytes")]
    pub received: Vec<u8>,
}

impl Saved for SerialState {
    const KIND: &'static str = "serial-16550";
    const VERSION: u16 = 1;
}

impl From<UartState> for SerialState {
    fn from(state: UartState) -> Self {
        // Every field by name: a new one does not compile until somebody has decided whether it is saved.
        let UartState {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        } = state;
        Self {
            divisor_low,
            divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        }
    }
}

impl From<SerialState> for UartState {
    fn from(state: SerialState) -> Self {
        let SerialState {
            divisor_low: baud_divisor_low,
            divisor_high: baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received: in_buffer,
        } = state;
        Self {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        }
    }
}

/// The interrupt, as the chip calls it.
#[derive(Clone)]
struct Line(Arc<dyn InterruptLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> std::result::Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

/// Hears from the chip that its FIFO has become empty.
#[derive(Clone)]
struct Room(Arc<EventFd>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // It fails only when the count is at its end, and then it is signalled already.
        let _ = self.0.write(1);
    }
}

/// The output, which outlives the chip that a restore replaces.
#[derive(Clone)]
struct Output(Arc<Mutex<Box<dyn Write + Send>>>);

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).flush()
    }
}

#[cfg(test)]
mod tests;
