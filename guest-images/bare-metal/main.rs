//! A small guest of our own: no operating system, one CPU or two, at CPL 3 nearly all the time. It runs on any KVM, also on
//! those that emulate CPL 0, and boots by Linux' 64-bit protocol and by PVH (boot.s). Its command line says what to do:
//!
//! ```text
//! job=hello                      says so and turns off (the default)
//! job=write seed=N mib=N hot=N   fills N MiB with a sequence, then rewrites the first hot=N MiB of them for ever
//!           burst=N period=N     N steps each `period` TSC ticks, then rests; period=0 (default): without rest
//!           at=high              the arena in the highest RAM, not in the lowest
//!           more=N               fills N MiB elsewhere as well: RAM is not in one piece where there is much of it
//!           poll=N               looks at the serial line every N TSC ticks (2^26)
//! job=sweep seed=N mib=N hot=N   fills N MiB, then writes a word of the next page of the first hot=N MiB and looks at
//!           how=read|write       the TSC, over and over; how=read: reads it
//!           cpus=1|2             on so many CPUs, each over all of the hot set
//! job=pagefill seed=N mib=N      fills and does nothing more
//! job=disks seed=N mib=N flush=N fills N MiB, then writes 1, 2, 3, … to RAM, to disk 0 and to disk 1, each when the one
//!                                before is done (disk_model.rs), and flushes both every N (16)
//! job=net peers=N me=I           node I, from 0, of N nodes that send each other numbered frames and look for gaps:
//!                                net_model.rs, net_node.rs
//!         rate=N                 N numbered frames a second; 0 (default): as fast as they go
//!         bytes=N                of a numbered frame (1514)
//!         broadcast=1/N          one numbered frame in N is to everybody; none by default
//!         window=N               numbered frames to a node that may be under way; by default 64, or what has a place in
//!                                the receive queue of a node to which all others send so many
//! job=time                       looks at the TSC only
//!           rest=N               job=pagefill too: halts N ns between two looks; 0 (default): never
//! job=echo                       sends back what comes in on the serial line
//! job=registers                  fills the CPU's registers and looks for ever whether they are still the same
//! job=reboot via=i8042|acpi      restarts the machine
//! job=panic                      tells pvpanic
//! job=triple                     triple-faults
//! ```
//!
//! Defaults: seed=1 mib=16 hot=mib burst=1. write, sweep, disks, net, pagefill and time keep account in memory: model.rs.
//! While one of the jobs runs that never end, it takes a byte from the serial line now and then: `s` prints status, `r`
//! forgets the gaps seen so far, `a` reads a word of every page that was filled, `p` is answered by an empty line, `t` by
//! the time, `q` turns off, `b` restarts the machine, `c` tells pvpanic; `x` ends what `job=net` sends.
//!
//! Lines on the serial line, each begins with `CKVMM`:
//!
//! ```text
//! CKVMM hello protocol=linux|pvh ram_mib=N
//! CKVMM time tsc=N kvmclock=N                                                 the answer to t; ns
//! CKVMM ready job=NAME protocol=… ram_mib=N seed=N arena=0x… bytes=N hot=N     for jobs that never end
//! CKVMM filled steps=N                                                         the arena is full
//! CKVMM found disk0=N disk1=N                                                  the newest numbers on the disks, at boot
//! CKVMM flushed n=N                                                            both disks have said so
//! CKVMM status steps=N units=N longest_gap=N longest_gap_unit=N backwards=N tsc=N
//! CKVMM read bytes=N                                                           what `a` has read
//! CKVMM net from=J received=N lost=N duplicated=N reordered=N corrupt=N next=N  before status, for each other node
//! CKVMM net broadcasts from=J received=N lost=N duplicated=N reordered=N next=N its frames to everybody
//! CKVMM net sent=N broadcasts=N acknowledged=N corrupt=N astray=N ahead=N foreign=N
//! CKVMM net final drained=yes|no sent=N …                                      after `x` and the lines above, once
//! CKVMM registers CHANGED name=… expected=… found=…
//! CKVMM poweroff | reboot via=… | panic | triple                               just before
//! CKVMM error …                                                                then pvpanic
//! CKVMM fault vector=N error=0x… rip=0x… cr2=0x…                               our own bug or the machine's; pvpanic
//! ```

#![no_std]
#![no_main]

#[macro_use]
mod machine;
mod card;
mod clock;
mod disk;
mod disk_model;
mod disks;
mod jobs;
#[expect(dead_code, reason = "who checks our memory uses the rest")]
mod model;
mod net;
#[expect(dead_code, reason = "who checks our memory uses the rest")]
mod net_model;
mod net_node;
mod registers;
mod second;
mod virtio;

use machine::{Boot, Serial, parameter, port, triple_fault, tsc, visit_cpl_0, write_port};

core::arch::global_asm!(concat!(include_str!("boot.s"), include_str!("cpu.s"), include_str!("apic.s"), include_str!("second.s")));

/// Where boot.s goes to, at CPL 3.
///
/// # Safety
/// Called once, by boot.s, with what the VMM gave it.
#[unsafe(no_mangle)]
unsafe extern "sysv64" fn guest_main(boot: u64, pvh: u64) -> ! {
    write_port(port::PIC_1_MASK, 0xff);
    write_port(port::PIC_2_MASK, 0xff);
    Serial::init();
    visit_cpl_0();
    // SAFETY: this is what boot.s got from the VMM.
    let boot = unsafe { Boot::new(boot, pvh != 0) };
    let line = boot.command_line();
    match parameter(line, "job").unwrap_or("hello") {
        "hello" => {
            say!("hello protocol={} ram_mib={}", boot.protocol(), ram_mib(&boot));
            power_off()
        }
        name @ ("write" | "sweep" | "pagefill" | "time") => jobs::memory(name, &boot),
        "disks" => disks::run(&boot),
        "net" => net::run(&boot),
        "echo" => jobs::echo(&boot),
        "registers" => registers::watch(&boot),
        "reboot" => reboot(parameter(line, "via").unwrap_or("i8042")),
        "panic" => {
            say!("panic");
            panicked()
        }
        "triple" => {
            say!("triple");
            triple_fault();
            fail(format_args!("a triple fault went by"))
        }
        other => fail(format_args!("no job '{other}'")),
    }
}

fn ram_mib(boot: &Boot) -> u64 {
    boot.ram().map(|(_, bytes)| bytes).sum::<u64>() >> 20
}

/// Turns the machine off, by the sleep control register of ACPI without hardware registers (ACPI 6.5 §4.8.3.7: S5 is
/// sleep type 5 here). A VMM that has none is left by a reset.
fn power_off() -> ! {
    say!("poweroff");
    write_port(port::SLEEP_CONTROL, 5 << 2 | 1 << 5);
    // The CPU may be let run for a while after that.
    let begin = tsc();
    while tsc().wrapping_sub(begin) < 1 << 34 {
        core::hint::spin_loop();
    }
    write_port(port::I8042_COMMAND, 0xfe);
    triple_fault();
    rest()
}

fn reboot(via: &str) -> ! {
    say!("reboot via={via}");
    match via {
        "i8042" => write_port(port::I8042_COMMAND, 0xfe),
        "acpi" => write_port(port::RESET, 1),
        _ => fail(format_args!("no way to reboot '{via}'")),
    }
    rest()
}

/// Says what is wrong, and panics as a guest's kernel does.
fn fail(what: core::fmt::Arguments<'_>) -> ! {
    say!("error {what}");
    panicked()
}

fn panicked() -> ! {
    write_port(port::PVPANIC, 1);
    rest()
}

/// CPL 3 cannot halt, and nothing is to wake this CPU.
fn rest() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Where boot.s tells of an exception.
#[unsafe(no_mangle)]
extern "sysv64" fn user_fault(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    say!("fault vector={vector} error={error:#x} rip={rip:#x} cr2={cr2:#x}");
    panicked()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
