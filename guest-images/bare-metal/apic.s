# What takes the local APIC, in its x2APIC mode (Intel SDM volume 3, 11.12): to start a second CPU, and to halt one.

.set APIC_BASE, 0x1b
.set X2APIC_ENABLED, 0xc00
.set EOI, 0x80b
.set SPURIOUS, 0x80f
.set ICR, 0x830                 # interrupt command: the destination is its upper half
.set TIMER, 0x832
.set TIMER_COUNT, 0x838
.set TIMER_DIVIDE, 0x83e

.section .boot, "ax"

# Service 6: halts the CPU for edx ns, or what the APIC's clock has for that (KVM's: 1 GHz). Changes eax only.
halt:
    push rcx
    push rdx
    push rdx
    mov ecx, APIC_BASE
    rdmsr
    or eax, X2APIC_ENABLED
    wrmsr
    xor edx, edx
    mov ecx, SPURIOUS
    mov eax, 0x1ff              # software enable
    wrmsr
    mov ecx, TIMER_DIVIDE
    mov eax, 0xb                # by 1
    wrmsr
    mov ecx, TIMER
    mov eax, TIMER_VECTOR       # one-shot
    wrmsr
    mov ecx, TIMER_COUNT
    pop rax
    wrmsr
    sti                         # takes effect after the next instruction: none gets in between
    hlt
    cli
    pop rdx
    pop rcx
    add qword ptr [rsp], 2
    iretq

woken:
    push rax
    push rcx
    push rdx
    mov ecx, EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
