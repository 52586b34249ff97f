//! Stacks of devices: what is attached to what.
//!
//! Owns:       attaching, detaching, the way to the top. The invariants are device.rs's, I3 to I5.
//! IRQL:       attached at PASSIVE or APC, detached at PASSIVE; the top is found up to DISPATCH.
//! Not as NT:  a device is attached when it is made, and once: what it was detached from it keeps until its end, since packets may
//!             still be on their way through both.
//! Tests:      selftest `io::devices_stack_and_end_when_they_are_deleted`; mutant `attached_without_a_reference`.
//! Sources:    WDK, `IoAttachDeviceToDeviceStack`, `IoDetachDevice`, `IoGetAttachedDeviceReference`.

use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;

use sync::event::MayWait;
use sync::irql::{Irql, Passive};

use super::MayDoIo;
use super::device::{self, STACKS};
use super::driver::{self, Driver};
use super::objects::{KDeviceObject, KDriverObject, device_flags};
use super::packet::MOST_LOCATIONS;
use crate::ob::ObRef;
use crate::rtl::NtStatus;

/// A device of `driver` on top of the stack that `target` is in; its state is made with what is below it. It brings buffers as that does.
///
/// # Errors
/// As [`create_device`](device::create_device); STATUS_DEVICE_ALREADY_ATTACHED: another one was quicker, or what was on top has been
/// detached meanwhile; STATUS_NO_SUCH_DEVICE: what is on top goes; STATUS_INVALID_PARAMETER: the stack is too high.
#[doc(alias = "IoAttachDeviceToDeviceStack")]
pub fn create_attached<D: Driver, L: MayWait + MayDoIo>(
    driver: &ObRef<KDriverObject>,
    target: &ObRef<KDeviceObject>,
    state: impl FnOnce(&ObRef<KDeviceObject>) -> D,
    at: &mut Irql<L>,
) -> Result<ObRef<KDeviceObject>, NtStatus> {
    let below = top_of(target, at);
    if below.stack_size() >= MOST_LOCATIONS {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let flags = below.flags() & (device_flags::BUFFERED_IO | device_flags::DIRECT_IO);
    let device = device::make(driver, below.stack_size() + 1, flags, || state(&below), at)?;
    let attached = {
        let _guard = STACKS.lock(at);
        attach(&device, driver, target, &below)
    };
    attached.map(|()| device)
}

/// Under `STACKS`.
fn attach(
    device: &ObRef<KDeviceObject>,
    driver: &ObRef<KDriverObject>,
    target: &ObRef<KDeviceObject>,
    below: &ObRef<KDeviceObject>,
) -> Result<(), NtStatus> {
    // Looked at again, under the lock: it may have left the stack, and has something above it if another one was quicker.
    if highest(target) != below.as_ptr() {
        return Err(NtStatus::DEVICE_ALREADY_ATTACHED);
    }
    if below.is_going() {
        return Err(NtStatus::NO_SUCH_DEVICE);
    }
    if !device::list(device, driver) {
        return Err(NtStatus::DELETE_PENDING);
    }
    // I3.
    device.io_extension().attached_to.store(below.clone().into_raw().as_ptr(), Relaxed);
    below.attached_device.store(device.clone().into_raw().as_ptr(), Relaxed);
    Ok(())
}

/// Takes `device` off the stack below it, if it is on one. What is under way through it goes on.
#[doc(alias = "IoDetachDevice")]
pub fn detach(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) {
    let Some(lower) = lower_of(device) else { return };
    let reference = {
        let _guard = STACKS.lock(at);
        let above = &lower.attached_device;
        let is_it = above.load(Relaxed) == device.as_ptr().as_ptr();
        if is_it { NonNull::new(above.swap(ptr::null_mut(), Relaxed)) } else { None }
    };
    // SAFETY: the one that the lower one had (I3).
    drop(reference.map(|device| unsafe { ObRef::from_raw(device) }));
    // It may have been what the lower one's driver waited for.
    driver::unload_if_unused(&lower.driver(), at);
}

/// What `device` was attached to: where it sends packets on to.
#[doc(alias = "IoGetLowerDeviceObject")]
pub fn lower_of(device: &ObRef<KDeviceObject>) -> Option<ObRef<KDeviceObject>> {
    let below = NonNull::new(device.io_extension().attached_to.load(Relaxed));
    // SAFETY: I3: the device has a reference to it, and we have one to the device.
    below.map(|below| unsafe { ObRef::of_raw(below) })
}

/// The highest device of the stack that `device` is in: what packets for it are sent to.
#[doc(alias = "IoGetAttachedDeviceReference")]
pub fn top_of<L: MayDoIo>(device: &ObRef<KDeviceObject>, at: &mut Irql<L>) -> ObRef<KDeviceObject> {
    let _guard = STACKS.lock(at);
    // SAFETY: under the lock it has a reference.
    unsafe { ObRef::of_raw(highest(device)) }
}

/// Under `STACKS`.
fn highest(device: &ObRef<KDeviceObject>) -> NonNull<KDeviceObject> {
    let mut top = device.as_ptr();
    // SAFETY: under the lock: each has a reference to the one above (I3).
    while let Some(above) = NonNull::new(unsafe { top.as_ref() }.attached_device.load(Relaxed)) {
        top = above;
    }
    top
}
