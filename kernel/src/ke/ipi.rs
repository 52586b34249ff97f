//! Requests between processors: "run this there, and return when it is done".
//!
//! The protocol is `sync::ipi`; here are its mailboxes (in the PRCB), the vector, and the mapping of numbers to APIC ids.
//!
//! IRQL: [`call`] below IPI; the function runs at IPI on each target.

use arch::vector;
use sync::irql::{Below, Ipi, Irql};

pub use sync::ipi::Mailbox;

use super::prcb::{self, Prcb};

/// The registered processors, as `sync::ipi` sees them.
pub(crate) struct Registered;

// SAFETY: a mailbox is a field of the one `Processor` registered under its number, which never changes (prcb.rs, I1, I2), and
// `arch::cpu::number()` is read from the PRCB of the same block.
unsafe impl sync::ipi::Processors for Registered {
    #[inline]
    fn mailbox(&self, number: u32) -> &Mailbox {
        match prcb::get(number) {
            Some(processor) => &processor.prcb().mailbox,
            None => arch::fatal(
                super::bugcheck::StopCode::TrapCauseUnknown as u32,
                [u64::from(vector::IPI), number.into(), 0, 1],
            ),
        }
    }

    #[inline]
    fn interrupt(&self, targets: u64) {
        if targets & (targets - 1) != 0 {
            return interrupt_clusters(targets);
        }
        if let Some(processor) = prcb::get(targets.trailing_zeros()) {
            post(processor.prcb(), Request::Call);
        }
    }
}

/// One interrupt command for each cluster of the APICs, of up to sixteen processors.
#[inline(never)]
fn interrupt_clusters(targets: u64) {
    let mut left = targets;
    while left != 0 {
        let mut together = prcb::logical_id(left.trailing_zeros());
        left &= left - 1;
        let mut others = left;
        while others != 0 {
            let other = prcb::logical_id(others.trailing_zeros());
            let bit = others & others.wrapping_neg();
            others ^= bit;
            if (together ^ other) >> 16 == 0 {
                together |= other;
                left ^= bit;
            }
        }
        #[cfg(feature = "verifier")]
        if super::late::take_logical(together, vector::IPI) {
            continue;
        }
        // SAFETY: the vector's handler is in place before any processor is registered.
        unsafe { arch::apic::send_logical(together, vector::IPI) };
    }
}

/// What another processor is interrupted for. Each is one of the kernel's own vectors, whose handler looks for what there is to do, so one
/// too many does no harm.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Request {
    /// A look at APC level.
    Apc = vector::APC,
    /// A look at DISPATCH.
    Dispatch = vector::DISPATCH,
    /// Calls in its mailbox.
    Call = vector::IPI,
    /// A look at the clock.
    Clock = vector::CLOCK_OWNER,
}

/// Interrupts another processor, with everything stored before visible to its handler. Any level.
#[inline]
pub(super) fn post(there: &Prcb, request: Request) {
    #[cfg(feature = "verifier")]
    if super::late::take(there.apic_id(), request as u8) {
        return;
    }
    // SAFETY: these vectors have their handlers before any processor is registered.
    unsafe { arch::apic::send(there.apic_id(), request as u8) };
}

/// Every processor that is online.
#[doc(alias = "KeQueryActiveProcessors")]
#[inline]
pub fn online() -> u64 {
    prcb::online()
}

/// Runs `function` at IPI on each processor in `targets` (bit n: processor n, this one included) and returns when all have.
/// Targets must be online.
#[doc(alias = "KeIpiGenericCall")]
pub fn call<L: Below<Ipi>>(targets: u64, function: &(impl Fn(&mut Irql<Ipi>) + Sync), at: &mut Irql<L>) {
    sync::ipi::call(&Registered, targets, function, at);
}

/// The IPI vector's handler body.
pub(super) fn serve(at: &mut Irql<Ipi>) {
    sync::ipi::serve(&Registered, at);
}
