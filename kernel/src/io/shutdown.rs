//! Shutdown notification: devices that are told before the machine stops.
//!
//! IRQL:       PASSIVE.
//! Locks:      the list's push lock, never held while a driver is called.
//! Invariants: D1 a device on the list has a reference of the list's; it is there once.
//! Tests:      selftest `io_work::devices_are_told_of_a_shutdown`; mutant `shutdown_in_the_order_of_their_asking`.
//! Sources:    WDK, `IoRegisterShutdownNotification`, `IoUnregisterShutdownNotification`, "IRP_MJ_SHUTDOWN".

extern crate alloc;

use alloc::vec::Vec;

use sync::irql::{Irql, Passive};

use super::layout::major;
use super::objects::KDeviceObject;
use super::request::{Parts, send_for_file};
use crate::ex::PushLock;
use crate::ob::ObRef;
use crate::rtl::{NtStatus, vec};

static DEVICES: PushLock<Vec<ObRef<KDeviceObject>>> = PushLock::new(Vec::new());

/// Has `device` told of a shutdown, by IRP_MJ_SHUTDOWN, once.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; STATUS_INVALID_PARAMETER: it is told already.
#[doc(alias = "IoRegisterShutdownNotification")]
pub fn register(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> Result<(), NtStatus> {
    let mut devices = DEVICES.exclusive(at);
    if devices.iter().any(|it| it.is(device)) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    vec::push(&mut devices, device.clone())
}

/// It isn't told any more; true: it would have been.
#[doc(alias = "IoUnregisterShutdownNotification")]
pub fn unregister(device: &ObRef<KDeviceObject>, at: &mut Irql<Passive>) -> bool {
    let gone = {
        let mut devices = DEVICES.exclusive(at);
        let found = devices.iter().position(|it| it.is(device));
        let gone = found.map(|at| devices.remove(at));
        // An empty list keeps no memory.
        let memory = devices.is_empty().then(|| core::mem::take(&mut *devices));
        (gone, memory)
    };
    gone.0.is_some()
}

/// Tells all, the last that asked first; how many.
pub fn notify(at: &mut Irql<Passive>) -> usize {
    let mut told = 0;
    loop {
        let next = {
            let mut devices = DEVICES.exclusive(at);
            let next = devices.pop();
            let memory = devices.is_empty().then(|| core::mem::take(&mut *devices));
            (next, memory)
        };
        let (Some(device), _) = next else { return told };
        // SAFETY: no file, no buffer. Without memory it is left out: the machine stops all the same.
        let _ = unsafe { send_for_file(&device, Parts::plain(major::SHUTDOWN), core::ptr::null_mut(), at) };
        told += 1;
    }
}
