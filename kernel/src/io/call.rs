//! `IoCallDriver`: a packet goes one location down, to the driver of the device there.
//!
//! IRQL:       up to DISPATCH, as the driver called says.
//! Not as NT:  a driver that returns at another level is IRQL_UNEXPECTED_VALUE in the checked build, whether a verifier is asked for or
//!             not; so is one that returns STATUS_PENDING unmarked (verify.rs).
//! Tests:      tests/props/tests/io_packets.rs; crash `irp_*`.
//! Sources:    WDK, `IoCallDriver`.

use core::ptr::NonNull;

use super::layout::{KIrp, KStackLocation, major};
use super::objects::KDeviceObject;
use super::packet;
#[cfg(feature = "verifier")]
use super::verify;
use crate::rtl::NtStatus;

/// Calls the driver of `device` with the packet. It is that driver's from here on, and may be gone when this returns.
///
/// # Safety
/// 1. The packet is the caller's, and what the function wants is in its next location.
/// 2. `device` and its driver stay until the packet has come back; the driver's routines may be called.
///
/// # Bugchecks
/// NO_MORE_IRP_STACK_LOCATIONS.
#[doc(alias = "IoCallDriver")]
#[doc(alias = "IofCallDriver")]
#[inline]
pub unsafe fn call_driver(device: NonNull<KDeviceObject>, irp: NonNull<KIrp>) -> NtStatus {
    // SAFETY: the caller's.
    unsafe {
        let location = packet::next(irp);
        (*irp.as_ptr()).current_location -= 1;
        (*irp.as_ptr()).current_stack_location = location.as_ptr();
        call_at(device, irp, location)
    }
}

/// [`packet::skip_current`] and [`call_driver`] in one: the location stays where it is.
///
/// # Safety
/// As of both.
#[inline(always)]
#[cfg(target_os = "none")]
pub(super) unsafe fn call_in_place(device: NonNull<KDeviceObject>, irp: NonNull<KIrp>) -> NtStatus {
    // SAFETY: the caller's.
    unsafe { call_at(device, irp, packet::current(irp)) }
}

/// # Safety
/// As [`call_driver`], the packet being at `location`.
#[inline(always)]
unsafe fn call_at(
    device: NonNull<KDeviceObject>,
    irp: NonNull<KIrp>,
    location: NonNull<KStackLocation>,
) -> NtStatus {
    // SAFETY: the caller's.
    unsafe {
        (*location.as_ptr()).device_object = device.as_ptr();
        let driver = (*device.as_ptr()).driver_object;
        let major = usize::from((*location.as_ptr()).major_function);
        let routine = if major < major::COUNT { (*driver).major_function[major] } else { None };
        let routine = routine.unwrap_or(super::driver_default);
        #[cfg(feature = "verifier")]
        let call = verify::enter(location, routine);
        let status = routine(device.as_ptr(), irp.as_ptr());
        #[cfg(feature = "verifier")]
        call.returned(status, irp);
        status
    }
}
