//! Proof, in types, that an interrupt was acknowledged before anything could switch away from it.
//!
//! A context switch with an interrupt still in service leaves that processor deaf to every vector at or below it for as
//! long as the other thread runs. So:
//! - a handler is given an [`InService`] and must return a [`Retired`] of the same lifetime, which only
//!   [`InService::end`], the EOI, makes;
//! - a switch takes a [`NothingInService`], made from a `Retired` whose interrupt hit code below DISPATCH (no other handler
//!   can then be half-way on this processor), or, in `sync`, from a token at which waiting is legal.
//!
//! Invariants: I1 an `InService<'f>` exists => exactly one vector, that of the frame `'f`, awaits its EOI from this handler.
//!             I2 a `NothingInService` exists => no bit of this processor's in-service register is set.
//! Sources:    SDM vol. 3, "Signaling Interrupt Servicing Completion".

use core::marker::PhantomData;
use core::mem;

use crate::level;

/// Invariant in `'f`, so that the receipt of one interrupt can't stand in for another's; neither `Send` nor `Sync`.
type Brand<'f> = PhantomData<(fn(&'f ()) -> &'f (), *mut OneProcessorOnly)>;

/// Named for the compiler's message when a proof is about to leave its processor.
enum OneProcessorOnly {}

/// An interrupt that was delivered and not yet acknowledged. Dropping it is a bugcheck: the EOI would be lost.
#[must_use = "an interrupt that is not ended blocks every vector at or below it"]
pub struct InService<'f>(Brand<'f>);

/// The receipt of an EOI: what a handler returns.
#[must_use]
pub struct Retired<'f>(Brand<'f>);

/// No interrupt is in service on this processor: what a context switch asks for.
#[must_use]
pub struct NothingInService(PhantomData<*mut OneProcessorOnly>);

impl<'f> InService<'f> {
    /// The interrupt whose frame lives for `'f`.
    ///
    /// # Safety
    /// Called once for each delivery of a vector that needs an EOI, on the processor that it was delivered to, before any
    /// handler of it ran (I1).
    #[inline]
    pub unsafe fn delivered() -> Self {
        Self(PhantomData)
    }

    /// Acknowledges the interrupt (one x2APIC MSR write). Any IRQL at or above the interrupt's own.
    #[inline]
    pub fn end(self) -> Retired<'f> {
        mem::forget(self);
        crate::trace::event(crate::trace::Kind::Eoi, 0, 0, 0);
        // SAFETY: I1: this vector is in service here and nobody else holds the right to end it, since `self` was consumed.
        unsafe { crate::apic::eoi() };
        Retired(PhantomData)
    }
}

impl Drop for InService<'_> {
    fn drop(&mut self) {
        // Reached only by a handler that let the value fall; a panic never unwinds in an image.
        crate::fatal(
            crate::upcalls::stop::IRQL_UNEXPECTED_VALUE,
            [u64::from(crate::irql::current()), 0, 0, 1],
        );
    }
}

impl<'f> Retired<'f> {
    /// For a vector that is never in service: the spurious one.
    ///
    /// # Safety
    /// The delivery that `'f` belongs to set no in-service bit (SDM, "Spurious Interrupt").
    #[inline]
    pub unsafe fn without_eoi() -> Self {
        Self(PhantomData)
    }
}

impl NothingInService {
    /// The interrupt was retired and had hit code at `interrupted`, below DISPATCH. Checked in every build: a handler runs
    /// at or above DISPATCH, so a lower level means that none was interrupted half-way.
    ///
    /// # Safety
    /// `interrupted` is the level of the code that this very interrupt hit: what its frame says.
    #[inline]
    pub unsafe fn after(_retired: Retired<'_>, interrupted: u8) -> Option<Self> {
        (interrupted < level::DISPATCH).then_some(Self(PhantomData))
    }

    /// The claim itself, for the code that can argue it from the level it runs at.
    ///
    /// # Safety
    /// No interrupt is in service on this processor (I2), and none is taken and left unacknowledged while the value lives.
    #[inline]
    pub unsafe fn assume() -> Self {
        Self(PhantomData)
    }
}
