//! Requests of files that go on by themselves: at their end a status block is written, an event signalled, a routine called.
//!
//! ```text
//! send: packet, buffers, what is to be told ── driver ── STATUS_PENDING          else: it has ended, and is finished by the sender
//!                                                 └─ the packet's end, anywhere, up to DISPATCH
//!                                                      └─ special APC to the sender's thread: buffers, status block, event
//!                                                           └─ normal APC, if there is a routine
//! the thread has ended: a worker does the same, but for the routine
//! ```
//!
//! IRQL:       sent at PASSIVE; what is told is told at APC, the routine called at PASSIVE, in the sender's thread.
//! Invariants: Y1 a `Pending` is the packet's from the call of the driver until its end, then of the APC or the work item that was queued for it;
//!                each of these takes it over, and the last one drops it.
//! Not as NT:  a request isn't cancelled when its thread ends, and nobody can ask for that by its file. One that failed at once tells by its
//!             status alone, as NT's.
//! Tests:      selftest `io_async::*`; mutant `told_twice`.
//! Sources:    WDK, `ZwReadFile`, `ZwWriteFile`, IO_STATUS_BLOCK; "Types of APCs".

use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr::{self, NonNull};
use core::sync::atomic::Ordering::Relaxed;

use sync::irql::{Apc, Irql, Passive};

use super::file_io::Operation;
use super::layout::{IoStatus, KIrp, allocation};
use super::objects::{KDeviceObject, KFileObject, file_flags};
use super::transfer::{MayTransfer, Transfer};
use super::{MayDoIo, allocate, call, request, stack};
use crate::ex::work::{self, KWorkItem};
use crate::ke::apc::{self, KApc, NormalRoutine, ProcessorMode};
use crate::ke::thread::{self, ThreadRef};
use crate::mm::pool::Owned;
use crate::ob::ObRef;
use crate::ob::dispatcher::EventObject;
use crate::rtl::NtStatus;

/// NT's PIO_APC_ROUTINE: its context, the status block, 0. In the sender's thread, at PASSIVE.
pub type ApcRoutine = NormalRoutine;

/// What is told when a request has ended.
pub struct Told {
    /// Signalled; none: the file's own event is.
    pub event: Option<ObRef<EventObject>>,
    /// Called, with the context.
    pub routine: Option<(ApcRoutine, *mut c_void)>,
    /// Written first.
    pub status: *mut IoStatus,
}

/// See the module. Y1.
#[repr(C)]
struct Pending {
    special: KApc,
    normal: KApc,
    orphan: KWorkItem,
    irp: NonNull<KIrp>,
    transfer: Transfer,
    file: ObRef<KFileObject>,
    thread: ThreadRef,
    told: Told,
    /// Keeps the stack, as the packet's maker has to.
    _top: ObRef<KDeviceObject>,
}

/// Sends a request of `file`, and doesn't wait: STATUS_PENDING, or how it has ended, which has been told then unless it failed.
///
/// # Errors
/// What kept it from being sent. STATUS_INVALID_PARAMETER: a synchronous file, or no place.
///
/// # Safety
/// 1. The memory that `operation` names, and the status block, stay until the request has ended, and may be used so.
/// 2. The routine may be called with its context.
pub(super) unsafe fn send(
    file: ObRef<KFileObject>,
    operation: &Operation,
    told: Told,
    at: &mut Irql<Passive>,
) -> Result<NtStatus, NtStatus> {
    if file.flags() & file_flags::SYNCHRONOUS_IO != 0 || operation.moves() {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let top = stack::top_of(&file.device(), at);
    let (parts, transfer) = operation.parts(top.flags(), 0, ProcessorMode::Kernel);
    let irp = allocate::allocate(top.stack_size(), at)?;
    let (routine, context) =
        told.routine.map_or((None, ptr::null_mut()), |(routine, it)| (Some(routine), it));
    let kernel = ProcessorMode::Kernel;
    let pending = Pending {
        special: KApc::new(kernel, arrived, Some(run_down), None, ptr::null_mut()),
        normal: KApc::new(kernel, about_to_be_told, Some(normal_run_down), routine, context),
        orphan: KWorkItem::new(orphaned, ptr::null_mut()),
        irp,
        transfer,
        file,
        thread: thread::current(at).reference(),
        told,
        _top: top,
    };
    let pending = match Owned::try_new(allocate::TAG, pending, at) {
        Ok(pending) => pending,
        Err(_) => {
            // SAFETY: ours, and never sent.
            unsafe { allocate::free(irp, at) };
            return Err(NtStatus::INSUFFICIENT_RESOURCES);
        }
    };
    match &pending.told.event {
        Some(event) => event.reset(at),
        None => pending.file.event.reset(at),
    };
    // Until the driver has returned: the packet's end, in an APC of this very thread, may come within the call, and drops what is pending.
    let device = pending._top.clone();
    // SAFETY: the packet is ours; the caller's. What it leads to is in `pending`, which stays until its end (Y1).
    unsafe {
        if let Err(status) = pending.transfer.attach(irp, at) {
            allocate::free(irp, at);
            return Err(status);
        }
        request::prepare(irp, parts, pending.file.as_ptr().as_ptr());
        let pending = pending.into_raw();
        (*pending.as_ptr()).orphan = KWorkItem::new(orphaned, pending.as_ptr().cast());
        (*irp.as_ptr()).allocation_flags |= allocation::KEPT | allocation::ASYNCHRONOUS;
        (*irp.as_ptr()).auxiliary_buffer = pending.as_ptr().cast();
        let status = call::call_driver(device.as_ptr(), irp);
        if status != NtStatus::PENDING {
            // It has ended unmarked, so nobody else has it.
            finish(Owned::from_raw(pending, allocate::TAG), !status.is_error(), at);
        }
        Ok(status)
    }
}

/// The packet has ended: what is told comes in its thread.
///
/// # Safety
/// It is one of `send`'s, and the caller's; it was marked pending.
pub(super) unsafe fn ended<L: MayDoIo>(irp: NonNull<KIrp>, increment: u8, at: &mut Irql<L>) {
    // SAFETY: the caller's: it leads to its `Pending`, which is ours now, and then the APC's or the item's (Y1). The thread has a reference,
    // of our own: the APC may have come and gone before the insert returns.
    unsafe {
        let pending = NonNull::new_unchecked((*irp.as_ptr()).auxiliary_buffer.cast::<Pending>());
        let thread = pending.as_ref().thread.reference();
        let special = NonNull::new_unchecked(&raw mut (*pending.as_ptr()).special);
        if !apc::insert(special, &thread, [ptr::null_mut(); 2], increment, at) {
            let orphan = NonNull::new_unchecked(&raw mut (*pending.as_ptr()).orphan);
            let is_queued = work::queue(orphan, work::Queue::Delayed, at);
            debug_assert!(is_queued, "Y1: once");
        }
    }
}

/// Takes the buffers back and tells, in whose context that may be.
///
/// # Safety
/// The packet has ended.
unsafe fn finish<L: MayTransfer>(pending: Owned<Pending>, is_told: bool, at: &mut Irql<L>) {
    // SAFETY: the caller's; ours (Y1).
    let end = unsafe {
        let end = pending.transfer.finish(pending.irp, at);
        allocate::free(pending.irp, at);
        end
    };
    pending.file.final_status.store(end.status.0, Relaxed);
    if !is_told {
        return;
    }
    // SAFETY: `send`'s 1: before the event, behind which it may be gone.
    unsafe { pending.told.status.write(end) };
    match &pending.told.event {
        Some(event) => event.set(0, at),
        None => pending.file.event.set(0, at),
    };
    if pending.told.routine.is_none() {
        return;
    }
    let thread = pending.thread.reference();
    let status = pending.told.status;
    let pending = pending.into_raw();
    // SAFETY: `send`'s 2; the APC has it now (Y1), and gives it back in its kernel routine or, where the thread has ended, here.
    unsafe {
        let normal = NonNull::new_unchecked(&raw mut (*pending.as_ptr()).normal);
        if !apc::insert(normal, &thread, [status.cast(), ptr::null_mut()], 0, at) {
            drop(Owned::from_raw(pending, allocate::TAG));
        }
    }
}

/// # Safety
/// `apc` is the special one of a `Pending` that is the caller's.
unsafe fn of_special(apc: *mut KApc) -> Owned<Pending> {
    const { assert!(offset_of!(Pending, special) == 0) };
    // SAFETY: the caller's.
    unsafe { Owned::from_raw(NonNull::new_unchecked(apc.cast()), allocate::TAG) }
}

/// # Safety
/// `apc` is the normal one of a `Pending` that is the caller's.
unsafe fn of_normal(apc: *mut KApc) -> Owned<Pending> {
    // SAFETY: the caller's.
    unsafe {
        let pending = apc.byte_sub(offset_of!(Pending, normal)).cast();
        Owned::from_raw(NonNull::new_unchecked(pending), allocate::TAG)
    }
}

/// The special APC's kernel routine: at APC, in the sender's thread.
unsafe extern "win64" fn arrived(
    apc: *mut KApc,
    _: *mut Option<NormalRoutine>,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
) {
    // SAFETY: queued by `ended`, and out of the queue: ours (Y1). The caller doesn't use its token meanwhile.
    unsafe { Irql::<Apc>::lend(|at| finish(of_special(apc), true, at)) };
}

/// The sender's thread ends with it.
unsafe extern "win64" fn run_down(apc: *mut KApc) {
    // SAFETY: as above, at PASSIVE.
    unsafe { Irql::<Passive>::lend(|at| finish(of_special(apc), true, at)) };
}

/// The normal APC's kernel routine: what its routine is called with has been copied.
unsafe extern "win64" fn about_to_be_told(
    apc: *mut KApc,
    _: *mut Option<NormalRoutine>,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
) {
    // SAFETY: queued by `finish`, and out of the queue: ours (Y1).
    drop(unsafe { of_normal(apc) });
}

unsafe extern "win64" fn normal_run_down(apc: *mut KApc) {
    // SAFETY: as above.
    drop(unsafe { of_normal(apc) });
}

/// The sender's thread had ended.
unsafe extern "win64" fn orphaned(pending: *mut c_void) {
    // SAFETY: queued by `ended`, and out of the queue: ours (Y1). At PASSIVE, with no token in use.
    unsafe {
        let pending = Owned::from_raw(NonNull::new_unchecked(pending.cast()), allocate::TAG);
        Irql::<Passive>::lend(|at| finish(pending, true, at));
    }
}
