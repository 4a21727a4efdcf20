# From either entry to `guest_main` at CPL 3: everything that runs at CPL 0.
#
# Some KVMs emulate CPL 0 instruction by instruction and know only the common ones, so this is short, plain, and left
# for good: afterwards CPL 0 runs for exceptions only. Two ways in:
#
#   linux_entry   ELF entry; the 64-bit protocol of Documentation/arch/x86/boot.rst: long mode, RSI = boot_params
#   pvh_entry     Xen's PVH note: 32-bit protected mode, no paging, EBX = hvm_start_info
#
# Guest physical memory, all of it mapped where it is (in pages of 2 MiB):
#
#   0                      what the VMM left: boot parameters, command line, memory map, ACPI
#   0x20_0000  user        header page (model.rs), then code, data and stack of CPL 3
#   0x40_0000  supervisor  this file, GDT, IDT, TSS, stack of CPL 0
#   0x50_0000  supervisor  page tables
#   0xa0_0000  user        arenas
#
# Invariant: CPL 3 cannot read or write a page of CPL 0. Interrupts are off, except while a CPU is halted.

.set USER_DATA, 0x2b            # Linux' own selectors: one KVM runs no others at CPL 3
.set USER_CODE, 0x33
.set KERNEL_CODE, 0x10
.set KERNEL_DATA, 0x18
.set TIMER_VECTOR, 32
.set VECTORS, 33
.set TASK, 0x40
.set SECOND_TASK, 0x50

.set PAGE_MAP, 0x500000         # one page
.set POINTERS, 0x501000         # up to four pages, an entry a GiB
.set DIRECTORIES, 0x505000      # a page a GiB
.set MOST_GIB, 1040             # 1 TiB of RAM, and the gap below 4 GiB

.set PRESENT_WRITABLE, 0x3
.set USER, 0x4
.set LARGE, 0x80

.section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18              # sizes of name and descriptor, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

.section .boot, "ax"

# ---- in through PVH -------------------------------------------------------------------------------------------------
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    mov edi, DIRECTORIES        # the first GiB, to get to long mode
    mov eax, PRESENT_WRITABLE | LARGE
2:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add edi, 8
    add eax, 0x200000
    cmp eax, 0x40000000
    jb 2b
    mov dword ptr [POINTERS], DIRECTORIES + PRESENT_WRITABLE
    mov dword ptr [POINTERS + 4], 0
    mov dword ptr [PAGE_MAP], POINTERS + PRESENT_WRITABLE
    mov dword ptr [PAGE_MAP + 4], 0
    mov eax, cr4
    or eax, 0x20                # PAE
    mov cr4, eax
    mov eax, PAGE_MAP
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    lgdt [gdt_pointer]
    mov eax, cr0
    or eax, 0x80000001          # PG, PE
    mov cr0, eax
    .byte 0xea                  # far jump
    .long pvh_long_mode
    .short KERNEL_CODE
    .code64
pvh_long_mode:
    mov ebx, ebx                # hvm_start_info
    mov ebp, 1
    mov r8, [rbx + 40]          # memmap_paddr
    mov r9d, [rbx + 48]         # memmap_entries
    mov r10d, 24                # bytes of one
    jmp both

# ---- in through Linux' protocol -------------------------------------------------------------------------------------
    .globl linux_entry
linux_entry:
    cli
    cld
    mov rbx, rsi                # boot_params
    xor ebp, ebp
    lea r8, [rbx + 0x2d0]       # e820_table
    movzx r9d, byte ptr [rbx + 0x1e8] # e820_entries
    mov r10d, 20

# ---- the same for both: rbx, ebp = what the VMM left; r8, r9, r10 = memory map --------------------------------------
both:
    lgdt [gdt_pointer]
    mov eax, KERNEL_DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, offset kernel_stack_top

    xor r11d, r11d              # the end of RAM. Both maps: address, bytes, type (1 = RAM)
2:  test r9d, r9d
    jz 4f
    cmp dword ptr [r8 + 16], 1
    jne 3f
    mov rax, [r8]
    add rax, [r8 + 8]
    cmp rax, r11
    jbe 3f
    mov r11, rax
3:  add r8, r10
    dec r9d
    jmp 2b
4:  add r11, 0x3fffffff         # in GiB, rounded up: 4 (the devices are in the fourth) to MOST_GIB
    shr r11, 30
    cmp r11, 4
    jae 5f
    mov r11d, 4
5:  cmp r11, MOST_GIB
    jbe 6f
    mov r11d, MOST_GIB

6:  mov edi, DIRECTORIES        # (the first GiB's entries may be in use: they get the same addresses)
    mov r9, r11
    shl r9, 9
    mov eax, PRESENT_WRITABLE | USER | LARGE
7:  mov [rdi], rax
    add rdi, 8
    add rax, 0x200000
    dec r9
    jnz 7b
    and dword ptr [DIRECTORIES + 2 * 8], ~USER # 0x40_0000 to 0xa0_0000
    and dword ptr [DIRECTORIES + 3 * 8], ~USER
    and dword ptr [DIRECTORIES + 4 * 8], ~USER

    mov edi, POINTERS           # what is there may be an earlier life's
    mov eax, DIRECTORIES + PRESENT_WRITABLE + USER
8:  mov [rdi], rax
    add rdi, 8
    add rax, 0x1000
    dec r11
    jnz 8b
9:  test edi, 0xfff
    jz 10f
    mov qword ptr [rdi], 0
    add rdi, 8
    jmp 9b
10: mov eax, PAGE_MAP           # an entry for each page of pointers that was made
    mov ecx, POINTERS + PRESENT_WRITABLE + USER
11: mov [rax], rcx
    add rax, 8
    add rcx, 0x1000
    sub edi, 0x1000
    cmp edi, POINTERS
    ja 11b
12: mov qword ptr [rax], 0
    add rax, 8
    test eax, 0xfff
    jnz 12b
    mov eax, PAGE_MAP
    mov cr3, rax

    call vectors
    mov eax, offset tss         # the task state, for the stack of exceptions
    mov edi, offset gdt_task
    mov ecx, TASK
    call load_task

    mov edi, offset idt         # an interrupt gate for each exception, and for the timer
    mov eax, offset stubs
2:  mov [rdi], ax
    mov word ptr [rdi + 2], KERNEL_CODE
    mov dword ptr [rdi + 4], 0x8e00
    mov ecx, eax
    shr ecx, 16
    mov [rdi + 6], cx
    mov dword ptr [rdi + 8], 0
    add rdi, 16
    add eax, 16
    cmp eax, offset stubs_end
    jb 2b
    lidt [idt_pointer]

    mov rdi, rbx
    mov esi, ebp
    push USER_DATA
    push offset user_stack_top
    push 0x2                    # interrupts off
    push USER_CODE
    push offset user_entry
    iretq

# ---- exceptions -----------------------------------------------------------------------------------------------------
    .balign 16
stubs:                          # 16 bytes each; those without an error code push a zero
    .set vector, 0
    .rept 32
    .if vector == 6
    jmp undefined
    .else
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push 0
    .endif
    push vector
    jmp fault
    .endif
    .balign 16
    .set vector, vector + 1
    .endr
    jmp woken                   # TIMER_VECTOR
    .balign 16
stubs_end:

# `ud2` is the call gate, for not every KVM delivers `syscall` and `int`; and I/O goes through it, for not every KVM
# lets CPL 3 do that, whatever IOPL says. eax = CALL + service, edx = port or address, cl = value; the answer is in eax.
.set CALL, 0x636b0000
undefined:
    cmp eax, CALL + 2
    je 2f
    cmp eax, CALL + 1
    je 3f
    cmp eax, CALL + 3
    je 5f
    cmp eax, CALL + 4
    je start_second             # second.s
    cmp eax, CALL + 5
    je 6f
    cmp eax, CALL + 6
    je halt                     # apic.s
    cmp eax, CALL
    je 4f
    push 0                      # somebody's own ud2
    push 6
    jmp fault
2:  mov al, cl                  # 2: write to a port
    out dx, al
    jmp 4f
3:  xor eax, eax                # 1: read from a port
    in al, dx
4:  add qword ptr [rsp], 2      # 0: nothing: a way to CPL 0 and back
    iretq
6:  push rcx                    # 5: KVM's clock
    push rdx
    mov ecx, 0x4b564d01         # MSR_KVM_SYSTEM_TIME_NEW
    mov eax, edx
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    jmp 4b
5:  lidt [no_idt]               # 3: a triple fault: an exception without a table of handlers
    ud2

# Tells CPL 3: user_fault(vector, error code, address of the instruction, CR2). A fault of CPL 0 has nobody to tell.
fault:
    test byte ptr [rsp + 24], 3 # CS
    jz 5b
    pop rdi
    pop rsi
    mov rdx, [rsp]
    mov rcx, cr2
    mov qword ptr [rsp], offset user_fault
    mov qword ptr [rsp + 24], offset user_stack_top - 8
    iretq

    .balign 8
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff    # KERNEL_CODE
    .quad 0x00cf93000000ffff    # KERNEL_DATA
    .quad 0
    .quad 0x00cff3000000ffff    # USER_DATA
    .quad 0x00affb000000ffff    # USER_CODE
    .quad 0
gdt_task:
    .quad 103                   # TASK: the limit; the rest is filled in
    .quad 0
gdt_second_task:
    .quad 103                   # SECOND_TASK
    .quad 0
gdt_end:
    .short 0
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .short VECTORS * 16 - 1
    .quad idt
no_idt:
    .short 0
    .quad 0
    .balign 8
tss:
    .long 0
    .quad kernel_stack_top      # RSP0
    .zero 90
    .short 104                  # no I/O map
tss_end:
    .balign 16
idt:
    .zero VECTORS * 16
kernel_stack:
    .zero 4096
kernel_stack_top:

# ---- CPL 3 ----------------------------------------------------------------------------------------------------------
.section .text.user_entry, "ax"
user_entry:
    mov rdx, rdi
    lea rdi, [bss_start]
    lea rcx, [bss_end]
    sub rcx, rdi
    xor eax, eax
    rep stosb
    mov rdi, rdx
    and rsp, -16
    call guest_main
    ud2
