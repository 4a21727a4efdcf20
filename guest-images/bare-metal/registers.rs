//! `job=registers`: the CPU's registers hold what is found nowhere else. They are filled, the CPU counts down for some
//! milliseconds (when a checkpoint will find it), and then they are compared; again and again with other values.

use crate::jobs::{Account, TICKS_A_POLL};
use crate::machine::{Boot, has_avx};
use crate::model::{Header, MAGIC, VERSION, value};
use crate::{panicked, ram_mib};

/// Iterations of the counting down.
const SPINS: u64 = 1 << 22;
const GENERAL: [&str; 14] =
    ["rax", "rbx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

/// rcx counts; rsp is seen in that we return.
#[derive(Clone, Copy)]
#[repr(C)]
struct Registers {
    general: [u64; GENERAL.len()],
    vector: [[u64; 4]; 16],
}

unsafe extern "sysv64" {
    /// Loads all registers from `wanted`, counts down from `spins`, stores them to `found`. `avx`: ymm, else xmm.
    fn hold_registers(wanted: *const Registers, found: *mut Registers, spins: u64, avx: u64);
}

core::arch::global_asm!(
    r#"
    .section .text.hold_registers, "ax"
    .macro general instruction
    .set at, 0
    .irp name, rax, rbx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
    \instruction \name, at
    .set at, at + 8
    .endr
    .endm
    .macro load name, at
    mov \name, [rcx + \at]
    .endm
    .macro store name, at
    mov [rcx + \at], \name
    .endm
    .globl hold_registers
hold_registers:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rcx                      # [rsp + 16] avx
    push rsi                      # [rsp + 8]  found
    push rdx                      # [rsp]      spins
    test rcx, rcx
    mov rcx, rdi
    jz 2f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu ymm\n, [rcx + 112 + \n * 32]
    .endr
    jmp 3f
2:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu xmm\n, [rcx + 112 + \n * 32]
    .endr
3:
    general load
    mov rcx, [rsp]
4:  dec rcx
    jnz 4b
    mov rcx, [rsp + 8]
    general store
    cmp qword ptr [rsp + 16], 0
    je 5f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovdqu [rcx + 112 + \n * 32], ymm\n
    .endr
    vzeroupper
    jmp 6f
5:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqu [rcx + 112 + \n * 32], xmm\n
    .endr
6:
    add rsp, 24
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"#
);

/// Never ends, but by a register that has changed.
pub fn watch(boot: &Boot) -> ! {
    let avx = has_avx();
    let width = if avx { 4 } else { 2 };
    let mut account = Account::open(TICKS_A_POLL, Header { magic: MAGIC, version: VERSION, ..Header::EMPTY });
    say!("ready job=registers protocol={} ram_mib={} avx={}", boot.protocol(), ram_mib(boot), u8::from(avx));
    for pass in 0u64.. {
        let wanted = Registers {
            general: core::array::from_fn(|n| value(pass, n as u64)),
            vector: core::array::from_fn(|n| core::array::from_fn(|part| value(pass, (n * 4 + part + 64) as u64))),
        };
        let mut found = Registers { general: [0; GENERAL.len()], vector: [[0; 4]; 16] };
        // SAFETY: the function keeps to the calling convention, and CPL 3 has AVX if has_avx() says so.
        unsafe { hold_registers(&wanted, &mut found, SPINS, avx.into()) };
        for (name, (expected, found)) in GENERAL.iter().zip(wanted.general.iter().zip(&found.general)) {
            if expected != found {
                say!("registers CHANGED name={name} expected={expected:#x} found={found:#x}");
                panicked()
            }
        }
        for (n, (expected, found)) in wanted.vector.iter().zip(&found.vector).enumerate() {
            if expected[..width] != found[..width] {
                say!("registers CHANGED name=ymm{n} expected={expected:x?} found={found:x?}");
                panicked()
            }
        }
        account.look();
    }
    panicked()
}
