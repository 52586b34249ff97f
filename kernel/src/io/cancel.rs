//! Cancelling packets: `IoCancelIrp`, `IoSetCancelRoutine`, the global cancel lock.
//!
//! The protocol is `sync::cancel`. The lock is held from the flag to the routine, which releases it: so a driver that holds it knows that no
//! cancel routine is between its being taken and its start.
//!
//! IRQL:       up to DISPATCH.
//! Tests:      tests/models/tests/cancel.rs; tests/props/tests/io_packets.rs; selftest `io::*`.
//! Sources:    WDK, `IoCancelIrp`, `IoAcquireCancelSpinLock`, `IoSetCancelRoutine`.

use core::ptr::{self, NonNull};

use sync::event::MaySignal;
use sync::irql::Irql;
use sync::raw::{self, KSpinLock};

use super::layout::{CancelCode, CancelRoutine, KIrp};

static LOCK: KSpinLock = KSpinLock::new();

/// Takes the cancel lock; returns the level to release it to.
///
/// # Safety
/// As [`raw::acquire`].
#[doc(alias = "IoAcquireCancelSpinLock")]
pub unsafe fn acquire_lock() -> u8 {
    // SAFETY: the caller's.
    unsafe { raw::acquire(&LOCK) }
}

/// Releases it.
///
/// # Safety
/// The caller holds it, and `old` is what taking it returned; of a cancel routine: the packet's `cancel_irql`.
#[doc(alias = "IoReleaseCancelSpinLock")]
pub unsafe fn release_lock(old: u8) {
    // SAFETY: the caller's.
    unsafe { raw::release(&LOCK, old) };
}

/// Sets another cancel routine, or none; returns the one that was set, which nobody else gets.
///
/// # Safety
/// The packet is valid. `routine` ends it when it is called.
#[doc(alias = "IoSetCancelRoutine")]
pub unsafe fn set_routine(irp: NonNull<KIrp>, routine: Option<CancelRoutine>) -> Option<CancelRoutine> {
    let code = routine.map_or(ptr::null_mut(), |routine| routine as *mut CancelCode);
    // SAFETY: the caller's; both of the slot's users store addresses of such routines.
    unsafe { as_routine((*irp.as_ptr()).cancel_routine.exchange(code)) }
}

/// # Safety
/// `code` is null or came from a [`CancelRoutine`].
unsafe fn as_routine(code: *mut CancelCode) -> Option<CancelRoutine> {
    // SAFETY: the caller's; null is None.
    unsafe { core::mem::transmute::<*mut CancelCode, Option<CancelRoutine>>(code) }
}

/// Asks for the packet to end soon. True: a routine was set, and was called.
///
/// # Safety
/// The packet is valid until this returns, as far as the caller is concerned: it may end meanwhile, but its memory stays until the
/// routine, if one is called, has ended it. So its maker calls this, and lets nobody free it meanwhile.
#[doc(alias = "IoCancelIrp")]
pub unsafe fn cancel<L: MaySignal>(irp: NonNull<KIrp>, _: &mut Irql<L>) -> bool {
    let it = irp.as_ptr();
    // SAFETY: the caller's. The token is borrowed until the level is restored, here or by the routine.
    unsafe {
        let old = acquire_lock();
        let routine = as_routine(sync::cancel::request(&(*it).cancel, &(*it).cancel_routine));
        let Some(routine) = routine else {
            release_lock(old);
            return false;
        };
        (*it).cancel_irql = old;
        let device = if (*it).current_location <= (*it).stack_count {
            (*(*it).current_stack_location).device_object
        } else {
            ptr::null_mut()
        };
        routine(device, it);
        true
    }
}
