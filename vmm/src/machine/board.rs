//! The board: every device of the machine on its bus and its interrupt line.
//!
//! The order of virtio devices is the guest's order: disks, network cards, the entropy device. It is part of what a
//! checkpoint means, since a device's address and line follow from it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use ckvmm_devices::{
    Blk, BlkConfig, Bus, BusDevice, GuestRam, I8042, InterruptLine, Net, NetConfig, NetCounters, PowerEvent, PowerPort,
    PowerSink, PvPanic, Rng, Serial, VirtioDevice, VirtioMmio, VmGenId,
};
use ckvmm_net::{Link, Port, Tap};
use ckvmm_snapshot::{LiveDisk, StateMap};
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    events::{MachineEvent, Notify},
    exits::Buses,
    io_thread::Subscriber,
};
use crate::{
    arch::layout,
    config::ConfigError,
    error::{Error, Result},
    host::console::Console,
};

/// What the devices are connected to on the host.
pub struct Backends {
    /// Disks in the guest's order.
    pub disks: Vec<DiskBackend>,
    /// Network cards in the guest's order.
    pub nics: Vec<NicBackend>,
    /// The other end of the serial port.
    pub console: Console,
    /// Called when a person at the terminal wants to leave.
    pub leave: Box<dyn Fn() + Send>,
}

/// The file behind a disk.
#[derive(Debug)]
pub struct DiskBackend {
    /// Id in the configuration.
    pub id: String,
    /// What holds the disk's contents.
    pub disk: Arc<LiveDisk>,
    /// The guest cannot write.
    pub read_only: bool,
    /// A checkpoint holds its contents.
    pub captured: bool,
}

/// What is behind a network card.
pub struct NicBackend {
    /// Id in the configuration.
    pub id: String,
    /// What its cable leads to.
    pub link: NicLink,
    /// The card's MAC address.
    pub mac: [u8; 6],
}

/// Where the cable of a network card leads.
pub enum NicLink {
    /// A TAP of the host.
    Tap(Tap),
    /// A network of VMs.
    Network(Port),
}

/// What network cards count, by id.
pub type Cards = BTreeMap<String, Arc<NetCounters>>;

/// All devices.
pub struct Board {
    serial: Arc<Serial>,
    virtio: Vec<(String, Arc<VirtioMmio>)>,
    captured: Vec<(String, Arc<LiveDisk>)>,
    cards: Cards,
    generation_id: VmGenId,
    power_button: Line,
    generation_changed: Line,
    power: PowerSink,
    asked: Asked,
}

/// What the guest has asked for first: with that this machine ends, as soon as somebody comes to it. A checkpoint may
/// come before.
type Asked = Arc<OnceLock<PowerEvent>>;
/// What it is called in a saved state.
const ASKED: &str = "power";

/// A board with what other parts of the machine take from it.
pub struct Assembled {
    /// The board.
    pub board: Board,
    /// For the vCPUs.
    pub buses: Buses,
    /// For the I/O thread.
    pub subscribers: Vec<Subscriber>,
    /// For it, too: the card's place in a network of VMs.
    pub port: Option<Port>,
}

impl Board {
    /// How many virtio devices a machine with these backends has.
    pub fn virtio_devices(disks: usize, nics: usize) -> usize {
        disks + nics + 1
    }

    /// Puts the devices on their buses.
    ///
    /// # Errors
    /// If there are too many, one cannot use its backend, or KVM refuses an interrupt line.
    pub fn assemble(vm: &VmFd, ram: &GuestRam, backends: Backends, notify: &Notify) -> Result<Assembled> {
        let Backends { disks, nics, mut console, leave } = backends;
        let mut buses = Buses { ports: Bus::new(), mmio: Bus::new() };
        let serial = Arc::new(Serial::new(console.take_output(), Arc::new(Line::new(vm, layout::SERIAL_GSI)?))?);
        let input = console.into_input(Arc::clone(&serial), leave);
        let mut slots = Slots { vm, ram, virtio: Vec::new(), subscribers: vec![Box::new(input)] };
        let mut captured = Vec::new();
        for disk in disks {
            let DiskBackend { id, disk, read_only, captured: is_captured } = disk;
            let blk = BlkConfig { id: id.clone(), disk: Arc::clone(&disk), read_only };
            slots.add(format!("disk/{id}"), Box::new(Blk::new(blk)?), &mut buses.mmio)?;
            if is_captured {
                captured.push((id, disk));
            }
        }
        let (mut cards, mut place) = (Cards::new(), None);
        for nic in nics {
            let link: Box<dyn Link> = match nic.link {
                NicLink::Tap(tap) => Box::new(tap),
                NicLink::Network(port) => {
                    place = Some(port.clone());
                    Box::new(port)
                }
            };
            let net = Net::new(NetConfig { link, mac: nic.mac })?;
            cards.insert(nic.id.clone(), net.counters());
            slots.add(format!("nic/{}", nic.id), Box::new(net), &mut buses.mmio)?;
        }
        slots.add("rng".into(), Box::new(Rng::new()), &mut buses.mmio)?;
        let Slots { virtio, subscribers, .. } = slots;
        let asked = Asked::default();
        let power = power_sink(&asked, notify);
        add_ports(&mut buses.ports, &serial, &power)?;
        let board = Board {
            serial,
            virtio,
            captured,
            cards,
            generation_id: VmGenId::new(GuestAddress(layout::VM_GENERATION_ID)),
            power_button: Line::new(vm, layout::POWER_BUTTON_GSI)?,
            generation_changed: Line::new(vm, layout::VM_GENERATION_GSI)?,
            power,
            asked,
        };
        Ok(Assembled { board, buses, subscribers, port: place })
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.power_button.raise();
    }

    /// The disks whose contents belong to a checkpoint.
    pub fn captured_disks(&self) -> &[(String, Arc<LiveDisk>)] {
        &self.captured
    }

    /// What the network cards count, by id.
    pub fn cards(&self) -> &Cards {
        &self.cards
    }

    /// Takes nothing new from the guest and waits for what is in flight. The I/O thread is parked; vCPUs may run.
    ///
    /// # Errors
    /// If a device does not come to rest.
    pub fn drain(&self) -> Result<()> {
        self.virtio.iter().try_for_each(|(_, device)| device.drain().map_err(Error::from))
    }

    /// The opposite of [`Board::drain`].
    pub fn undrain(&self) {
        self.virtio.iter().for_each(|(_, device)| device.undrain());
    }

    /// Saves every device. The board is drained and the vCPUs are parked.
    ///
    /// # Errors
    /// If a device cannot be saved.
    pub fn save(&self, states: &mut StateMap) -> Result<()> {
        states.put("serial", &self.serial.save()?)?;
        for (name, device) in &self.virtio {
            states.put(&format!("virtio/{name}"), &device.save()?)?;
        }
        if let Some(event) = self.asked.get() {
            states.put(ASKED, event)?;
        }
        Ok(())
    }

    /// Restores every device.
    ///
    /// # Errors
    /// If a state is missing or does not fit its device.
    pub fn restore(&self, states: &mut StateMap) -> Result<()> {
        self.serial.restore(states.take("serial")?)?;
        for (name, device) in &self.virtio {
            device.restore(states.take(&format!("virtio/{name}"))?)?;
        }
        if states.names().any(|name| name == ASKED) {
            // Of a machine that nobody has run.
            let _ = self.asked.set(states.take(ASKED)?);
        }
        Ok(())
    }

    /// After a restore: eventfd counts and interrupts on their way are not state, so every queue is kicked and every
    /// pending interrupt raised again. What the guest had asked for is told again.
    pub fn kick(&self) {
        self.asked.get().iter().for_each(|event| (self.power)(**event));
        self.serial.kick();
        self.virtio.iter().for_each(|(_, device)| device.kick());
    }

    /// Tells the guest that it may have a twin: it mixes the new ID into its random numbers.
    ///
    /// # Errors
    /// If the ID cannot be written.
    pub fn new_generation(&self, ram: &GuestRam) -> Result<()> {
        self.generation_id.write_new(ram)?;
        self.generation_changed.raise();
        Ok(())
    }
}

struct Slots<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    virtio: Vec<(String, Arc<VirtioMmio>)>,
    subscribers: Vec<Subscriber>,
}

impl Slots<'_> {
    fn add(&mut self, name: String, device: Box<dyn VirtioDevice>, mmio: &mut Bus) -> Result<()> {
        let slot = self.virtio.len();
        if slot >= layout::VIRTIO_MMIO_MAX {
            let what = format!("more than {} virtio devices", layout::VIRTIO_MMIO_MAX);
            return Err(ConfigError::field("disks and nics", what, "give the VM fewer").into());
        }
        let base = layout::VIRTIO_MMIO_BASE + slot as u64 * layout::VIRTIO_MMIO_STRIDE;
        let line = Arc::new(Line::new(self.vm, layout::VIRTIO_MMIO_GSI + slot as u32)?);
        let transport = VirtioMmio::new(self.ram.clone(), device, line)?;
        let notify = IoEventAddress::Mmio(base + layout::VIRTIO_MMIO_NOTIFY);
        for (queue, event) in transport.queue_events().iter().enumerate() {
            self.vm
                .register_ioevent(event, &notify, queue as u32)
                .map_err(Error::kvm("registering an ioeventfd for a virtqueue"))?;
        }
        mmio.insert(base, layout::VIRTIO_MMIO_STRIDE, Arc::clone(&transport) as Arc<dyn BusDevice>)?;
        self.subscribers.push(Box::new(transport.subscriber()));
        self.virtio.push((name, transport));
        Ok(())
    }
}

fn power_sink(asked: &Asked, notify: &Notify) -> PowerSink {
    let (asked, notify) = (Arc::clone(asked), notify.clone());
    Arc::new(move |event| {
        if event != PowerEvent::CrashLoaded {
            // Only the first counts: a guest that is still there when it is off tries the next way.
            let _ = asked.set(event);
        }
        notify.send(MachineEvent::Power(event));
    })
}

fn add_ports(ports: &mut Bus, serial: &Arc<Serial>, sink: &PowerSink) -> Result<()> {
    let mut add = |port: u16, count: u16, device: Arc<dyn BusDevice>| ports.insert(port.into(), count.into(), device);
    add(layout::SERIAL_PORT, layout::SERIAL_PORTS, Arc::clone(serial) as Arc<dyn BusDevice>)?;
    add(layout::I8042_PORT, layout::I8042_PORTS, Arc::new(I8042::new(Arc::clone(sink))))?;
    add(layout::POWER_PORT, layout::POWER_PORTS, Arc::new(PowerPort::new(Arc::clone(sink))))?;
    add(layout::PVPANIC_PORT, 1, Arc::new(PvPanic::new(Arc::clone(sink))))?;
    Ok(())
}

/// An interrupt line: an irqfd on a pin of the I/O APIC.
#[derive(Debug)]
pub struct Line(EventFd);

impl Line {
    fn new(vm: &VmFd, gsi: u32) -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(Error::os("creating an eventfd"))?;
        vm.register_irqfd(&event, gsi).map_err(Error::kvm("registering an irqfd"))?;
        Ok(Line(event))
    }
}

impl InterruptLine for Line {
    fn raise(&self) {
        // KVM takes the count at once; it cannot overflow.
        drop(self.0.write(1));
    }
}
