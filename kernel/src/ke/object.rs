//! The head of every dispatcher object: NT's DISPATCHER_HEADER, with the object's lock in its first word.
//!
//! | bits of the first word | meaning |
//! |---|---|
//! | 0–6 | object type |
//! | 7 | the lock, rank `ObjectLock` |
//! | 8 | of a timer: absolute, moves with the system time |
//! | 30 | of a timer: in a timer table |
//!
//! IRQL:       at or below DISPATCH.
//! Invariants: I1 `waiters` is the list of the wait blocks that are registered here, in the order of their waits; it changes under
//!                the lock. Empty: the first is null, so that an object can be made in a constant and moved while nobody waits.
//!             I2 its lock is free, and it is signalled => the waits for it alone, or for any, of those that are registered are over. So
//!                who signals it ends them before it lets go of the lock, and who registers has found it not signalled under
//!                the same lock. But for a queue, whose entries wait for room, and a thread's own timer as its timeout. Checked build, at
//!                each release by `HeaderGuard`.
//! Sources:    WDK `wdm.h`, DISPATCHER_HEADER.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicI32, Ordering};

use arch::trace::{self, Kind, about};
use sync::bit_lock::{HeldBit, LockWord, WordGuard};
use sync::irql::{Below, Irql, ObjectLock};

use super::wait::block::WaitBlock;

/// Object types, NT's KOBJECTS.
pub mod kind {
    /// Wakes all, stays signalled.
    pub const NOTIFICATION_EVENT: u8 = 0;
    /// Wakes one.
    pub const SYNCHRONIZATION_EVENT: u8 = 1;
    /// Owned by a thread.
    pub const MUTANT: u8 = 2;
    /// Signalled when it ends.
    pub const PROCESS: u8 = 3;
    /// Entries for threads.
    pub const QUEUE: u8 = 4;
    /// Counts.
    pub const SEMAPHORE: u8 = 5;
    /// Signalled when it ends.
    pub const THREAD: u8 = 6;
    /// As a synchronization event, inside the kernel.
    pub const GATE: u8 = 7;
    /// Stays signalled when it expires.
    pub const NOTIFICATION_TIMER: u8 = 8;
    /// Releases one waiter when it expires.
    pub const SYNCHRONIZATION_TIMER: u8 = 9;
}

/// See the module.
#[repr(C)]
pub struct Header {
    /// Type, flags and lock.
    pub(crate) word: LockWord<ObjectLock>,
    /// Above zero: signalled. Written under the lock.
    signal_state: AtomicI32,
    /// I1.
    waiters: UnsafeCell<Waiters>,
}

/// First and last.
struct Waiters {
    first: *mut WaitBlock,
    last: *mut WaitBlock,
}

const _: () = assert!(size_of::<Header>() == 24 && align_of::<Header>() == 8);

sync::nt_layout! {
    [] Header = "DISPATCHER_HEADER" { word => "Lock", signal_state => "SignalState", waiters => "WaitListHead", }
}

// SAFETY: `waiters` is accessed under the lock (I1); the rest is atomics.
unsafe impl Sync for Header {}
// SAFETY: an object is moved only while nobody waits for it, so no block leads elsewhere.
unsafe impl Send for Header {}

impl Header {
    /// With a signal state; nobody waits.
    pub(crate) const fn new(kind: u8, signal_state: i32) -> Self {
        Self {
            word: LockWord::new(kind as u32),
            signal_state: AtomicI32::new(signal_state),
            waiters: UnsafeCell::new(Waiters { first: ptr::null_mut(), last: ptr::null_mut() }),
        }
    }

    /// Is it signalled? Stale at once.
    #[doc(alias = "KeReadStateTimer")]
    #[doc(alias = "KeReadStateEvent")]
    pub fn is_signalled(&self) -> bool {
        self.signal_state() > 0
    }

    /// The signal state: exact under the lock.
    #[inline(always)]
    pub(crate) fn signal_state(&self) -> i32 {
        self.signal_state.load(Ordering::Relaxed)
    }
}

impl Header {
    /// The caller holds the lock.
    #[inline(always)]
    pub(crate) fn set_signal_state(&self, state: i32) {
        if trace::ENABLED && state > self.signal_state() {
            about(Kind::Signal, self.kind().into(), self, state as u64);
        }
        self.signal_state.store(state, Ordering::Relaxed);
    }

    /// Takes its lock.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub(crate) fn lock<'a, L: Below<ObjectLock>>(&'a self, at: &'a mut Irql<L>) -> HeaderGuard<'a> {
        HeaderGuard {
            #[cfg(feature = "verifier")]
            left: super::wait::lost::OnRelease(self),
            guard: self.word.lock(at),
        }
    }

    /// The object's type.
    #[inline(always)]
    pub(crate) fn kind(&self) -> u8 {
        self.word.bits() as u8 & 0x7F
    }

    /// The first that waits; null: nobody.
    ///
    /// # Safety
    /// The caller holds the lock.
    #[inline(always)]
    pub(crate) unsafe fn first_waiter(&self) -> *mut WaitBlock {
        // SAFETY: I1.
        unsafe { (*self.waiters.get()).first }
    }

    /// The last that waits; null: nobody.
    ///
    /// # Safety
    /// The caller holds the lock.
    pub(crate) unsafe fn last_waiter(&self) -> *mut WaitBlock {
        // SAFETY: I1. `last` says nothing of an empty list.
        unsafe {
            let waiters = &*self.waiters.get();
            if waiters.first.is_null() { ptr::null_mut() } else { waiters.last }
        }
    }

    /// Registers `block` behind the others.
    ///
    /// # Safety
    /// The caller holds the lock; `block` is valid until it is taken out, and registered nowhere.
    #[inline(always)]
    pub(crate) unsafe fn register(&self, block: *mut WaitBlock) {
        // SAFETY: I1; the caller's.
        unsafe {
            let waiters = &mut *self.waiters.get();
            if waiters.first.is_null() {
                (*block).link_behind(ptr::null_mut());
                waiters.first = block;
            } else {
                (*block).link_behind(waiters.last);
                (*waiters.last).set_next(block);
            }
            waiters.last = block;
        }
    }

    /// Takes the first block out, which is `block`.
    ///
    /// # Safety
    /// That, and the caller holds the lock.
    #[inline(always)]
    pub(crate) unsafe fn unregister_first(&self, block: &mut WaitBlock) {
        let (_, next) = block.unlink();
        // SAFETY: I1: its neighbour is registered too, hence valid.
        unsafe {
            (*self.waiters.get()).first = next;
            if let Some(next) = next.as_mut() {
                next.set_previous(ptr::null_mut());
            }
        }
    }

    /// Takes `block` out, if it still is registered.
    ///
    /// # Safety
    /// The caller holds the lock; `block` was registered here.
    #[inline(always)]
    pub(crate) unsafe fn unregister(&self, block: *mut WaitBlock) {
        // SAFETY: I1: neighbours are registered too, hence valid.
        unsafe {
            if !(*block).is_linked() {
                return;
            }
            let waiters = &mut *self.waiters.get();
            let (previous, next) = (*block).unlink();
            match previous.as_mut() {
                Some(previous) => previous.set_next(next),
                None => waiters.first = next,
            }
            match next.as_mut() {
                Some(next) => next.set_previous(previous),
                None => waiters.last = previous,
            }
        }
    }
}

/// The object's lock is held. Fields drop in order: first the look at what is left behind (I2), then the lock.
pub(crate) struct HeaderGuard<'a> {
    #[cfg(feature = "verifier")]
    #[expect(dead_code, reason = "for its drop")]
    left: super::wait::lost::OnRelease<'a>,
    guard: WordGuard<'a, ObjectLock>,
}

impl<'a> HeaderGuard<'a> {
    /// The lock's other bits and the token.
    #[inline(always)]
    pub(crate) fn parts(&mut self) -> (&mut HeldBit<'a, ObjectLock>, &mut Irql<ObjectLock>) {
        self.guard.parts()
    }

    /// The lock's other bits.
    #[inline(always)]
    pub(crate) fn bits(&self) -> u32 {
        self.guard.bits()
    }
}
