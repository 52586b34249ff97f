//! What a processor does when it has nothing to do.
//!
//! IRQL: PASSIVE, so that every vector ends the halt; a HLT at DISPATCH would sleep through 0x2F.

use sync::irql::{Irql, Passive};

/// Halts between interrupts, for ever.
pub fn run(at: &mut Irql<Passive>) -> ! {
    loop {
        until(at, || false);
    }
}

/// Halts between interrupts until `ready` says so. The look is made with IF=0, so an interrupt that makes it true afterwards
/// ends the halt: nothing is slept through.
pub fn until(at: &mut Irql<Passive>, ready: impl Fn() -> bool) {
    loop {
        at.check();
        // SAFETY: set again below on both ways.
        unsafe { arch::cpu::cli() };
        if ready() {
            // SAFETY: as it was.
            unsafe { arch::cpu::sti() };
            return;
        }
        // SAFETY: IF=0 since before the look.
        unsafe { arch::cpu::sti_hlt() };
    }
}
