# What each CPU does for itself on its way to CPL 3.

.section .boot, "ax"

# SSE, which compiled code uses, and AVX, if there is. Keeps rbx, rbp and rdi.
vectors:
    mov rax, cr0
    and eax, ~0xc               # EM, TS
    or eax, 2                   # MP
    mov cr0, rax
    mov rax, cr4
    or eax, 0x600               # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov rsi, rbx
    mov eax, 1
    cpuid
    mov rbx, rsi
    and ecx, 0x14000000         # XSAVE, AVX
    cmp ecx, 0x14000000
    jne 2f
    mov rax, cr4
    or eax, 0x40000             # OSXSAVE
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 7                  # x87, SSE, AVX
    xsetbv
2:  ret

# eax = a task state, rdi = its entry, which has no address yet, ecx = its selector
load_task:
    mov [rdi + 2], ax
    shr eax, 16
    mov [rdi + 4], al
    mov [rdi + 7], ah
    mov byte ptr [rdi + 5], 0x89 # not busy
    ltr cx
    ret
