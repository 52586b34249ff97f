//! Work items of devices: a routine at PASSIVE, in a worker, while its device stays.
//!
//! IRQL:       queued up to DISPATCH; made and freed there, too.
//! Invariants: K1 an item that is queued has a reference to its device, which goes when the routine has returned.
//! Not as NT:  the item is opaque, so its layout is the kernel's.
//! Tests:      selftest `io_work::*`; mutant `device_gone_under_its_item`.
//! Sources:    WDK, `IoAllocateWorkItem`, `IoQueueWorkItem`, `IoFreeWorkItem`, "System Worker Threads".

use core::ffi::c_void;
use core::ptr::NonNull;

use sync::irql::{Irql, Passive};

use super::MayDoIo;
use super::objects::KDeviceObject;
use crate::ex::work::{self, KWorkItem, Queue};
use crate::mm::pool::{Owned, Tag};
use crate::ob::ObRef;
use crate::rtl::NtStatus;

/// What a device's work is.
pub type WorkRoutine = fn(&ObRef<KDeviceObject>, argument: usize, &mut Irql<Passive>);

const TAG: Tag = Tag::new(b"IoWi");

struct Work {
    /// First, as the worker's routine is given it.
    item: KWorkItem,
    device: ObRef<KDeviceObject>,
    routine: WorkRoutine,
    argument: usize,
}

/// Has `routine` called soon, by a worker of `queue`, with the device, which stays until it has returned, and a number.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES.
#[doc(alias = "IoAllocateWorkItem")]
#[doc(alias = "IoQueueWorkItem")]
pub fn queue<L: MayDoIo>(
    device: &ObRef<KDeviceObject>,
    routine: WorkRoutine,
    argument: usize,
    queue: Queue,
    at: &mut Irql<L>,
) -> Result<(), NtStatus> {
    let item = KWorkItem::new(run, core::ptr::null_mut());
    let work = Work { item, device: device.clone(), routine, argument };
    let work = Owned::try_new(TAG, work, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?.into_raw();
    // SAFETY: ours until it is queued, and then the worker's, which takes it over (K1).
    unsafe {
        (*work.as_ptr()).item = KWorkItem::new(run, work.as_ptr().cast());
        let is_queued = work::queue(NonNull::new_unchecked(&raw mut (*work.as_ptr()).item), queue, at);
        debug_assert!(is_queued, "it is new");
    }
    Ok(())
}

unsafe extern "win64" fn run(work: *mut c_void) {
    // SAFETY: queued by `queue`, and out of its queue: ours. At PASSIVE, with no token in use.
    unsafe {
        let work = Owned::from_raw(NonNull::new_unchecked(work.cast::<Work>()), TAG);
        Irql::<Passive>::lend(|at| (work.routine)(&work.device, work.argument, at));
    }
}
