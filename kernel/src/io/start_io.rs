//! StartIo: packets of a device that does one thing after the other.
//!
//! ```text
//! start_packet                                   start_next_packet: the device has ended one
//!   device idle: StartIo is called with it         another waits: StartIo is called with it
//!   else it waits in the device's queue            else the device is idle
//! cancelled while it waits: out of the queue, ended; once started, it is the driver's
//! ```
//!
//! IRQL:       started up to DISPATCH, the next one at DISPATCH; StartIo is called there.
//! Locks:      the cancel lock, then the device queue's own.
//! Invariants: S1 a packet has a cancel routine from here exactly while it is in the device's queue: both change under the cancel lock, so
//!                who takes the routine finds the packet in the queue, and who starts it has taken the routine.
//!             S2 StartIo is called with a packet only while the device is busy with it: between a start and the next one.
//! Not as NT:  it is as with `IoSetStartIoAttributes`, NonCancelable and deferred: what is started has no cancel routine any more, and a
//!             StartIo that ends its packet at once and asks for the next is called again by a loop, not within itself.
//! Tests:      selftest `io_start::*`; mutants `started_with_its_routine`, `next_not_started`.
//! Sources:    WDK, `IoStartPacket`, `IoStartNextPacket`, DRIVER_STARTIO, "Writing StartIo Routines".

use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use sync::irql::{Dispatch, Irql};

use super::layout::{IoStatus, KIrp};
use super::objects::{KDeviceObject, KDeviceQueueEntry};
use super::{MayDoIo, cancel, complete_request, device_queue, packet};
use crate::rtl::NtStatus;

/// A packet's place in a device queue: its `driver_context`.
fn entry_of(irp: NonNull<KIrp>) -> NonNull<KDeviceQueueEntry> {
    const { assert!(size_of::<KDeviceQueueEntry>() <= 32) };
    // SAFETY: within the packet.
    unsafe { irp.byte_add(offset_of!(KIrp, driver_context)).cast() }
}

/// # Safety
/// `entry` is a packet's.
unsafe fn packet_of(entry: NonNull<KDeviceQueueEntry>) -> NonNull<KIrp> {
    // SAFETY: the caller's.
    unsafe { entry.byte_sub(offset_of!(KIrp, driver_context)).cast() }
}

/// Starts a packet, or has it wait: in order, or by `key`.
///
/// # Safety
/// The packet is the caller's, marked pending, at a location of `device`, whose driver has a StartIo routine; its `driver_context` is no one
/// else's. It is the driver's StartIo's, or the queue's, from here on.
#[doc(alias = "IoStartPacket")]
pub(super) unsafe fn start_packet<L: MayDoIo>(
    device: NonNull<KDeviceObject>,
    irp: NonNull<KIrp>,
    key: Option<u32>,
    at: &mut Irql<L>,
) {
    let mut raised = at.raise::<Dispatch>();
    // SAFETY: the caller's. The lock restores DISPATCH, which the token says.
    unsafe {
        let queue = device.as_ref().queue();
        let old = cancel::acquire_lock();
        let waits = match key {
            None => {
                // What comes by a key later stays behind it.
                (*entry_of(irp).as_ptr()).sort_key = 0;
                device_queue::insert(queue, entry_of(irp))
            }
            Some(key) => device_queue::insert_by_key(queue, entry_of(irp), key),
        };
        if waits {
            // S1.
            cancel::set_routine(irp, Some(cancelled));
            let is_cancelled = (*irp.as_ptr()).cancel.get();
            if is_cancelled && cancel::set_routine(irp, None).is_some() {
                (*irp.as_ptr()).cancel_irql = old;
                cancelled(device.as_ptr(), irp.as_ptr());
            } else {
                cancel::release_lock(old);
            }
            return;
        }
        device.as_ref().current_irp.store(irp.as_ptr(), Relaxed);
        cancel::release_lock(old);
        run(device, &mut raised);
    }
}

/// The device has ended what it was busy with: the next one is started, if any waits.
///
/// # Safety
/// The device's driver has a StartIo routine, and a packet that was started ended just now; for each of these this is called once.
#[doc(alias = "IoStartNextPacket")]
pub(super) unsafe fn start_next_packet(device: NonNull<KDeviceObject>, at: &mut Irql<Dispatch>) {
    // SAFETY: the caller's.
    unsafe {
        // Within StartIo: whoever called that goes on.
        if device.as_ref().io_extension().starts.fetch_add(1, AcqRel) == 0 {
            next(device, at);
        }
    }
}

/// Takes the next one out, and starts it.
///
/// # Safety
/// As [`start_next_packet`], by who has raised `starts` from zero.
unsafe fn next(device: NonNull<KDeviceObject>, at: &mut Irql<Dispatch>) {
    // SAFETY: the caller's.
    unsafe {
        device.as_ref().io_extension().starts.store(0, Relaxed);
        if take(device) {
            run(device, at);
        }
    }
}

/// The next one is the device's current one; false: none waits.
///
/// # Safety
/// As [`start_next_packet`].
unsafe fn take(device: NonNull<KDeviceObject>) -> bool {
    // SAFETY: the caller's; what is in the queue is a packet's entry.
    unsafe {
        let old = cancel::acquire_lock();
        let found = device_queue::remove(device.as_ref().queue()).map(|entry| packet_of(entry));
        // S1: nobody has taken it, as that would have taken the packet out, under this lock.
        if let Some(irp) = found {
            let _ = cancel::set_routine(irp, None);
        }
        let current = found.map_or(ptr::null_mut(), NonNull::as_ptr);
        device.as_ref().current_irp.store(current, Relaxed);
        cancel::release_lock(old);
        found.is_some()
    }
}

/// Calls StartIo with the current packet, and again as long as it asks for the next one before it returns.
///
/// # Safety
/// S2.
unsafe fn run(device: NonNull<KDeviceObject>, _: &mut Irql<Dispatch>) {
    // SAFETY: the caller's; the device's driver stays, as packets are here.
    unsafe {
        let starts = &device.as_ref().io_extension().starts;
        let Some(start_io) = (*device.as_ref().driver_object).driver_start_io else { return };
        loop {
            // From now on `start_next_packet` leaves it to this.
            starts.store(1, Relaxed);
            let irp = device.as_ref().current_irp.load(Relaxed);
            start_io(device.as_ptr(), irp);
            // Another processor may have ended it meanwhile, and asked.
            if starts.fetch_sub(1, AcqRel) == 1 {
                return;
            }
            // Before the device may be idle, and another one begins.
            starts.store(0, Relaxed);
            if !take(device) {
                return;
            }
        }
    }
}

/// The cancel routine of what waits, called with the cancel lock held.
unsafe extern "win64" fn cancelled(device: *mut KDeviceObject, irp: *mut KIrp) {
    // SAFETY: set by `start_packet`: a device's packet, which is in its queue (S1); then ours.
    unsafe {
        let irp = NonNull::new_unchecked(irp);
        let location = packet::current(irp).as_ref();
        let device = NonNull::new(device).unwrap_or(NonNull::new_unchecked(location.device_object));
        let was_in = device_queue::remove_entry(device.as_ref().queue(), entry_of(irp));
        debug_assert!(was_in, "S1");
        cancel::release_lock((*irp.as_ptr()).cancel_irql);
        (*irp.as_ptr()).io_status = IoStatus::new(NtStatus::CANCELLED, 0);
        complete_request(irp.as_ptr(), 0);
    }
}
