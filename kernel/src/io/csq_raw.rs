//! Cancel-safe queues whose list is the driver's: NT's IO_CSQ. The one of drivers in Rust is csq.rs; the protocol of both is `sync::cancel`.
//!
//! IRQL:       up to DISPATCH; the lock is the driver's, by its routines.
//! Invariants: Q1 a packet in a queue leads to it by `driver_context[3]`: to the queue, or to the context that it was inserted with, which leads
//!                there. Both begin with a type.
//!             Q2 a context's `irp` is the packet that was inserted with it as long as that is in the queue. It changes under the lock.
//! Tests:      tests/props/tests/io_csq.rs; tests/models/tests/cancel.rs; mutant `context_keeps_its_packet`.
//! Sources:    WDK, `IoCsqInitializeEx`, `IoCsqInsertIrpEx`, `IoCsqRemoveIrp`, `IoCsqRemoveNextIrp`, "Cancel-Safe IRP Queues".

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use sync::cancel::{self, Cancelled, Queue, RoutineSlot};

use super::layout::{CancelCode, CancelRoutine, KIrp};
use super::objects::KDeviceObject;
use super::packet;
use crate::rtl::NtStatus;

/// Of [`KCsqContext::kind`].
const CSQ_IRP_CONTEXT: u32 = 1;
/// Of [`KCsq::kind`]: its insert can't fail.
const CSQ: u32 = 2;
/// Of [`KCsq::kind`]: its insert says how it went.
const CSQ_EX: u32 = 3;

/// Puts a packet into the driver's list. The lock is held, as in all but the last two of these.
pub type CsqInsert = unsafe extern "win64" fn(*mut KCsq, *mut KIrp);
/// The same, with what the caller has for it; an error: it isn't there.
pub type CsqInsertEx = unsafe extern "win64" fn(*mut KCsq, *mut KIrp, *mut c_void) -> NtStatus;
/// Takes a packet out.
pub type CsqRemove = unsafe extern "win64" fn(*mut KCsq, *mut KIrp);
/// The packet behind another one, or the first behind null, that is as wanted; null: none.
pub type CsqPeekNext = unsafe extern "win64" fn(*mut KCsq, *mut KIrp, *mut c_void) -> *mut KIrp;
/// Takes the lock; the level to go back to.
pub type CsqAcquire = unsafe extern "win64" fn(*mut KCsq, *mut u8);
/// Releases it.
pub type CsqRelease = unsafe extern "win64" fn(*mut KCsq, u8);
/// Ends a packet that was cancelled. The lock is not held.
pub type CsqCompleteCancelled = unsafe extern "win64" fn(*mut KCsq, *mut KIrp);

/// Either kind of insert.
#[derive(Clone, Copy)]
#[repr(C)]
union Insert {
    plain: CsqInsert,
    extended: CsqInsertEx,
}

/// NT's IO_CSQ, byte for byte.
#[repr(C)]
#[doc(alias = "IO_CSQ")]
pub struct KCsq {
    kind: u32,
    insert: Insert,
    remove: CsqRemove,
    peek_next: CsqPeekNext,
    acquire: CsqAcquire,
    release: CsqRelease,
    complete_cancelled: CsqCompleteCancelled,
    reserved: *mut c_void,
}

/// NT's IO_CSQ_IRP_CONTEXT, byte for byte: by which a driver takes one packet out, while it is in.
#[repr(C)]
#[doc(alias = "IO_CSQ_IRP_CONTEXT")]
pub struct KCsqContext {
    kind: u32,
    irp: *mut KIrp,
    csq: *mut KCsq,
}

const _: () = assert!(size_of::<KCsq>() == 64 && size_of::<KCsqContext>() == 24);

sync::nt_layout! {
    [] KCsq = "IO_CSQ" {
        kind => "Type", insert => "CsqInsertIrp", remove => "CsqRemoveIrp", peek_next => "CsqPeekNextIrp",
        acquire => "CsqAcquireLock", release => "CsqReleaseLock", complete_cancelled => "CsqCompleteCanceledIrp",
        reserved => "ReservePointer",
    }
}

sync::nt_layout! { [] KCsqContext = "IO_CSQ_IRP_CONTEXT" { kind => "Type", irp => "Irp", csq => "Csq", } }

impl KCsqContext {
    /// For an insert.
    pub const EMPTY: Self = Self { kind: 0, irp: ptr::null_mut(), csq: ptr::null_mut() };
}

/// What a driver says of its list.
#[derive(Clone, Copy)]
pub struct CsqRoutines {
    /// Takes a packet out.
    pub remove: CsqRemove,
    /// Looks for one.
    pub peek_next: CsqPeekNext,
    /// Takes the lock.
    pub acquire: CsqAcquire,
    /// Releases it.
    pub release: CsqRelease,
    /// Ends a packet that was cancelled.
    pub complete_cancelled: CsqCompleteCancelled,
}

fn made(kind: u32, insert: Insert, routines: &CsqRoutines) -> KCsq {
    let CsqRoutines { remove, peek_next, acquire, release, complete_cancelled } = *routines;
    KCsq { kind, insert, remove, peek_next, acquire, release, complete_cancelled, reserved: ptr::null_mut() }
}

impl KCsq {
    /// One whose insert can't fail.
    #[doc(alias = "IoCsqInitialize")]
    pub fn new(insert: CsqInsert, routines: &CsqRoutines) -> Self {
        made(CSQ, Insert { plain: insert }, routines)
    }

    /// One whose insert can.
    #[doc(alias = "IoCsqInitializeEx")]
    pub fn new_ex(insert: CsqInsertEx, routines: &CsqRoutines) -> Self {
        made(CSQ_EX, Insert { extended: insert }, routines)
    }
}

/// A queue, by a pointer that may reach what it is a part of.
struct Csq(NonNull<KCsq>);

/// Which packet is to be taken out.
#[derive(Clone, Copy)]
enum Wanted {
    /// One that the driver finds.
    Next(*mut c_void),
    /// That of a context.
    Of(NonNull<KCsqContext>),
}

impl Csq {
    fn get(&self) -> &KCsq {
        // SAFETY: there as long as it is used (`insert`, 1).
        unsafe { self.0.as_ref() }
    }
}

// SAFETY: 1, 2: the driver's routines, which its callers answer for. 3. they are the packet's own.
unsafe impl Queue for Csq {
    type Request = KIrp;
    type Routine = CancelCode;
    type Held = u8;
    type Insert = (*mut KCsqContext, *mut c_void);
    type Wanted = Wanted;

    unsafe fn cancelled<'r>(&self, request: NonNull<KIrp>) -> &'r Cancelled {
        // SAFETY: the caller's: valid; the field is atomic.
        unsafe { &(*request.as_ptr()).cancel }
    }

    unsafe fn routine<'r>(&self, request: NonNull<KIrp>) -> &'r RoutineSlot<CancelCode> {
        // SAFETY: as above.
        unsafe { &(*request.as_ptr()).cancel_routine }
    }

    fn acquire(&self) -> u8 {
        let mut old = 0;
        // SAFETY: the driver's routine, with its queue.
        unsafe { (self.get().acquire)(self.0.as_ptr(), &raw mut old) };
        old
    }

    fn release(&self, held: u8) {
        // SAFETY: as above; acquired before, with this level.
        unsafe { (self.get().release)(self.0.as_ptr(), held) };
    }

    unsafe fn insert(&self, request: NonNull<KIrp>, how: Self::Insert) -> Result<(), u32> {
        let (context, insert_context) = how;
        // SAFETY: the lock is held; the packet is ours, and the context its inserter's.
        unsafe {
            let csq = self.0.as_ptr();
            if self.get().kind == CSQ_EX {
                let status = (self.get().insert.extended)(csq, request.as_ptr(), insert_context);
                if !status.is_success() {
                    return Err(status.0);
                }
            } else {
                (self.get().insert.plain)(csq, request.as_ptr());
            }
            // Q1, Q2.
            (*request.as_ptr()).driver_context[3] = if context.is_null() {
                csq.cast()
            } else {
                context.write(KCsqContext { kind: CSQ_IRP_CONTEXT, irp: request.as_ptr(), csq });
                context.cast()
            };
            packet::mark_pending(request);
        }
        Ok(())
    }

    unsafe fn remove(&self, request: NonNull<KIrp>) {
        // SAFETY: the lock is held, and it is in the queue (Q1).
        unsafe {
            let leads_to = (*request.as_ptr()).driver_context[3].cast::<u32>();
            if *leads_to == CSQ_IRP_CONTEXT {
                // Q2.
                (*leads_to.cast::<KCsqContext>()).irp = ptr::null_mut();
            }
            (self.get().remove)(self.0.as_ptr(), request.as_ptr());
        }
    }

    unsafe fn peek(&self, after: Option<NonNull<KIrp>>, wanted: Wanted) -> Option<NonNull<KIrp>> {
        // SAFETY: the lock is held; `after` is in the queue.
        unsafe {
            match (wanted, after) {
                (Wanted::Next(context), after) => {
                    let after = after.map_or(ptr::null_mut(), NonNull::as_ptr);
                    NonNull::new((self.get().peek_next)(self.0.as_ptr(), after, context))
                }
                (Wanted::Of(context), None) => NonNull::new((*context.as_ptr()).irp),
                // A canceller has it.
                (Wanted::Of(_), Some(_)) => None,
            }
        }
    }

    unsafe fn complete_cancelled(&self, request: NonNull<KIrp>) {
        // SAFETY: the driver's routine, with a packet that is its own again.
        unsafe { (self.get().complete_cancelled)(self.0.as_ptr(), request.as_ptr()) };
    }
}

/// Puts a packet into the queue, marked pending; it may have ended when this returns. An error is the driver's: the packet isn't there.
///
/// # Safety
/// 1. The queue is one, its routines do what they say, and it stays until the packet is out, and its lock released behind that.
/// 2. The packet is the caller's, who is a driver, in no queue and without a cancel routine; its `driver_context[3]` is the queue's.
/// 3. A context stays as long as the packet is in, and longer if it is used.
#[doc(alias = "IoCsqInsertIrp")]
#[doc(alias = "IoCsqInsertIrpEx")]
pub unsafe fn insert(
    csq: NonNull<KCsq>,
    irp: NonNull<KIrp>,
    context: *mut KCsqContext,
    insert_context: *mut c_void,
) -> NtStatus {
    const ROUTINE: CancelRoutine = packet_is_cancelled;
    // SAFETY: the caller's; the routine ends in `cancelled` with it.
    let inserted =
        unsafe { cancel::insert(&Csq(csq), irp, ROUTINE as *mut CancelCode, (context, insert_context)) };
    inserted.map_or_else(NtStatus, |()| NtStatus::SUCCESS)
}

/// Takes the packet of a context out; null: it is out already, or about to be cancelled.
///
/// # Safety
/// As [`insert`]'s 1; the context was used for an insert, or is empty.
#[doc(alias = "IoCsqRemoveIrp")]
pub unsafe fn remove(csq: NonNull<KCsq>, context: NonNull<KCsqContext>) -> *mut KIrp {
    cancel::take_next(&Csq(csq), Wanted::Of(context)).map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// Takes the first packet out that the driver finds as wanted and that nobody cancels; null: none.
///
/// # Safety
/// As [`insert`]'s 1.
#[doc(alias = "IoCsqRemoveNextIrp")]
pub unsafe fn remove_next(csq: NonNull<KCsq>, peek_context: *mut c_void) -> *mut KIrp {
    cancel::take_next(&Csq(csq), Wanted::Next(peek_context)).map_or(ptr::null_mut(), NonNull::as_ptr)
}

/// The cancel routine of what is in a queue: called with the cancel lock held.
unsafe extern "win64" fn packet_is_cancelled(_: *mut KDeviceObject, irp: *mut KIrp) {
    // SAFETY: the routine was set by `insert`, and taken by who calls it. So the packet is in its queue (Q1), which stays (`insert`, 1).
    unsafe {
        super::cancel::release_lock((*irp).cancel_irql);
        let leads_to = (*irp).driver_context[3];
        let csq = if *leads_to.cast::<u32>() == CSQ_IRP_CONTEXT {
            (*leads_to.cast::<KCsqContext>()).csq
        } else {
            leads_to.cast()
        };
        cancel::cancelled(&Csq(NonNull::new_unchecked(csq)), NonNull::new_unchecked(irp));
    }
}
