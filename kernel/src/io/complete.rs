//! `IoCompleteRequest`: a packet's way back, location by location, to its maker.
//!
//! ```text
//! unwinds location n: `pending_returned` is its mark; the packet is at n + 1
//!   a routine is set for this status: it is called
//!     it says STATUS_MORE_PROCESSING_REQUIRED: the packet is its driver's again, and comes no further by itself
//!     else the routine has marked n + 1 where n was marked
//!   none is called: n + 1 is marked if n was, as who returned n's status owes it the mark
//! behind the last location: status and event to the maker
//! ```
//!
//! IRQL:       up to DISPATCH.
//! Invariants: I1 a location is unwound once for each call that went to it: its `control` is cleared before its routine runs.
//!             I2 a packet that has ended is at `stack_count` + 2, so that a second completion is seen.
//! Not as NT:  a master packet of which a part failed ends with that part's status; NT leaves it to the driver that made the parts.
//! Tests:      tests/props/tests/io_packets.rs; selftest `io::*`; crash `irp_completed_twice`.
//! Sources:    WDK, `IoCompleteRequest`, `IoSetCompletionRoutine`, "Using IRP Completion Routines".

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use sync::irql::Irql;

use super::layout::{KIrp, control, irp_flags};
use super::objects::IO_TYPE_IRP;
#[cfg(feature = "verifier")]
use super::verify;
use super::{MayDoIo, bugcheck, packet};
use crate::ke::bugcheck::StopCode;
use crate::rtl::NtStatus;

/// Completes a packet, whose `io_status` is set: it is no more the caller's. Threads that this wakes are boosted by `increment`.
///
/// # Safety
/// 1. The packet is the caller's.
/// 2. What its maker gave it to end with (status block, event, memory) is still there.
///
/// # Bugchecks
/// MULTIPLE_IRP_COMPLETE_REQUESTS: it has ended already. Checked build: DRIVER_VERIFIER_IOMANAGER_VIOLATION, as verify.rs says.
#[doc(alias = "IoCompleteRequest")]
#[doc(alias = "IofCompleteRequest")]
#[inline]
pub unsafe fn complete<L: MayDoIo>(irp: NonNull<KIrp>, increment: u8, at: &mut Irql<L>) {
    let mut irp = irp;
    // SAFETY: the caller's.
    while let Some(master) = unsafe { complete_one(irp, increment, at) } {
        irp = master;
    }
}

/// The same; returns the master packet if that is to be completed now.
#[inline(always)]
unsafe fn complete_one<L: MayDoIo>(
    irp: NonNull<KIrp>,
    increment: u8,
    at: &mut Irql<L>,
) -> Option<NonNull<KIrp>> {
    let it = irp.as_ptr();
    // SAFETY: the caller's. The packet is ours until a routine keeps it or its end.
    unsafe {
        let last = (*it).stack_count;
        if (*it).kind != IO_TYPE_IRP || (*it).current_location > last + 1 {
            completed_twice(irp);
        }
        #[cfg(feature = "verifier")]
        verify::completes(irp);
        loop {
            let number = (*it).current_location;
            let location = (*it).current_stack_location;
            (*it).current_location = number + 1;
            (*it).current_stack_location = location.add(1);
            if number > last {
                break;
            }
            let bits = (*location).control;
            let pending = bits & control::PENDING_RETURNED != 0;
            (*it).pending_returned = pending;
            #[cfg(feature = "verifier")]
            verify::unwinds(location, pending, irp);
            (*location).control = 0;
            let by_status = if (*it).io_status.status.is_success() {
                control::INVOKE_ON_SUCCESS
            } else {
                control::INVOKE_ON_ERROR
            };
            let invoked =
                bits & by_status != 0 || bits & control::INVOKE_ON_CANCEL != 0 && (*it).cancel.get();
            if let (true, Some(routine)) = (invoked, (*location).completion_routine) {
                let device = if number < last { (*location.add(1)).device_object } else { ptr::null_mut() };
                if routine(device, it, (*location).context) == NtStatus::MORE_PROCESSING_REQUIRED {
                    return None;
                }
            } else if pending && number < last {
                packet::mark_pending(irp);
            }
        }
        end(irp, increment, at)
    }
}

#[cold]
fn completed_twice(irp: NonNull<KIrp>) -> ! {
    bugcheck(StopCode::MultipleIrpCompleteRequests, [irp.addr().get() as u64, 0, 0, 0]);
}

/// Gives its maker what it waits for, and its memory back. The event is last: the maker may go on and take all of it away.
///
/// # Safety
/// As [`complete`]; every location is unwound.
#[inline(always)]
unsafe fn end<L: MayDoIo>(irp: NonNull<KIrp>, increment: u8, at: &mut Irql<L>) -> Option<NonNull<KIrp>> {
    let it = irp.as_ptr();
    // SAFETY: the caller's.
    unsafe {
        if (*it).flags & irp_flags::ASSOCIATED_IRP != 0 {
            let master = (*it).associated.cast::<KIrp>();
            // An associated one that failed decides about the whole.
            if !(*it).io_status.status.is_success() {
                // Two may fail at once.
                let status = (&raw mut (*master).io_status.status).cast::<u32>();
                AtomicU32::from_ptr(status).store((*it).io_status.status.0, Ordering::Relaxed);
            }
            release(irp, at);
            // AcqRel: the last one comes behind what the others did.
            let left =
                AtomicI32::from_ptr((&raw mut (*master).associated).cast()).fetch_sub(1, Ordering::AcqRel);
            return if left == 1 { NonNull::new(master) } else { None };
        }
        #[cfg(target_os = "none")]
        if (*it).allocation_flags & super::layout::allocation::ASYNCHRONOUS != 0 {
            // Unmarked, it is its sender's, who is told by the status.
            if (*it).pending_returned {
                super::async_io::ended(irp, increment, at);
            }
            return None;
        }
        let (event, iosb) = ((*it).user_event, (*it).user_iosb);
        // Its maker, who waits only where it was told STATUS_PENDING, may take all of it away as soon as it is told; and needn't be told
        // otherwise.
        let is_told = (*it).flags & irp_flags::SYNCHRONOUS_API == 0 || (*it).pending_returned;
        if !iosb.is_null() {
            iosb.write((*it).io_status);
        }
        release(irp, at);
        if is_told && !event.is_null() {
            (*event).set(increment, at);
        }
    }
    None
}

/// Its memory, where it is the I/O manager's to give back.
unsafe fn release<L: MayDoIo>(irp: NonNull<KIrp>, at: &mut Irql<L>) {
    #[cfg(target_os = "none")]
    // SAFETY: the caller's: nobody uses it any more.
    unsafe {
        super::allocate::free_ended(irp, at);
    }
    // A host's packets are a test's own memory.
    #[cfg(not(target_os = "none"))]
    let _ = (irp, at);
}
