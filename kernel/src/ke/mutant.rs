//! Mutants: NT's KMUTANT (KMUTEX), owned by a thread, recursive, abandoned when that ends.
//!
//! The signal state is 1 while it is free, and falls by one with each acquisition by its owner.
//!
//! IRQL:       release at PASSIVE or APC, by the owner; waiting is `wait`'s.
//! Locks:      the object's.
//! Invariants: I1 the signal state is below 1 <=> the owner has it in its list of held mutants: `sync::ownership` says whose the list is.
//!                Both change under the object's lock.
//!             I2 a held mutant stays where it is: its owner's list leads to it. Who makes one answers for that.
//! Tests:      tests/models/tests/mutant.rs; selftest `waits::mutant_*`.
//! Sources:    WDK, `KeInitializeMutex`, `KeReleaseMutex`, "Mutex Objects".

use core::cell::UnsafeCell;
use core::hint::cold_path;
use core::ptr;

use sync::irql::{Dispatch, Irql};
use sync::ownership::{Ownable, Ownership};

use super::object::{Header, kind};
use super::thread::Thread;
use super::wait::{CanWait, Waitable, signal::Woken};
use super::{apc, sched, thread};
use crate::rtl::NtStatus;

/// A mutant. NT's KMUTANT, byte for byte.
#[repr(C)]
pub struct Mutant {
    header: Header,
    /// I1. Where NT has its list entry, and behind it the owner.
    ownership: Ownership<Self>,
    /// Its last owner ended without releasing it: the next acquisition is told.
    abandoned: UnsafeCell<bool>,
    _apc_disable: u8,
    _pad: [u8; 6],
}

/// The mutants that a thread holds.
pub(super) type Held = sync::ownership::Held<Mutant>;

impl Ownable for Mutant {
    type Owner = Thread;

    #[inline(always)]
    fn ownership(&self) -> &Ownership<Self> {
        &self.ownership
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Mutant>() == 56);
    assert!(offset_of!(Mutant, ownership) == 24 && size_of::<Ownership<Mutant>>() == 24);
    assert!(offset_of!(Mutant, abandoned) == 48);
};

sync::nt_layout! {
    [] Mutant = "KMUTANT" {
        header => "Header", ownership => "MutantListEntry" ..= "OwnerThread", abandoned => "Abandoned",
        _apc_disable => "ApcDisable",
    }
}

// SAFETY: `abandoned` is accessed under the lock; the rest is atomics.
unsafe impl Sync for Mutant {}
// SAFETY: a mutant is moved only while nobody holds it (I2).
unsafe impl Send for Mutant {}

impl Mutant {
    /// Free.
    ///
    /// # Safety
    /// It is neither moved nor dropped while a thread holds it (I2): a wait for it borrows it no longer than the wait lasts. A static
    /// never is.
    #[doc(alias = "KeInitializeMutex")]
    #[doc(alias = "KeInitializeMutant")]
    pub const unsafe fn new() -> Self {
        Self {
            header: Header::new(kind::MUTANT, 1),
            ownership: Ownership::new(),
            abandoned: UnsafeCell::new(false),
            _apc_disable: 0,
            _pad: [0; 6],
        }
    }

    /// 1: free; below: held, once more often for each below zero. Stale at once.
    #[doc(alias = "KeReadStateMutex")]
    pub fn state(&self) -> i32 {
        self.header.signal_state()
    }
}

/// The mutant whose header `header` is.
///
/// # Safety
/// Its kind is MUTANT.
#[inline(always)]
pub(super) unsafe fn of(header: &Header) -> &Mutant {
    // SAFETY: the caller's; the header is the first field.
    unsafe { &*ptr::from_ref(header).cast::<Mutant>() }
}

impl Mutant {
    /// Is it `thread` that holds it, if somebody does? Exact for the running thread, and under the lock.
    #[inline(always)]
    pub(super) fn is_owned_by(&self, thread: &Thread) -> bool {
        self.ownership.is_by(thread)
    }

    /// The address of the thread that holds it, or 0. Stale at once, unless that thread waits.
    #[cfg(all(target_os = "none", feature = "verifier"))]
    pub(super) fn holder(&self) -> usize {
        if self.state() > 0 { 0 } else { self.ownership.last().addr() }
    }

    /// What the next acquisition adds to its status. Under the lock.
    pub(super) fn abandoned_status(&self) -> u32 {
        // SAFETY: under the lock.
        if unsafe { *self.abandoned.get() } { NtStatus::ABANDONED_WAIT_0.0 } else { 0 }
    }

    /// `thread` acquires it, or once more; returns what that adds to the status of its wait.
    ///
    /// # Safety
    /// The lock is held; it is free, or the thread's, in `state`.
    #[inline(always)]
    pub(super) unsafe fn take(&self, thread: &Thread, state: i32) -> u32 {
        if state <= 0 {
            cold_path();
            self.header.set_signal_state(state - 1);
            return 0;
        }
        self.header.set_signal_state(0);
        // SAFETY: the lock is held, and it is free; the list is the caller's, who is the thread or has ended its wait.
        unsafe { thread.held.acquire(self, thread) };
        // SAFETY: under the lock.
        unsafe {
            if *self.abandoned.get() {
                cold_path();
                *self.abandoned.get() = false;
                return NtStatus::ABANDONED_WAIT_0.0;
            }
        }
        0
    }

    /// Gives it back, once; the one that it goes to is boosted by `increment`. Returns the old state: 0, it is free now.
    ///
    /// # Errors
    /// STATUS_MUTANT_NOT_OWNED: the running thread doesn't hold it.
    #[doc(alias = "KeReleaseMutex")]
    #[doc(alias = "KeReleaseMutant")]
    #[inline(always)]
    pub fn release<L: CanWait>(&self, increment: u8, at: &mut Irql<L>) -> Result<i32, NtStatus> {
        // SAFETY: used by this thread's code alone.
        let me = unsafe { thread::current(at).unbound() };
        let mut raised = at.raise::<Dispatch>();
        let guard = self.header.lock(&mut raised);
        let before = self.header.signal_state();
        if before != 0 {
            cold_path();
            if before > 0 || !self.is_owned_by(me) {
                return Err(NtStatus::MUTANT_NOT_OWNED);
            }
            self.header.set_signal_state(before + 1);
            return Ok(before);
        }
        if !self.is_owned_by(me) {
            return Err(NtStatus::MUTANT_NOT_OWNED);
        }
        self.header.set_signal_state(1);
        // SAFETY: the lock is held, and it is this thread's.
        unsafe { me.held.release(self) };
        // SAFETY: the lock is held.
        if !unsafe { self.header.first_waiter() }.is_null() {
            cold_path();
            let mut woken = Woken::new();
            // SAFETY: as above.
            unsafe { woken.satisfy(&self.header) };
            drop(guard);
            woken.finish(increment, &mut raised);
            sched::after_signal::<L>(&mut raised);
        } else {
            drop(guard);
        }
        drop(raised);
        apc::region::mutants_released(me, at);
        Ok(0)
    }
}

/// The running thread ends: what it still holds is abandoned, and goes to whoever waits.
pub(super) fn abandon_all(me: &Thread, at: &mut Irql<Dispatch>) {
    // SAFETY: the list is the running thread's; a held mutant stays, as its owner promised by taking it.
    while let Some(mutant) = unsafe { me.held.first() } {
        let mut woken = Woken::new();
        {
            let _guard = mutant.header.lock(&mut *at);
            // SAFETY: the lock is held; nobody but this thread releases it.
            unsafe { me.held.release(mutant) };
            // SAFETY: under the lock.
            unsafe { *mutant.abandoned.get() = true };
            mutant.header.set_signal_state(1);
            // SAFETY: the lock is held.
            unsafe { woken.satisfy(&mutant.header) };
        }
        woken.finish(0, at);
    }
}

impl Waitable for Mutant {
    #[inline(always)]
    fn kind(&self) -> u8 {
        kind::MUTANT
    }

    #[inline(always)]
    fn header(&self) -> &Header {
        &self.header
    }
}
