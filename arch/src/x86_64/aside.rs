//! A call that is hardly ever made, and costs the code around it nothing where it isn't: every register is kept.
//!
//! An ordinary call, even on a cold path, takes the scratch registers from everything that is live around it; the function then
//! saves others at its entry, on the hot path too. So does code that is inlined there instead and needs registers itself.
//!
//! IRQL:   any; the stack grows by about 120 bytes and the function's own frames.
//! Frames: [`keep_registers`] is a link of the RBP chain.

use core::arch::naked_asm;

/// `function(argument)`: the path of an `extern "sysv64" fn(&T)`, and a `&T`.
///
/// # Safety
/// They fit each other, as they are written above: assembly doesn't check it.
#[macro_export]
macro_rules! call_aside {
    ($function:path, $argument:expr) => {
        core::arch::asm!(
            "push {argument}",
            "push offset {function}",
            "call {keep_registers}",
            "lea rsp, [rsp + 16]",
            argument = in(reg) core::ptr::from_ref($argument),
            function = sym $function,
            keep_registers = sym $crate::aside::keep_registers,
        )
    };
}

/// For [`call_aside`] alone. On entry, from RSP up: return address, function, argument.
///
/// # Safety
/// That.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn keep_registers() {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "and rsp, -16", // a function without calls leaves its stack as it comes
        "mov rdi, [rbp + 24]",
        "call qword ptr [rbp + 16]",
        "lea rsp, [rbp - 72]",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "ret",
    )
}
