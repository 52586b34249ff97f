//! A queue of packets that wait for their driver, and may be cancelled meanwhile.
//!
//! Owns:       [`CancelSafeQueue`]. The protocol is `sync::cancel`'s.
//! IRQL:       up to DISPATCH.
//! Locks:      the list's own, a raw one, as the routine is called without a token.
//! Invariants: I1 what is in the list is marked pending, and this queue's: its `driver_context[3]` says so.
//!             I2 a packet in the list leads to it, so the list has a place of its own in the pool: the queue may be moved, and one that is
//!                forgotten leaves its list there. The list goes with the queue, when nobody has its lock; a packet in it then is a bugcheck.
//! Not as NT:  the queue is in order of arrival. IO_CSQ, whose list is the driver's, is csq_raw.rs.
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
use super::{MayDoIo, complete_request, violation};
use crate::mm::pool::{Owned, Tag};
use crate::rtl::{KListEntry, NtStatus};

/// Of queues' lists.
const TAG: Tag = Tag::new(b"IoCs");

/// See the module.
#[doc(alias = "IO_CSQ")]
pub struct CancelSafeQueue(Owned<List>);

/// Where the packets are (I2).
struct List {
    lock: KSpinLock,
    /// Under the lock.
    head: UnsafeCell<KListEntry>,
}

// SAFETY: the list is accessed under the lock; packets in it are the queue's (I1).
unsafe impl Sync for List {}
// SAFETY: as above: links lead to where it is, and it is moved before there are any.
unsafe impl Send for List {}

/// As a cancel routine's address is stored.
const ROUTINE: CancelRoutine = packet_is_cancelled;

impl CancelSafeQueue {
    /// Without packets.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "IoCsqInitialize")]
    pub fn new<L: MayDoIo>(at: &mut Irql<L>) -> Result<Self, NtStatus> {
        let list = List { lock: KSpinLock::new(), head: UnsafeCell::new(KListEntry::UNLINKED) };
        let list = Owned::try_new(TAG, list, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
        // SAFETY: in its place, and nobody else's yet.
        unsafe { KListEntry::initialize(list.head()) };
        Ok(Self(list))
    }

    /// Keeps a packet, until somebody takes it or cancels it.
    #[doc(alias = "IoCsqInsertIrp")]
    pub fn insert<'c, L: MayDoIo>(&self, irp: Irp<'c>, _: &mut Irql<L>) -> Handled<'c> {
        irp.pend(|packet| {
            // SAFETY: ours, marked pending, in no queue, without a routine; the routine ends in `cancelled` with it. The token is
            // borrowed until the level is restored.
            let refused = unsafe { cancel::insert(&*self.0, packet, ROUTINE as *mut CancelCode, ()) };
            debug_assert!(refused.is_ok());
        })
    }

    /// Takes the first one out that nobody cancels.
    #[doc(alias = "IoCsqRemoveNextIrp")]
    pub fn take<L: MayDoIo>(&self, _: &mut Irql<L>) -> Option<Pended> {
        let packet = cancel::take_next(&*self.0, ())?;
        // SAFETY: it is ours now, and was marked (I1).
        Some(unsafe { Pended::from_raw(packet) })
    }
}

impl List {
    fn head(&self) -> NonNull<KListEntry> {
        // SAFETY: never null.
        unsafe { NonNull::new_unchecked(self.head.get()) }
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // Whoever took the last packet out may still be about to release the lock.
        let held = Queue::acquire(self);
        // SAFETY: the lock is held.
        let first = unsafe { KListEntry::first(self.head()) };
        Queue::release(self, held);
        if let Some(links) = first {
            violation::dropped(links.addr().get() - offset_of!(KIrp, list_entry));
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
unsafe impl Queue for List {
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
            (*request.as_ptr()).driver_context[3] = core::ptr::from_ref(self).cast_mut().cast();
            KListEntry::insert_before(self.head(), links_of(request));
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
                None => self.head(),
            };
            KListEntry::after(self.head(), from).map(|links| packet_of(links))
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
        let queue = &*(*irp).driver_context[3].cast::<List>();
        cancel::cancelled(queue, NonNull::new_unchecked(irp));
    }
}
