//! Packets that drivers misuse.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use kernel::io::device;
use kernel::io::driver::{self, Driver};
use kernel::io::irp::{Handled, Irp};
use kernel::io::layout::{IoStatus, KIrp, ReadWrite, major};
use kernel::io::null::Null;
use kernel::io::objects::{KDeviceObject, KDriverObject};
use kernel::io::request::{Function, send_and_wait};
use kernel::io::{MayDoIo, call, complete, complete_request, packet};
use kernel::ob::ObRef;
use kernel::rtl::NtStatus;
use sync::irql::{Clock, Irql, Passive};

/// A packet with one location that is nobody's to free.
struct Memory(UnsafeCell<[u64; 64]>);

// SAFETY: one test, in one thread, uses it.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; 64]));

fn packet() -> NonNull<KIrp> {
    let place = NonNull::from(&MEMORY.0).cast::<KIrp>();
    // SAFETY: 512 bytes are enough for one location, and ours.
    unsafe { packet::initialize(place, 1, 0) };
    place
}

/// Does it; false for a name that is none of these.
pub(crate) fn run(name: &str, at: &mut Irql<Passive>) -> bool {
    match name {
        "irp_completed_twice" => {
            let irp = packet();
            // SAFETY: none for the second; that is the point.
            unsafe {
                complete::complete(irp, 0, at);
                complete::complete(irp, 0, at);
            }
        }
        "irp_completed_above_dispatch" => {
            let irp = packet();
            let _raised = at.raise::<Clock>();
            // SAFETY: none: it may be called up to DISPATCH.
            unsafe { complete_request(irp.as_ptr(), 0) };
        }
        "irp_no_location" => {
            let Some(device) = device_of(pends, at) else { return false };
            let irp = packet();
            // SAFETY: none for the second, which goes below the last location.
            unsafe {
                let _ = call::call_driver(device.as_ptr(), irp);
                let _ = call::call_driver(device.as_ptr(), irp);
            }
        }
        "irp_pending_unmarked" => send(says_pending, at),
        "irp_marked_not_pending" => send(marks_and_succeeds, at),
        "irp_dropped" => {
            let Ok(driver) = driver::register::<Drops, _>(at) else { return false };
            let Ok(device) = device::create_device(&driver, Drops, at) else { return false };
            let _ = send_and_wait(&device, Function::Flush, at);
        }
        "irp_ended_as_pending" => {
            let Ok(driver) = driver::register::<EndsAsPending, _>(at) else { return false };
            let Ok(device) = device::create_device(&driver, EndsAsPending, at) else { return false };
            let _ = send_and_wait(&device, Function::Flush, at);
        }
        _ => return false,
    }
    true
}

type Routine = unsafe extern "win64" fn(*mut KDeviceObject, *mut KIrp) -> NtStatus;

/// A device whose driver has a routine of its own for writes, as a foreign one.
fn device_of(routine: Routine, at: &mut Irql<Passive>) -> Option<ObRef<KDeviceObject>> {
    let driver = driver::register::<Null, _>(at).ok()?;
    let device = device::create_device(&driver, Null, at).ok()?;
    // SAFETY: nobody sends to it yet.
    unsafe {
        for function in [major::WRITE, major::CREATE] {
            KDriverObject::set_function(driver.as_ptr().as_ptr(), function, routine);
        }
    }
    Some(device)
}

fn send(routine: Routine, at: &mut Irql<Passive>) {
    if let Some(device) = device_of(routine, at) {
        let _ = send_and_wait(&device, Function::Write(ReadWrite::new(1, 0)), at);
    }
}

unsafe extern "win64" fn pends(_: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    // SAFETY: this driver's packet.
    unsafe { packet::mark_pending(NonNull::new_unchecked(irp)) };
    NtStatus::PENDING
}

unsafe fn complete_well(irp: *mut KIrp) {
    // SAFETY: the caller's: its packet.
    unsafe {
        (*irp).io_status = IoStatus::new(NtStatus::SUCCESS, 0);
        complete_request(irp, 0);
    }
}

unsafe extern "win64" fn says_pending(_: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    // SAFETY: this driver's packet.
    unsafe { complete_well(irp) };
    NtStatus::PENDING
}

unsafe extern "win64" fn marks_and_succeeds(_: *mut KDeviceObject, irp: *mut KIrp) -> NtStatus {
    // SAFETY: this driver's packet.
    unsafe {
        packet::mark_pending(NonNull::new_unchecked(irp));
        complete_well(irp);
    }
    NtStatus::SUCCESS
}

struct Drops;

impl Driver for Drops {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, _: &mut Irql<L>) -> Handled<'c> {
        drop(irp);
        unreachable!("the drop of a packet ends the run")
    }
}

struct EndsAsPending;

impl Driver for EndsAsPending {
    fn dispatch<'c, L: MayDoIo>(&self, irp: Irp<'c>, at: &mut Irql<L>) -> Handled<'c> {
        irp.complete(NtStatus::PENDING, 0, at)
    }
}
