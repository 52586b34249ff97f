//! Who takes which vector: the kernel's own interrupts, with the token that each runs with.
//!
//! IRQL: a handler is entered by the stub with CR8 = vector >> 4 (`arch::trap`, I1), which is where its token comes from.

use core::marker::PhantomData;

use arch::service::{InService, Retired};
use arch::trap::InterruptFrame;
use arch::vector;
use sync::irql::{Clock, Fixed, High, Ipi, Irql};

#[cfg(feature = "verifier")]
use super::bugcheck::RoutineKind;
use super::bugcheck::{StopCode, bugcheck};
use super::{ipi, tick};

/// A vector that is delivered at `H`, so that a handler installed for it gets the token that is right.
#[derive(Clone, Copy, Debug)]
pub struct Vector<H>(u8, PhantomData<fn() -> H>);

impl<H: Fixed> Vector<H> {
    /// Vector `number`.
    ///
    /// # Panics
    /// Its class isn't H's CR8 value. In a constant, that is an error of compilation.
    pub const fn new(number: u8) -> Self {
        assert!(number >> 4 == H::CR8, "a vector is delivered at its own class's level");
        Self(number, PhantomData)
    }
}

/// The clock's.
pub const CLOCK: Vector<Clock> = Vector::new(vector::CLOCK);
/// The shared clock needs an owner.
pub const CLOCK_OWNER: Vector<Clock> = Vector::new(vector::CLOCK_OWNER);
/// Requests of other processors.
pub const IPI: Vector<Ipi> = Vector::new(vector::IPI);
/// The local APIC's errors.
pub const APIC_ERROR: Vector<High> = Vector::new(vector::APIC_ERROR);

/// Installs `handler` for `vector`, with a token for the vector's level.
///
/// # Safety
/// As [`install_seeing`].
pub unsafe fn install<H: Fixed, F>(vector: Vector<H>, _handler: F)
where
    F: for<'f> Fn(&mut Irql<H>, InService<'f>) -> Retired<'f> + Copy + 'static,
{
    const { assert!(size_of::<F>() == 0, "an interrupt handler captures nothing") };
    // SAFETY: the caller's.
    unsafe {
        install_seeing(vector, |_, at, service| {
            // SAFETY: F is zero-sized and `Copy`, and a value of it was given to `install`: this reads no memory.
            let handler = core::ptr::NonNull::<F>::dangling().read();
            handler(at, service)
        });
    }
}

/// The same for a handler that looks at what it interrupted.
///
/// In the checked build it must return at the level it was entered at: IRQL_UNEXPECTED_VALUE with its entry's address otherwise.
///
/// # Safety
/// As [`arch::trap::set_handler`].
pub unsafe fn install_seeing<H: Fixed, F>(vector: Vector<H>, _handler: F)
where
    F: for<'f> Fn(&InterruptFrame, &mut Irql<H>, InService<'f>) -> Retired<'f> + Copy + 'static,
{
    const { assert!(size_of::<F>() == 0, "an interrupt handler captures nothing") };
    // SAFETY: the caller's; the closure captures nothing, as `F` doesn't.
    unsafe {
        arch::trap::set_handler(vector.0, |frame: &mut InterruptFrame, service| {
            // SAFETY: F is zero-sized and `Copy`, and a value of it was given: this reads no memory.
            let handler = core::ptr::NonNull::<F>::dangling().read();
            // SAFETY: the stub set CR8 to the vector's class, H's value; the interrupted code's token can't be used meanwhile.
            let retired = Irql::<H>::lend(|at| handler(frame, at, service));
            #[cfg(feature = "verifier")]
            check_level(H::CR8, frame.vector as u8);
            retired
        });
    }
}

#[cfg(feature = "verifier")]
fn check_level(level: u8, vector: u8) {
    let found = arch::irql::current();
    if found != level {
        let culprit = arch::trap::handler(vector);
        bugcheck(
            StopCode::IrqlUnexpectedValue,
            [found.into(), level.into(), culprit, RoutineKind::Isr as u64],
        );
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
        super::interrupt::init();
        install(IPI, |at, service| {
            // Acknowledged first: a sender's next request can then interrupt as soon as this one is served.
            let retired = service.end();
            ipi::serve(at);
            retired
        });
        install_seeing(CLOCK, |frame, at, service| {
            let retired = service.end();
            tick::interrupt(frame, at);
            retired
        });
        install_seeing(CLOCK_OWNER, |frame, at, service| {
            let retired = service.end();
            tick::nudged(frame, at);
            retired
        });
        install(APIC_ERROR, |_, service| {
            crate::warn!("local APIC error {:#04x}", arch::apic::take_errors());
            service.end()
        });
    }
}
