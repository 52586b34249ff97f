//! The first instructions of the image on each processor.
//!
//! The loader leaves the boot processor at the ELF entry point, on a stack of the loader's and with RBP zero; the other
//! processors jump to [`processor_start`] when their goto address is written, with the loader's page tables still in force.

use core::arch::naked_asm;
use core::mem::offset_of;

/// What a processor other than the first finds behind its `extra_argument`.
#[derive(Debug)]
#[repr(C)]
pub struct ProcessorStart {
    /// The kernel's page tables, for CR3.
    pub cr3: u64,
    /// The 16-aligned end of its kernel stack, mapped by those tables.
    pub stack_top: u64,
    /// Where to go.
    pub routine: extern "sysv64" fn(argument: u64) -> !,
    /// What to say there.
    pub argument: u64,
}

/// Entry of a processor other than the first. RDI: the loader's description of it, whose word at 24 is the address of its
/// [`ProcessorStart`] (Limine protocol, "MP feature", `extra_argument`).
///
/// # Safety
/// Only the loader's goto address may lead here, with `extra_argument` naming a `ProcessorStart` in the image or the HHDM.
#[unsafe(naked)]
pub unsafe extern "C" fn processor_start(description: u64) -> ! {
    naked_asm!(
        "mov rax, [rdi + 24]",
        "mov rcx, [rax + {cr3}]",
        "mov cr3, rcx",
        "mov rsp, [rax + {stack}]",
        "xor ebp, ebp",
        "mov rdi, [rax + {argument}]",
        "call [rax + {routine}]",
        "ud2",
        cr3 = const offset_of!(ProcessorStart, cr3),
        stack = const offset_of!(ProcessorStart, stack_top),
        argument = const offset_of!(ProcessorStart, argument),
        routine = const offset_of!(ProcessorStart, routine),
    )
}

/// Leaves the stack in use for the one that ends at `top`, and runs `routine` there.
///
/// # Safety
/// `top` is the 16-aligned end of a mapped, unused stack; nothing on the old one is needed any more.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn leave_stack(top: u64, routine: extern "sysv64" fn() -> !) -> ! {
    naked_asm!("mov rsp, rdi", "xor ebp, ebp", "call rsi", "ud2")
}
