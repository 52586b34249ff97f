//! CR8, the processor's interrupt request level.
//!
//! Ordering: a write of CR8 is serialising enough for its purpose (SDM vol. 3, "Task and Processor Priorities"): an
//! interrupt that the new value allows is taken at the next instruction boundary. The `asm!` omits `nomem` so that the
//! compiler moves no access out of the raised section.

use core::arch::asm;

/// This processor's level, 0–15.
#[inline(always)]
pub fn current() -> u8 {
    let level: u64;
    // SAFETY: reading CR8 has no side effect; images run in ring 0 only.
    unsafe { asm!("mov {}, cr8", out(reg) level, options(nostack, preserves_flags)) };
    level as u8
}

/// Writes CR8 and nothing else.
///
/// # Safety
/// `level` is at most 15, and the caller's tokens (see `sync::irql`) say the same level from here on.
#[inline(always)]
pub unsafe fn set(level: u8) {
    // SAFETY: the caller answers for the level; the write itself touches no memory that Rust knows of.
    unsafe { asm!("mov cr8, {}", in(reg) u64::from(level), options(nostack, preserves_flags)) };
}
