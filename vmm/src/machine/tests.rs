//! Machines built, saved and restored on this host's KVM, and what they refuse.

mod sizes;

use std::{
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use ckvmm_devices::PowerEvent;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip, kvm_msr_entry};
use serde_json::{Value, json};
use vm_memory::{Bytes, GuestAddress};

use super::{events::MachineEvent, *};
use crate::{arch::layout, config, host::console::Console};

const RAM: u64 = 16 << 20;
const CODE: u64 = layout::HIMEM_START;
/// Where the guest of [`CLOCK_READER`] leaves the TSC that it saw first.
const FIRST_TSC: u64 = 0x20_0000;
/// rdtsc; shl rdx, 32; or rax, rdx; mov [FIRST_TSC], rax; jmp $
const CLOCK_READER: [u8; 19] =
    [0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xfe];

/// False, with the reason on standard error, if this host has no KVM for us.
fn has_kvm() -> bool {
    kvm::open().map_err(|error| eprintln!("skipped: {error}")).is_ok()
}

fn machine(vcpus: u32, ram: u64) -> Machine {
    machine_that_tells(vcpus, ram, &Notify::new(|_| {}))
}

fn machine_that_tells(vcpus: u32, ram: u64, notify: &Notify) -> Machine {
    let console = Console::open(&config::Serial::None, None).unwrap();
    let backends = Backends { disks: vec![], nics: vec![], console, leave: Box::new(|| {}) };
    let hardware = Hardware::begin().unwrap().shaped(Ram::zeroed(ram).unwrap(), vcpus);
    Machine::build(hardware.finish().unwrap(), backends, notify).unwrap()
}

/// A machine that is about to run `code`.
fn at_entry(mut machine: Machine, code: &[u8]) -> Machine {
    machine.ram().memory().write_slice(code, GuestAddress(CODE)).unwrap();
    machine.pause().unwrap().set_entry(Entry::Linux(CODE)).unwrap();
    machine
}

fn with_clock_reader(vcpus: u32) -> Machine {
    at_entry(machine(vcpus, RAM), &CLOCK_READER)
}

/// Gives everything that KVM holds values that a new machine does not have.
fn disturb(machine: &Machine) {
    for (number, fd) in machine.vcpus.lock().iter().enumerate() {
        let mark = 0x1111_0000 + number as u64;
        let mut regs = fd.get_regs().unwrap();
        (regs.rax, regs.r15, regs.rip, regs.rflags) = (mark, !mark, 0x1234, 0x246);
        fd.set_regs(&regs).unwrap();
        let mut sregs = fd.get_sregs().unwrap();
        (sregs.fs.base, sregs.gs.base, sregs.cr2) = (mark, mark << 8, mark << 4);
        fd.set_sregs(&sregs).unwrap();
        let mut debug = fd.get_debug_regs().unwrap();
        debug.db[0] = mark;
        fd.set_debug_regs(&debug).unwrap();
        let mut fpu = fd.get_fpu().unwrap();
        (fpu.fcw, fpu.mxcsr) = (0x27f, 0x1fa0);
        fpu.xmm.iter_mut().for_each(|register| register.fill(number as u8 | 0x50));
        fd.set_fpu(&fpu).unwrap();
        let mut lapic = fd.get_lapic().unwrap();
        (lapic.regs[0x80], lapic.regs[0xf1]) = (0x20, 0x01); // task priority; software enable
        fd.set_lapic(&lapic).unwrap();
        let syscall_entry =
            kvm_msr_entry { index: 0xc000_0082, data: 0xffff_8000_0000_0000 | mark, ..Default::default() };
        assert_eq!(fd.set_msrs(&kvm_bindings::Msrs::from_entries(&[syscall_entry]).unwrap()).unwrap(), 1);
    }
    // The line that a restore raises too (the new VM generation ID), so that it is pending before and after.
    machine.vm.set_irq_line(layout::VM_GENERATION_GSI, true).unwrap();
    machine.vm.set_irq_line(layout::VM_GENERATION_GSI, false).unwrap();
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    machine.vm.get_irqchip(&mut chip).unwrap();
    // SAFETY: this variant of the union is the one of KVM_IRQCHIP_IOAPIC, and any bits are valid in it.
    unsafe { chip.chip.ioapic.redirtbl[5].bits = 0x1_0000 | 0x35 };
    machine.vm.set_irqchip(&chip).unwrap();
    let mut pit = machine.vm.get_pit2().unwrap();
    (pit.channels[2].count, pit.channels[2].mode) = (0x4321, 3);
    machine.vm.set_pit2(&pit).unwrap();
}

fn save(machine: &mut Machine) -> StateMap {
    machine.pause().unwrap().save().unwrap().0
}

fn restore(machine: &mut Machine, states: StateMap) -> Result<()> {
    machine.pause().unwrap().restore(states, ClockPolicy::Freeze, Host::Other)
}

/// The error of restoring `states` into a machine of `vcpus` vCPUs.
fn refused(vcpus: u32, states: StateMap) -> String {
    restore(&mut machine(vcpus, RAM), states).unwrap_err().to_string()
}

/// A vCPU's state with one of its fields changed.
fn with_changed(states: &mut StateMap, field: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let mut state = serde_json::to_value(states.take::<VcpuState>("vcpu/0").unwrap()).unwrap();
    change(state[field].as_array_mut().unwrap());
    states.put("vcpu/0", &serde_json::from_value::<VcpuState>(state).unwrap()).unwrap();
}

/// Each state as JSON, by name.
fn values(mut states: StateMap) -> Value {
    let names: Vec<_> = states.names().map(str::to_owned).collect();
    let mut value = |name: &str| match name {
        "clock" => json!(states.take::<ClockState>(name).unwrap()),
        "vm" => json!(states.take::<VmState>(name).unwrap()),
        name if name.starts_with("vcpu/") => json!(states.take::<VcpuState>(name).unwrap()),
        _ => Value::Null,
    };
    names.iter().map(|name| (name.clone(), value(name))).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn what_is_saved_is_what_was_restored() {
    if !has_kvm() {
        return;
    }
    let (mut from, mut to) = (with_clock_reader(2), machine(2, RAM));
    let new = values(save(&mut from));
    disturb(&from);
    let saved = save(&mut from);
    let before = values(saved.clone());
    for (name, state) in before.as_object().unwrap() {
        assert!(state.is_null() || *state != new[name], "{name} was never anything else");
    }
    restore(&mut to, saved).unwrap();
    same(&before, &values(save(&mut to)), "");
}

/// Compares down to the element that differs.
fn same(before: &Value, after: &Value, place: &str) {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) if a.len() == b.len() => {
            a.iter().for_each(|(name, value)| same(value, &after[name], &format!("{place} {name}")));
        }
        // Long lists are bytes, or pairs of an MSR and its value.
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() && a.len() > 2 => {
            a.iter().zip(b).enumerate().for_each(|(at, (a, b))| same(a, b, &format!("{place}[{at}]")));
        }
        _ => assert_eq!(before, after, "{place}"),
    }
}

#[test]
fn a_state_of_another_machine_is_refused() {
    if !has_kvm() {
        return;
    }
    let of_one = save(&mut with_clock_reader(1));
    let of_two = save(&mut with_clock_reader(2));
    assert!(refused(2, of_one.clone()).contains("vcpu/1"), "{}", refused(2, of_one));
    let error = refused(1, of_two);
    assert!(error.contains("the clocks are of 2 vCPUs, the machine has 1"), "{error}");
    let mut with_more = save(&mut with_clock_reader(1));
    with_more.put("virtio/nic/eth0", &VmState::save(&machine(1, RAM).vm).unwrap()).unwrap();
    let error = refused(1, with_more);
    assert!(error.contains("virtio/nic/eth0"), "{error}");
    assert!(refused(1, StateMap::new()).contains("clock"));
}

#[test]
fn a_state_that_is_cut_off_is_refused() {
    if !has_kvm() {
        return;
    }
    let mut cut = save(&mut with_clock_reader(1));
    with_changed(&mut cut, "xsave", |bytes| bytes.truncate(4095));
    let error = refused(1, cut);
    assert!(error.contains("the XSAVE state has 4095 bytes"), "{error}");
    // Fields of fixed length do not even become a state.
    let mut states = save(&mut with_clock_reader(1));
    let mut state = serde_json::to_value(states.take::<VcpuState>("vcpu/0").unwrap()).unwrap();
    state["lapic"].as_array_mut().unwrap().pop();
    let error = serde_json::from_value::<VcpuState>(state).err().unwrap().to_string();
    assert!(error.contains("kvm_lapic_state") && error.contains("1023 bytes, not 1024"), "{error}");
}

#[test]
fn a_feature_that_this_processor_lacks_is_named() {
    if !has_kvm() {
        return;
    }
    const ENTRY: usize = size_of::<kvm_bindings::kvm_cpuid_entry2>();
    const EBX: usize = 16;
    let lacking = with_clock_reader(1);
    let leaf_7 = lacking.contexts[0].cpuid.as_slice().iter().position(|entry| (entry.function, entry.index) == (7, 0));
    let Some(at) = leaf_7 else { return eprintln!("skipped: this processor has no CPUID leaf 7") };
    let has = kvm::supported_cpuid(&lacking.kvm).unwrap().as_slice().iter().find(|e| e.function == 7).unwrap().ebx;
    let bit = has.trailing_ones();
    let mut states = save(&mut with_clock_reader(1));
    with_changed(&mut states, "cpuid", |bytes| {
        let byte = &mut bytes[at * ENTRY + EBX + bit as usize / 8];
        *byte = (byte.as_u64().unwrap() | 1 << (bit % 8)).into();
    });
    let mut image = lacking.contexts[0].cpuid.clone();
    image.as_mut_slice()[at].ebx |= 1 << bit;
    let names = cpuid::missing_features(&image, &kvm::supported_cpuid(&lacking.kvm).unwrap());
    assert_eq!(names.len(), 1, "{names:?}");
    let error = refused(1, states);
    let expected = format!("the guest uses CPU features that this host lacks: {}; restore it on", names[0]);
    assert!(error.contains(&expected), "{error}");
}

/// What passed on a guest's clocks from its save to its first look at them, in microseconds.
struct Passed {
    tsc: u64,
    kvmclock: u64,
    /// For how long it ran, or longer.
    at_most: u64,
}

/// Saves a guest, waits for `gap`, restores it, waits again, and runs it.
fn time_that_passes(policy: ClockPolicy, gap: Duration) -> Passed {
    let (mut from, mut to) = (with_clock_reader(1), with_clock_reader(1));
    let saved = save(&mut from);
    let clock = values(saved.clone())["clock"].clone();
    thread::sleep(gap);
    to.pause().unwrap().restore(saved, policy, Host::Other).unwrap();
    thread::sleep(gap);
    let begun = Instant::now();
    to.resume().unwrap();
    let ram = to.ram().memory().clone();
    let seen = || ram.read_obj::<u64>(GuestAddress(FIRST_TSC)).unwrap();
    while seen() == 0 && begun.elapsed() < Duration::from_secs(60) {
        thread::yield_now();
    }
    let kvmclock = to.vm.get_clock().unwrap().clock;
    let at_most = begun.elapsed().as_micros() as u64;
    let since_cut = |now: u64, field: &str| {
        let cut = clock[field].as_u64().unwrap();
        now.checked_sub(cut).unwrap_or_else(|| panic!("{field} went back from {cut} to {now}"))
    };
    let tsc = since_cut(seen(), "tsc") * 1000 / clock["tsc_khz"].as_u64().unwrap();
    Passed { tsc, kvmclock: since_cut(kvmclock, "kvmclock_ns") / 1000, at_most }
}

/// False, with the reason on standard error, if guests of this host's KVM have the host's TSC (kvm_pvm).
fn tsc_can_be_set() -> bool {
    let machine = machine(1, RAM);
    let fds = machine.vcpus.lock();
    let read = || msrs::get(&fds[0], 0, &[msrs::IA32_TSC]).unwrap()[0].1;
    let before = read();
    msrs::set(&fds[0], 0, &[(msrs::IA32_TSC, before ^ 1 << 50)]).unwrap();
    let can = read() >> 50 != before >> 50;
    if !can {
        eprintln!("skipped in part: this host's KVM does not let a guest's TSC be set; only kvmclock is looked at");
    }
    can
}

#[test]
fn time_stands_still_from_the_cut_to_the_first_instruction() {
    if !has_kvm() {
        return;
    }
    let has_tsc = tsc_can_be_set();
    let gap = Duration::from_millis(200);
    let Passed { tsc, kvmclock, at_most } = time_that_passes(ClockPolicy::Freeze, gap);
    assert!(kvmclock <= at_most, "kvmclock went on by {kvmclock} µs of {at_most} µs");
    assert!(tsc <= at_most || !has_tsc, "TSC went on by {tsc} µs of {at_most} µs");
    let Passed { tsc, kvmclock, .. } = time_that_passes(ClockPolicy::Passed { less_ns: 0 }, gap);
    let gap = 2 * gap.as_micros() as u64;
    assert!(kvmclock >= gap && tsc >= gap, "{gap} µs passed, {kvmclock} µs for kvmclock and {tsc} µs for the TSC");
}

/// A machine, and what it tells.
fn heard() -> (Machine, Receiver<MachineEvent>) {
    let (told, heard) = mpsc::channel();
    (machine_that_tells(1, RAM, &Notify::new(move |event| drop(told.send(event)))), heard)
}

#[test]
fn what_a_guest_has_asked_for_and_nobody_has_done_is_told_after_a_restore() {
    if !has_kvm() {
        return;
    }
    // mov al, 0xfe; out 0x64, al; jmp $
    let resets = [0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
    let reset = |heard: &Receiver<MachineEvent>| {
        let event = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(event, MachineEvent::Power(PowerEvent::Reset)), "{event:?}");
    };
    let ((from, told), (mut to, again)) = (heard(), heard());
    let mut from = at_entry(from, &resets);
    assert!(!values(save(&mut from)).as_object().unwrap().contains_key("power"));
    from.resume().unwrap();
    reset(&told);
    restore(&mut to, save(&mut from)).unwrap();
    reset(&again);
    assert!(again.try_recv().is_err(), "once");
}
