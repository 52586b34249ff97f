//! Who takes which vector: the kernel's own interrupts, with the token that each runs with.
//!
//! IRQL: a handler is entered by the stub with CR8 = vector >> 4 (`arch::trap`, I1), which is where its token comes from.

use arch::service::{InService, Retired};
use arch::trap::InterruptFrame;
use arch::vector;
use sync::irql::{Clock, Fixed, High, Ipi, Irql};

use super::bugcheck::{StopCode, bugcheck};
use super::ipi;

/// Installs `handler` for `vector`, with a token for `H`, whose CR8 value must be the vector's class.
///
/// # Safety
/// As [`arch::trap::set_handler`], but for the level, which is checked here.
pub unsafe fn install<H: Fixed, F>(vector: u8, _handler: F)
where
    F: for<'f> Fn(&mut Irql<H>, InService<'f>) -> Retired<'f> + Copy + 'static,
{
    const { assert!(size_of::<F>() == 0, "an interrupt handler captures nothing") };
    assert!(vector >> 4 == H::CR8, "a vector is delivered at its own class's level");
    // SAFETY: the caller's; the closure captures nothing, as `F` doesn't.
    unsafe {
        arch::trap::set_handler(vector, |_: &mut InterruptFrame, service| {
            // SAFETY: F is zero-sized and `Copy`, and a value of it was given to `install`: this reads no memory.
            let handler = core::ptr::NonNull::<F>::dangling().read();
            // SAFETY: the stub set CR8 to the vector's class, H's value; the interrupted code's token can't be used meanwhile.
            Irql::<H>::with(|at| handler(at, service))
        });
    }
}

/// Everything the kernel itself takes.
///
/// # Safety
/// The boot processor, before interrupts are enabled anywhere.
pub(crate) unsafe fn init() {
    // SAFETY: each handler is correct at its level on any stack.
    unsafe {
        arch::trap::init(|frame: &mut InterruptFrame, _service| {
            bugcheck(StopCode::TrapCauseUnknown, [u64::from(frame.vector as u8), frame.rip, 0, 0])
        });
        install::<Ipi, _>(vector::IPI, |at, service| {
            // Acknowledged first: a sender's next request can then interrupt as soon as this one is served.
            let retired = service.end();
            ipi::serve(at);
            retired
        });
        install::<Clock, _>(vector::CLOCK, |_, service| service.end());
        install::<High, _>(vector::APIC_ERROR, |_, service| {
            crate::warn!("local APIC error {:#04x}", arch::apic::take_errors());
            service.end()
        });
    }
}
