//! A packet's locations: who is at which, and what the next one finds.
//!
//! | number | location |
//! |---|---|
//! | `stack_count` + 2 | none: the packet has ended |
//! | `stack_count` + 1 | none: its maker's |
//! | `stack_count` … 1 | the drivers', from the top of the stack of devices down |
//!
//! Owns:       making a packet out of memory, and moves between its locations. Not: calls (call.rs), its way back (complete.rs).
//! IRQL:       any: a packet is nonpaged, and its owner's alone.
//! Invariants: I1 `current_stack_location` is the place of number `current_location` in the array behind the packet; of numbers above
//!                `stack_count`, where it would be.
//!             I2 a packet has one owner: its maker, until it calls a driver; that driver, until it calls the next one, completes it or
//!                has it queued. Everything but the cancel flag and the cancel routine is the owner's.
//! Sources:    WDK, `IoInitializeIrp`, `IoReuseIrp`, `IoSkipCurrentIrpStackLocation`, `IoCopyCurrentIrpStackLocationToNext`,
//!             `IoSetCompletionRoutine`, `IoMarkIrpPending`.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use sync::cancel::{Cancelled, RoutineSlot};

use super::bugcheck;
use super::layout::{CompletionRoutine, IoStatus, KIrp, KStackLocation, control};
use super::objects::IO_TYPE_IRP;
use crate::ke::bugcheck::StopCode;
use crate::rtl::{KListEntry, NtStatus};

/// The most locations of a packet: two numbers above it must fit as well.
pub const MOST_LOCATIONS: i8 = i8::MAX - 2;

/// Bytes of a packet with so many locations.
#[doc(alias = "IoSizeOfIrp")]
pub const fn size_for(locations: i8) -> u16 {
    assert!(0 < locations && locations <= MOST_LOCATIONS);
    (size_of::<KIrp>() + locations as usize * size_of::<KStackLocation>()) as u16
}

/// Makes memory a packet, which is its maker's.
///
/// # Safety
/// [`size_for`] bytes at `irp`, aligned to 8, are nobody else's; `locations` is one of its arguments. `allocation` says what they are.
#[doc(alias = "IoInitializeIrp")]
#[inline]
pub unsafe fn initialize(irp: NonNull<KIrp>, locations: i8, allocation: u8) {
    // SAFETY: the caller's: room for the packet and its locations.
    unsafe {
        let first = irp.add(1).cast::<KStackLocation>();
        let mut at = 0;
        while at < locations as usize {
            first.add(at).write(KStackLocation::EMPTY);
            at += 1;
        }
        write(irp, first.add(locations as usize).as_ptr(), locations, allocation, NtStatus::SUCCESS);
    }
}

/// As fresh, with a status that is not looked at before somebody sets one.
///
/// # Safety
/// The packet is the caller's, who made it, and no driver has it.
#[doc(alias = "IoReuseIrp")]
pub unsafe fn reuse(irp: NonNull<KIrp>, status: NtStatus) {
    // SAFETY: the caller's.
    unsafe {
        let (locations, allocation) = ((*irp.as_ptr()).stack_count, (*irp.as_ptr()).allocation_flags);
        initialize(irp, locations, allocation);
        (*irp.as_ptr()).io_status.status = status;
    }
}

/// # Safety
/// As [`initialize`].
#[inline(always)]
unsafe fn write(
    irp: NonNull<KIrp>,
    behind: *mut KStackLocation,
    locations: i8,
    allocation: u8,
    status: NtStatus,
) {
    let packet = KIrp {
        kind: IO_TYPE_IRP,
        size: (size_of::<KIrp>() + locations as usize * size_of::<KStackLocation>()) as u16,
        mdl_address: ptr::null_mut(),
        flags: 0,
        associated: ptr::null_mut(),
        thread_list_entry: KListEntry::UNLINKED,
        io_status: IoStatus::new(status, 0),
        requestor_mode: 0,
        pending_returned: false,
        stack_count: locations,
        current_location: locations + 1,
        cancel: Cancelled::new(),
        cancel_irql: 0,
        apc_environment: 0,
        allocation_flags: allocation,
        user_iosb: ptr::null_mut(),
        user_event: ptr::null_mut(),
        overlay: [ptr::null_mut(); 2],
        cancel_routine: RoutineSlot::new(),
        user_buffer: ptr::null_mut(),
        driver_context: [ptr::null_mut(); 4],
        thread: ptr::null_mut(),
        auxiliary_buffer: ptr::null_mut(),
        list_entry: KListEntry::UNLINKED,
        current_stack_location: behind,
        original_file_object: ptr::null_mut(),
        _apc_rest: [0; 3],
    };
    // SAFETY: the caller's.
    unsafe { irp.write(packet) };
}

/// The owner's location.
///
/// # Safety
/// The packet is the caller's, who is a driver (I2).
#[doc(alias = "IoGetCurrentIrpStackLocation")]
#[inline(always)]
pub unsafe fn current(irp: NonNull<KIrp>) -> NonNull<KStackLocation> {
    // SAFETY: the caller's: I1 gives a place in the array.
    unsafe { NonNull::new_unchecked((*irp.as_ptr()).current_stack_location) }
}

/// The location of whoever is called next.
///
/// # Safety
/// The packet is the caller's.
///
/// # Bugchecks
/// NO_MORE_IRP_STACK_LOCATIONS: there is none.
#[doc(alias = "IoGetNextIrpStackLocation")]
#[inline(always)]
pub unsafe fn next(irp: NonNull<KIrp>) -> NonNull<KStackLocation> {
    // SAFETY: the caller's; above number 1 there is one below.
    unsafe {
        if (*irp.as_ptr()).current_location <= 1 {
            no_more_locations(irp);
        }
        NonNull::new_unchecked((*irp.as_ptr()).current_stack_location.sub(1))
    }
}

#[cold]
pub(super) fn no_more_locations(irp: NonNull<KIrp>) -> ! {
    bugcheck(StopCode::NoMoreIrpStackLocations, [irp.addr().get() as u64, 0, 0, 0]);
}

/// Who is called next finds the owner's location as it is, as if the owner weren't there; what is set on the way back stays the upper
/// one's. The packet is called on, or completed by nobody else, after this.
///
/// # Safety
/// The packet is the caller's, who is a driver and calls another one with it next.
#[doc(alias = "IoSkipCurrentIrpStackLocation")]
#[inline(always)]
pub unsafe fn skip_current(irp: NonNull<KIrp>) {
    // SAFETY: the caller's.
    unsafe {
        (*irp.as_ptr()).current_location += 1;
        (*irp.as_ptr()).current_stack_location = (*irp.as_ptr()).current_stack_location.add(1);
    }
}

/// Who is called next finds what the owner found; no completion routine is set.
///
/// # Safety
/// The packet is the caller's, who is a driver.
#[doc(alias = "IoCopyCurrentIrpStackLocationToNext")]
#[inline(always)]
pub unsafe fn copy_current_to_next(irp: NonNull<KIrp>) {
    // SAFETY: the caller's.
    unsafe {
        let (from, to) = (current(irp).as_ptr(), next(irp).as_ptr());
        (*to).major_function = (*from).major_function;
        (*to).minor_function = (*from).minor_function;
        (*to).flags = (*from).flags;
        (*to).control = 0;
        (*to).tracker = 0;
        (*to).parameters = (*from).parameters;
        (*to).device_object = (*from).device_object;
        (*to).file_object = (*from).file_object;
    }
}

/// Has `routine` called on the way back from who is called next, in the cases that `invoke` has of [`control`]'s `INVOKE_ON_*`.
///
/// # Safety
/// The packet is the caller's; `routine` may be called so.
#[doc(alias = "IoSetCompletionRoutine")]
#[inline(always)]
pub unsafe fn set_completion(
    irp: NonNull<KIrp>,
    routine: CompletionRoutine,
    context: *mut c_void,
    invoke: u8,
) {
    // SAFETY: the caller's.
    unsafe {
        let next = next(irp).as_ptr();
        (*next).completion_routine = Some(routine);
        (*next).context = context;
        (*next).control = invoke;
    }
}

/// What the owner returns is STATUS_PENDING.
///
/// # Safety
/// The packet is the caller's, who is a driver.
#[doc(alias = "IoMarkIrpPending")]
#[inline(always)]
pub unsafe fn mark_pending(irp: NonNull<KIrp>) {
    // SAFETY: the caller's.
    unsafe { (*current(irp).as_ptr()).control |= control::PENDING_RETURNED };
}
