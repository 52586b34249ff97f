//! A queue of packets that wait for their driver, and may be cancelled meanwhile.
//!
//! Owns:       [`CancelSafeQueue`]. The protocol is `sync::cancel`'s.
//! IRQL:       up to DISPATCH.
//! Locks:      the list's own, a raw one, as the routine is called without a token.
//! Invariants: I1 what is in the list is marked pending, and this queue's: its `driver_context[3]` says so.
//!             I2 the queue stays where it is while a packet is in it, as the packet leads to it: it is a static, or in a device's
//!                extension, which stays while packets are under way. One that is dropped with packets in it is a bugcheck.
//! Not as NT:  IO_CSQ's routines of the driver come with foreign drivers; the queue is in order of arrival.
//! Tests:      tests/models/tests/cancel.rs; selftest `io::*`.
//! Sources:    WDK, "Cancel-Safe IRP Queues".

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::NonNull;

use sync::cancel::{self, Cancelled, Queue, RoutineSlot};
use sync::irql::Irql;
use sync::raw::{self, KSpinLock};

use super::irp::{Handled, Irp, Pended};
use super::layout::{CancelCode, CancelRoutine, IoStatus, KIrp};
use super::objects::KDeviceObject;
use super::{MayDoIo, complete_request};
use crate::ke::bugcheck::StopCode;
use crate::rtl::{KListEntry, NtStatus};

/// See the module.
#[doc(alias = "IO_CSQ")]
pub struct CancelSafeQueue {
    lock: KSpinLock,
    /// Under the lock; null links: nothing was ever in it.
    head: UnsafeCell<KListEntry>,
}

// SAFETY: the list is accessed under the lock; packets in it are the queue's (I1).
unsafe impl Sync for CancelSafeQueue {}
// SAFETY: it is moved only while nothing is in it (I2).
unsafe impl Send for CancelSafeQueue {}

/// As a cancel routine's address is stored.
const ROUTINE: CancelRoutine = packet_is_cancelled;

impl CancelSafeQueue {
    /// Without packets.
    #[doc(alias = "IoCsqInitialize")]
    pub const fn new() -> Self {
        Self { lock: KSpinLock::new(), head: UnsafeCell::new(KListEntry::UNLINKED) }
    }

    /// Keeps a packet, until somebody takes it or cancels it.
    #[doc(alias = "IoCsqInsertIrp")]
    pub fn insert<'c, L: MayDoIo>(&self, irp: Irp<'c>, _: &mut Irql<L>) -> Handled<'c> {
        irp.pend(|packet| {
            // SAFETY: ours, marked pending, in no queue, without a routine; the routine ends in `cancelled` with it. The token is
            // borrowed until the level is restored.
            let refused = unsafe { cancel::insert(self, packet, ROUTINE as *mut CancelCode, ()) };
            debug_assert!(refused.is_ok());
        })
    }

    /// Takes the first one out that nobody cancels.
    #[doc(alias = "IoCsqRemoveNextIrp")]
    pub fn take<L: MayDoIo>(&self, _: &mut Irql<L>) -> Option<Pended> {
        let packet = cancel::take_next(self, ())?;
        // SAFETY: it is ours now, and was marked (I1).
        Some(unsafe { Pended::from_raw(packet) })
    }

    fn list(&self) -> NonNull<KListEntry> {
        // SAFETY: never null.
        unsafe { NonNull::new_unchecked(self.head.get()) }
    }
}

impl Default for CancelSafeQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for CancelSafeQueue {
    fn drop(&mut self) {
        let head = self.head.get_mut();
        let place = core::ptr::from_ref(head).cast_mut();
        if !head.next.is_null() && head.next != place {
            // As a packet that was dropped.
            let packet = head.next.addr() - offset_of!(KIrp, list_entry);
            super::bugcheck(StopCode::DriverVerifierIomanagerViolation, [0x1005, 0, packet as u64, 0]);
        }
    }
}

/// The packet whose links these are.
///
/// # Safety
/// They are a packet's.
unsafe fn packet_of(links: NonNull<KListEntry>) -> NonNull<KIrp> {
    // SAFETY: the caller's.
    unsafe { links.byte_sub(offset_of!(KIrp, list_entry)).cast() }
}

/// # Safety
/// The packet is valid.
unsafe fn links_of(packet: NonNull<KIrp>) -> NonNull<KListEntry> {
    // SAFETY: the caller's.
    unsafe { packet.byte_add(offset_of!(KIrp, list_entry)).cast() }
}

// SAFETY: 1. `acquire` and `release` are a lock's. 2. the list is in order of arrival, and has what was inserted. 3. they are the packet's own.
unsafe impl Queue for CancelSafeQueue {
    type Request = KIrp;
    type Routine = CancelCode;
    type Held = u8;
    type Insert = ();
    type Wanted = ();

    unsafe fn cancelled<'r>(&self, request: NonNull<KIrp>) -> &'r Cancelled {
        // SAFETY: the caller's: valid; the field is atomic.
        unsafe { &(*request.as_ptr()).cancel }
    }

    unsafe fn routine<'r>(&self, request: NonNull<KIrp>) -> &'r RoutineSlot<CancelCode> {
        // SAFETY: as above.
        unsafe { &(*request.as_ptr()).cancel_routine }
    }

    fn acquire(&self) -> u8 {
        // SAFETY: whoever calls has its token borrowed until the release.
        unsafe { raw::acquire(&self.lock) }
    }

    fn release(&self, held: u8) {
        // SAFETY: acquired before, with this level.
        unsafe { raw::release(&self.lock, held) };
    }

    unsafe fn insert(&self, request: NonNull<KIrp>, (): ()) -> Result<(), u32> {
        // SAFETY: the lock is held; the packet is ours, and its links are nobody's.
        unsafe {
            if self.list().as_ref().next.is_null() {
                KListEntry::initialize(self.list());
            }
            (*request.as_ptr()).driver_context[3] = core::ptr::from_ref(self).cast_mut().cast();
            KListEntry::insert_before(self.list(), links_of(request));
        }
        Ok(())
    }

    unsafe fn remove(&self, request: NonNull<KIrp>) {
        // SAFETY: the lock is held, and it is in the list.
        unsafe { KListEntry::remove(links_of(request)) };
    }

    unsafe fn peek(&self, after: Option<NonNull<KIrp>>, (): ()) -> Option<NonNull<KIrp>> {
        // SAFETY: the lock is held; `after` is in the list, and so is what is found.
        unsafe {
            let from = match after {
                Some(packet) => links_of(packet),
                None => self.list(),
            };
            KListEntry::after(self.list(), from).map(|links| packet_of(links))
        }
    }

    unsafe fn complete_cancelled(&self, request: NonNull<KIrp>) {
        // SAFETY: the caller's: ours; whoever it is has its token borrowed, or is a cancel routine, which has none.
        unsafe {
            (*request.as_ptr()).io_status = IoStatus::new(NtStatus::CANCELLED, 0);
            complete_request(request.as_ptr(), 0);
        }
    }
}

/// The cancel routine of what is in a queue: called with the cancel lock held.
unsafe extern "win64" fn packet_is_cancelled(_: *mut KDeviceObject, irp: *mut KIrp) {
    // SAFETY: the routine was set by `insert`, and taken by who calls it. So the packet is in its queue (I1), and the queue stays until
    // it is out, and, as its lock is released before the packet is completed, after that (I2).
    unsafe {
        super::cancel::release_lock((*irp).cancel_irql);
        let queue = &*(*irp).driver_context[3].cast::<CancelSafeQueue>();
        cancel::cancelled(queue, NonNull::new_unchecked(irp));
    }
}
