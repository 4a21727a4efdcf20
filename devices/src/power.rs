//! Ports by which a guest turns itself off, starts over, or says that it has panicked.
//!
//! | device | ports | a guest writes | it means |
//! |---|---|---|---|
//! | [`I8042`] | 0x60..0x65 | 0xfe to offset 4 | reset |
//! | [`PowerPort`] | 4 | sleep type 5 with the enable bit to offset 0 | power off |
//! | | | 1 to offset 2 | reset |
//! | [`PvPanic`] | 1 | bit 0 | it panicked |
//! | | | bit 1 | it panicked and runs its crash kernel |
//!
//! Invariant: none of these has a state. What a guest has asked for is one until it is done: [`PowerEvent`].

use std::sync::Arc;

use ckvmm_snapshot::Saved;
use serde::{Deserialize, Serialize};

use crate::BusDevice;

/// What a guest has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerEvent {
    /// It has powered itself off.
    Off,
    /// It wants to start over.
    Reset,
    /// Its kernel has panicked.
    Panic,
    /// Its kernel has panicked, and a crash kernel takes over.
    CrashLoaded,
}

impl Saved for PowerEvent {
    const KIND: &'static str = "power";
    const VERSION: u16 = 1;
}

/// Who is told, on the vCPU's thread. It may not block.
pub type PowerSink = Arc<dyn Fn(PowerEvent) + Send + Sync>;

/// As much of a keyboard controller as resets a PC. Status reads as "nothing pending, ready for a command".
pub struct I8042 {
    sink: PowerSink,
}

impl I8042 {
    /// Its length in ports, from the data port 0x60 to the command port 0x64.
    pub const PORTS: u64 = 5;
    const COMMAND: u64 = 4;
    const PULSE_RESET: u8 = 0xfe;

    /// A controller that tells `sink`.
    pub fn new(sink: PowerSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == Self::COMMAND && data.first() == Some(&Self::PULSE_RESET) {
            (self.sink)(PowerEvent::Reset);
        }
    }
}

/// The sleep and reset registers of a hardware-reduced ACPI machine (ACPI 6.5 §4.8.3.7; FADT `SLEEP_CONTROL_REG`,
/// `SLEEP_STATUS_REG`, `RESET_REG`).
pub struct PowerPort {
    sink: PowerSink,
}

impl PowerPort {
    /// Its length in ports.
    pub const PORTS: u64 = 4;
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register.
    pub const RESET: u64 = 2;
    /// What the FADT gives as the value that resets.
    pub const RESET_VALUE: u8 = 1;
    /// The sleep type of S5, as the DSDT gives it.
    pub const S5: u8 = 5;

    const SLEEP_TYPE_SHIFT: u8 = 2;
    const SLEEP_TYPE_MASK: u8 = 0b111;
    const SLEEP_ENABLE: u8 = 1 << 5;

    /// Registers that tell `sink`.
    pub fn new(sink: PowerSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for PowerPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let sleep_type = value >> Self::SLEEP_TYPE_SHIFT & Self::SLEEP_TYPE_MASK;
        match offset {
            Self::SLEEP_CONTROL if value & Self::SLEEP_ENABLE != 0 && sleep_type == Self::S5 => {
                (self.sink)(PowerEvent::Off);
            }
            Self::RESET if value == Self::RESET_VALUE => (self.sink)(PowerEvent::Reset),
            _ => {}
        }
    }
}

/// The panic notifier that Linux' `pvpanic` driver knows (QEMU `docs/specs/pvpanic.rst`).
pub struct PvPanic {
    sink: PowerSink,
}

impl PvPanic {
    /// Its length in ports.
    pub const PORTS: u64 = 1;
    const PANICKED: u8 = 1 << 0;
    const CRASH_LOADED: u8 = 1 << 1;

    /// A notifier that tells `sink`.
    pub fn new(sink: PowerSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = Self::PANICKED | Self::CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        if value & Self::PANICKED != 0 {
            (self.sink)(PowerEvent::Panic);
        } else if value & Self::CRASH_LOADED != 0 {
            (self.sink)(PowerEvent::CrashLoaded);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Every (offset, value) a device reacts to, out of all that fit its ports.
    fn reactions(ports: u64, device: impl Fn(PowerSink) -> Box<dyn BusDevice>) -> Vec<(u64, u8, PowerEvent)> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut reactions = Vec::new();
        let sink = seen.clone();
        let device = device(Arc::new(move |event| sink.lock().unwrap().push(event)));
        for offset in 0..ports {
            device.write(offset, &[]);
            device.read(offset, &mut []);
            for value in 0..=255 {
                device.write(offset, &[value]);
                reactions.extend(seen.lock().unwrap().drain(..).map(|event| (offset, value, event)));
            }
        }
        reactions
    }

    #[test]
    fn the_keyboard_controller_resets_by_one_command() {
        let all = reactions(I8042::PORTS, |sink| Box::new(I8042::new(sink)));
        assert_eq!(all, [(4, 0xfe, PowerEvent::Reset)]);
    }

    #[test]
    fn the_power_port_knows_s5_with_enable_and_reset() {
        let all = reactions(PowerPort::PORTS, |sink| Box::new(PowerPort::new(sink)));
        assert!(all.contains(&(0, 0x34, PowerEvent::Off)), "what Linux writes for S5");
        assert!(all.contains(&(2, 1, PowerEvent::Reset)));
        for (offset, value, event) in all {
            match event {
                PowerEvent::Off => assert!(offset == 0 && value & 0x3c == 0x34, "{value:#x}"),
                PowerEvent::Reset => assert_eq!((offset, value), (2, 1)),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_panic_notifier_says_what_it_can_and_tells_what_it_hears() {
        let all = reactions(PvPanic::PORTS, |sink| Box::new(PvPanic::new(sink)));
        assert!(all.contains(&(0, 1, PowerEvent::Panic)));
        assert!(all.contains(&(0, 2, PowerEvent::CrashLoaded)));
        assert!(all.iter().all(|&(_, value, _)| value & 3 != 0));
        let mut capabilities = [0];
        PvPanic::new(Arc::new(|_| ())).read(0, &mut capabilities);
        assert_eq!(capabilities, [3]);
    }
}
