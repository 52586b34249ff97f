//! The way out of QEMU: its isa-debug-exit device. The harness knows these statuses (`ci`).

use ::x86_64::instructions::port::PortWriteOnly;

use super::cpu;

/// How a run ended. QEMU's exit status is `2 * value + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// Every self-test passed (status 33).
    Passed = 0x10,
    /// A self-test failed (35).
    Failed = 0x11,
    /// A bugcheck (37).
    Bugcheck = 0x12,
    /// This machine lacks what the kernel needs (39).
    CannotRun = 0x13,
}

/// Ends the run; where there is no such device, halts this processor. A function of its own, so that a debugger shows it.
#[inline(never)]
pub fn leave(outcome: Outcome) -> ! {
    #[cfg(feature = "trace")]
    super::debugger::stops_here();
    // SAFETY: 0xF4 is the debug-exit port where the harness started QEMU, and unassigned elsewhere.
    unsafe { PortWriteOnly::<u32>::new(0xF4).write(outcome as u32) };
    cpu::halt_forever()
}
