# A guest that does as it is told: it copies its first module to COM1 up to a zero byte, and the byte after that says
# how to end: 'H' halts for ever in `stuck`, 'T' raises a triple fault in `tripped`, any other is written to the exit
# port. Entered by PVH: 32-bit protected mode, the start info's address in EBX.

        .section .note.Xen, "a", @note
        .long   4, 4, 18                # sizes of name and descriptor; XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   _start

        .text
        .code32
        .globl  _start
_start: mov     16(%ebx), %esi          # the module list
        mov     (%esi), %esi            # the first module's first byte
        mov     $0x3f8, %edx
1:      lodsb
        test    %al, %al
        jz      2f
        out     %al, %dx
        jmp     1b
2:      lodsb
        cmp     $'H', %al
        je      stuck
        cmp     $'T', %al
        je      tripped
        movzbl  %al, %eax
        mov     $0xf4, %edx
        out     %eax, %dx

        .globl  stuck
        .type   stuck, @function
stuck:  cli
        hlt
        jmp     stuck
        .size   stuck, . - stuck

        .globl  tripped
        .type   tripped, @function
tripped:
        lidt    no_gates                # without a gate, #UD becomes #DF, and that a triple fault
        ud2
        .size   tripped, . - tripped
no_gates:
        .quad   0, 0
