//! The context switch: what a thread's kernel stack holds while it doesn't run.
//!
//! ```text
//!   saved RSP + 0x00  r15
//!             + 0x08  r14
//!             + 0x10  r13
//!             + 0x18  r12
//!             + 0x20  rbx
//!             + 0x28  rbp
//!             + 0x30  return address: after the call of swap_context, or first_run
//! ```
//!
//! IF and CR8 are not saved here: both sides of a switch run at DISPATCH, and IF comes back with the resumed path's own
//! `sti`/`cli` pairs. Volatile registers are the caller's under the System V convention; SSE is off in kernel code.
//! A first run finds the same picture, made by [`Context::prepare`], and starts in `first_run` with RBX = routine and
//! R12 = argument.

use core::arch::naked_asm;

use super::pcr::GS_DPC_STACK;
use crate::service::NothingInService;

/// A suspended context: its stack pointer.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    rsp: u64,
}

/// What a new context starts with; it must never return.
pub type Start = extern "sysv64" fn(argument: u64) -> !;

const SAVED_WORDS: usize = 7;

impl Context {
    /// A context that is saved into before it is ever resumed.
    pub const fn empty() -> Self {
        Self { rsp: 0 }
    }

    /// A context that begins with `start(argument)` on the stack that ends at `top`.
    ///
    /// # Safety
    /// `top` is the 16-aligned end of a mapped, unused stack that outlives the context.
    pub unsafe fn prepare(top: u64, start: Start, argument: u64) -> Self {
        // One word more than the saved ones, so that `first_run` begins with RSP as after a call: 8 mod 16.
        let rsp = top - 8 * (SAVED_WORDS as u64 + 1);
        let picture: [u64; SAVED_WORDS + 1] =
            [0, 0, 0, argument, start as usize as u64, 0, first_run as *const () as u64, 0];
        // SAFETY: the caller gave the stack, and the picture fits below its end.
        unsafe { (rsp as *mut [u64; SAVED_WORDS + 1]).write(picture) };
        Self { rsp }
    }
}

/// Saves the running context in `from` and resumes `to`. Returns when somebody switches back to `from`.
///
/// # Safety
/// 1. `to` was prepared or saved, and is not running anywhere.
/// 2. `from` is this context's own, and nobody resumes it before its registers are saved.
/// 3. Level DISPATCH, or IF=0.
pub unsafe fn swap_context(from: &mut Context, to: &Context, _nothing: NothingInService) {
    // SAFETY: as the caller promised; the token says that no EOI is owed.
    unsafe { swap(from, to) }
}

#[unsafe(naked)]
unsafe extern "sysv64" fn swap(from: *mut Context, to: *const Context) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi + {rsp}], rsp",
        "mov rsp, [rsi + {rsp}]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        rsp = const core::mem::offset_of!(Context, rsp),
    )
}

/// Calls `work` on this processor's DPC stack, and returns on the present one what it returns. RBP links the two, so that a
/// backtrace crosses over. The way out of an interrupt does the same by itself (`trap`, step 4).
///
/// # Safety
/// 1. This processor's DPC stack is mapped and empty, and nothing else uses it until this returns.
/// 2. `work` neither switches contexts nor unwinds, and may be called here.
#[unsafe(naked)]
pub unsafe extern "sysv64" fn call_on_dpc_stack(work: unsafe extern "sysv64" fn() -> bool) -> bool {
    naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "mov rsp, gs:[{stack}]",
        "call rdi",
        "leave",
        "ret",
        stack = const GS_DPC_STACK,
    )
}

#[unsafe(naked)]
unsafe extern "sysv64" fn first_run() {
    // RBP is zero: a backtrace ends here.
    naked_asm!("mov rdi, r12", "call rbx", "ud2")
}
