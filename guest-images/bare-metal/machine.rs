//! The machine as CPL 3 sees it: ports, the serial line, the TSC, and what the VMM left in memory.

use core::arch::asm;
use core::fmt;

/// I/O ports of the machine (ckvmm's, and where they are the PC's, everybody's).
pub mod port {
    pub const PIC_1_MASK: u16 = 0x21;
    pub const PIC_2_MASK: u16 = 0xa1;
    pub const TIMER_2: u16 = 0x42;
    pub const TIMER_COMMAND: u16 = 0x43;
    pub const TIMER_2_GATE: u16 = 0x61;
    pub const I8042_COMMAND: u16 = 0x64;
    pub const SERIAL: u16 = 0x3f8;
    pub const PVPANIC: u16 = 0x505;
    pub const SLEEP_CONTROL: u16 = 0x600;
    pub const RESET: u16 = 0x602;
}

/// What boot.s does at CPL 0 for us.
#[derive(Clone, Copy)]
enum Call {
    /// Nothing: shows that exceptions come and go.
    Nothing = 0x636b_0000,
    ReadPort = 0x636b_0001,
    WritePort = 0x636b_0002,
    TripleFault = 0x636b_0003,
    StartSecond = 0x636b_0004,
    SetKvmclock = 0x636b_0005,
    Halt = 0x636b_0006,
}

fn call(service: Call, place: u32, value: u8) -> u8 {
    let answer: u32;
    // SAFETY: boot.s' handler steps over the instruction and changes no register but eax. (It may cause what touches
    // memory, so this does not say `nomem`.)
    unsafe {
        asm!("ud2", inlateout("eax") service as u32 => answer, in("edx") place, in("ecx") u32::from(value))
    }
    answer as u8
}

pub fn write_port(port: u16, value: u8) {
    call(Call::WritePort, port.into(), value);
}

pub fn read_port(port: u16) -> u8 {
    call(Call::ReadPort, port.into(), 0)
}

/// To CPL 0 and back.
pub fn visit_cpl_0() {
    call(Call::Nothing, 0, 0);
}

pub fn triple_fault() {
    call(Call::TripleFault, 0, 0);
}

pub fn start_second_cpu() {
    call(Call::StartSecond, 0, 0);
}

/// Tells KVM where its clock's page is (address, and bit 0: it is to be filled in).
pub fn set_kvmclock(page: u32) {
    call(Call::SetKvmclock, page, 0);
}

/// Halts this CPU for so many ns.
pub fn halt(ns: u32) {
    call(Call::Halt, ns, 0);
}

pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) }
    (u64::from(high) << 32) | u64::from(low)
}

/// TSC ticks a second, by the PC's timer: its channel 2 counts down from 0x800, once. Whoever takes the CPU away
/// meanwhile makes that longer, so the shortest of some is right.
pub fn tsc_hz() -> u64 {
    const TIMER_HZ: u64 = 1_193_182;
    const TRIES: usize = 32;
    write_port(port::TIMER_2_GATE, 1); // counts, and the speaker is off
    let count = || {
        write_port(port::TIMER_COMMAND, 0xb0); // channel 2, both bytes, mode 0
        write_port(port::TIMER_2, 0x00);
        let begin = tsc();
        write_port(port::TIMER_2, 0x08);
        while read_port(port::TIMER_2_GATE) & 0x20 == 0 {}
        tsc() - begin
    };
    let shortest = (0..TRIES).fold(u64::MAX, |shortest, _| shortest.min(count()));
    shortest * TIMER_HZ / 0x800
}

/// Whether boot.s has turned AVX on.
pub fn has_avx() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AVX: u64 = 1 << 2;
    // SAFETY: every 64-bit CPU has CPUID. (Newer compilers know that.)
    #[allow(unused_unsafe)]
    let features = unsafe { core::arch::x86_64::__cpuid(1) };
    if features.ecx & OSXSAVE == 0 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: with OSXSAVE, XCR0 can be read.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) }
    (u64::from(high) << 32 | u64::from(low)) & AVX != 0
}

/// The serial line, 115200 8N1, polled.
pub struct Serial;

impl Serial {
    pub fn init() {
        for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0x07), (4, 0x03)] {
            write_port(port::SERIAL + register, value);
        }
    }

    pub fn put(byte: u8) {
        while read_port(port::SERIAL + 5) & 0x20 == 0 {}
        write_port(port::SERIAL, byte);
    }

    pub fn get() -> Option<u8> {
        (read_port(port::SERIAL + 5) & 1 != 0).then(|| read_port(port::SERIAL))
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(Serial::put);
        Ok(())
    }
}

/// A line on the serial line. It begins with `CKVMM`, as the Debian guest's do.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        let _ = core::fmt::Write::write_fmt(&mut $crate::machine::Serial, format_args!("CKVMM {}\r\n", format_args!($($part)*)));
    }};
}

/// What the VMM left in memory for its guest.
pub struct Boot {
    address: u64,
    pvh: bool,
}

/// Type of RAM in either memory map.
const RAM: u32 = 1;
/// Bytes of command line that are looked at.
const LONGEST_COMMAND_LINE: usize = 4096;

impl Boot {
    /// `address` is that of hvm_start_info for PVH, else of boot_params.
    ///
    /// # Safety
    /// It must be what boot.s got from the VMM.
    pub unsafe fn new(address: u64, pvh: bool) -> Self {
        Self { address, pvh }
    }

    pub fn protocol(&self) -> &'static str {
        if self.pvh { "pvh" } else { "linux" }
    }

    fn read<T: Copy>(&self, offset: u64) -> T {
        // SAFETY: the structures of both protocols lie in RAM below 1 GiB, which is mapped where it is.
        unsafe { ((self.address + offset) as *const T).read_unaligned() }
    }

    pub fn command_line(&self) -> &'static str {
        let address: u64 = if self.pvh {
            self.read(24)
        } else {
            u64::from(self.read::<u32>(0x228)) | u64::from(self.read::<u32>(0xc8)) << 32
        };
        if address == 0 {
            return "";
        }
        let start = address as *const u8;
        // SAFETY: a string in mapped RAM that ends with a zero; nobody changes it.
        let bytes = unsafe {
            let length = (0..LONGEST_COMMAND_LINE).find(|&i| *start.add(i) == 0);
            core::slice::from_raw_parts(start, length.unwrap_or(LONGEST_COMMAND_LINE))
        };
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// RAM, as (address, bytes).
    pub fn ram(&self) -> impl Iterator<Item = (u64, u64)> {
        let (map, entries, bytes): (u64, u64, u64) = if self.pvh {
            (self.read(40), self.read::<u32>(48).into(), 24)
        } else {
            (self.address + 0x2d0, self.read::<u8>(0x1e8).into(), 20)
        };
        let map = Boot { address: map, pvh: self.pvh };
        (0..entries)
            .map(move |entry| entry * bytes)
            .filter_map(move |at| (map.read::<u32>(at + 16) == RAM).then(|| (map.read(at), map.read(at + 8))))
    }
}

/// `NAME=value` of the command line; the last one counts.
pub fn parameter<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    command_line.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')).next_back()
}

/// As [`parameter`], a number: decimal, or hexadecimal after 0x.
pub fn number(command_line: &str, name: &str, default: u64) -> Option<u64> {
    match parameter(command_line, name) {
        None => Some(default),
        Some(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
    }
}

// What compilers take for granted. (`core` was compiled for unwinding, which never happens here.)
core::arch::global_asm!(
    ".section .text.memory, \"ax\"",
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    ".globl rust_eh_personality",
    "rust_eh_personality: ud2",
    "memmove: cmp rdi, rsi; jbe memcpy",
    "mov rax, rdi; mov rcx, rdx; lea rdi, [rdi + rdx - 1]; lea rsi, [rsi + rdx - 1]; std; rep movsb; cld; ret",
    "memcpy: mov rax, rdi; mov rcx, rdx; rep movsb; ret",
    "memset: mov r8, rdi; mov eax, esi; mov rcx, rdx; rep stosb; mov rax, r8; ret",
    "bcmp: memcmp: mov rcx, rdx; xor eax, eax; repe cmpsb; je 2f",
    "movzx eax, byte ptr [rdi - 1]; movzx ecx, byte ptr [rsi - 1]; sub eax, ecx; 2: ret",
);
