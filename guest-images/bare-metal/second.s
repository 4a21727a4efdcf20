# A second CPU: how it is started, and its way to CPL 3. It begins in real mode, at a page below 1 MiB.

.set TRAMPOLINE, 0x8000         # a page that the VMM left nothing in, or nothing that is still read
.set TRAMPOLINE_GDT, 0x8008
.set TRAMPOLINE_BYTES, 128
.set SEND_INIT, 0x4500
.set SEND_STARTUP, 0x4600 + (TRAMPOLINE >> 12)

.section .boot, "ax"

# Service 4: starts the CPU whose APIC has ID 1. Changes eax only.
start_second:
    push rcx
    push rdx
    push rsi
    push rdi
    mov esi, offset trampoline
    mov edi, TRAMPOLINE
    mov ecx, TRAMPOLINE_BYTES
    rep movsb
    mov ecx, APIC_BASE
    rdmsr
    or eax, X2APIC_ENABLED
    wrmsr
    mov ecx, ICR
    mov edx, 1
    mov eax, SEND_INIT
    wrmsr
    mov eax, SEND_STARTUP
    wrmsr
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    add qword ptr [rsp], 2
    iretq

    .code16
    .balign 8
trampoline:
    jmp 2f
    .balign 8
    .short gdt_end - gdt - 1    # TRAMPOLINE_GDT
    .long gdt
2:  cli
    cld
    xor eax, eax
    mov ds, ax
    lgdt [TRAMPOLINE_GDT]
    mov eax, cr4
    or eax, 0x20                # PAE
    mov cr4, eax
    mov eax, PAGE_MAP
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    mov eax, cr0
    and eax, 0x9fffffff         # the caches on: CD, NW
    or eax, 0x80000001          # PG, PE
    mov cr0, eax
    .byte 0x66, 0xea            # far jump
    .long second_long_mode
    .short KERNEL_CODE
    .org trampoline + TRAMPOLINE_BYTES
    .code64

second_long_mode:
    mov eax, KERNEL_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, offset second_kernel_stack_top
    call vectors
    mov eax, offset second_tss
    mov edi, offset gdt_second_task
    mov ecx, SECOND_TASK
    call load_task
    lidt [idt_pointer]
    push USER_DATA
    push offset second_user_stack_top - 8 # as if it had been called
    push 0x2                    # interrupts off
    push USER_CODE
    push offset second_main
    iretq

    .balign 8
second_tss:
    .long 0
    .quad second_kernel_stack_top
    .zero 90
    .short 104                  # no I/O map
    .balign 16
second_kernel_stack:
    .zero 4096
second_kernel_stack_top:

.section .bss.second_stack, "aw", @nobits
    .balign 16
    .zero 0x4000
second_user_stack_top:
