//! Guarded mutex: NT's KGUARDED_MUTEX, the fast mutex's other face. Its holder stays at its level, in a guarded region.
//!
//! Both keep every kernel APC of the holder's thread out, so that none can want the mutex: the one by the level, the other by a region
//! that leaves the level alone.
//!
//! Owns:       [`GuardedMutex`]. Not: who gets it and in which order (`sync::fast_mutex`), the region (`ke::apc::region`).
//! IRQL:       PASSIVE or APC, held at the same.
//! Invariants: I1 `value` is accessed only by who holds `raw`: through a guard, of which there is one for each acquire.
//! Checked:    as the fast mutex: MUTEX_ALREADY_OWNED, THREAD_NOT_MUTEX_OWNER.
//! Not as NT:  its event is an event, not a gate; the word behind it, which NT's checked build compares, is not used.
//! Tests:      tests/models/tests/fast_mutex.rs; selftest `ex::guarded_mutex_*`; crash `guarded_mutex_taken_twice`.
//! Sources:    WDK, "Fast Mutexes and Guarded Mutexes", `KeAcquireGuardedMutex`; KGUARDED_MUTEX's layout as in ddk/wdm.h.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

use sync::fast_mutex::RawFastMutex;
use sync::irql::Irql;

use super::Wakeup;
use crate::ke::apc::{self, Guarded};
use crate::ke::wait::CanWait;

/// A guarded mutex around a `T`.
#[doc(alias = "KGUARDED_MUTEX")]
pub struct GuardedMutex<T> {
    raw: RawFastMutex<Wakeup>,
    value: UnsafeCell<T>,
}

// SAFETY: one thread at a time reaches `value` (I1), and by `&mut`.
unsafe impl<T: Send> Sync for GuardedMutex<T> {}

impl<T> GuardedMutex<T> {
    /// A free one.
    #[doc(alias = "KeInitializeGuardedMutex")]
    pub const fn new(value: T) -> Self {
        Self { raw: RawFastMutex::new(Wakeup::new()), value: UnsafeCell::new(value) }
    }

    /// Enters a guarded region, and waits until it is the holder.
    ///
    /// # Bugchecks
    /// Checked build: MUTEX_ALREADY_OWNED when this thread holds it.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "KeAcquireGuardedMutex")]
    pub fn lock<'a, L: CanWait>(&'a self, at: &'a mut Irql<L>) -> GuardedGuard<'a, T, L, Guarded<'a, L>> {
        let mut region = apc::enter_guarded(at);
        self.raw.acquire(&mut region);
        self.held(region)
    }

    /// As [`lock`](Self::lock) if it is free; never waits. A failure leaves no region behind.
    #[inline(always)]
    #[doc(alias = "KeTryToAcquireGuardedMutex")]
    pub fn try_lock<'a, L: CanWait>(
        &'a self,
        at: &'a mut Irql<L>,
    ) -> Option<GuardedGuard<'a, T, L, Guarded<'a, L>>> {
        let mut region = apc::enter_guarded(at);
        let got = self.raw.try_acquire(&mut region);
        got.then(|| self.held(region))
    }

    /// [`lock`](Self::lock) for who is in a guarded region already, which is not entered again.
    ///
    /// # Bugchecks
    /// As `lock`.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "KeAcquireGuardedMutexUnsafe")]
    pub fn lock_inside<'a, L: CanWait>(
        &'a self,
        region: &'a mut Guarded<'_, L>,
    ) -> GuardedGuard<'a, T, L, &'a mut Irql<L>> {
        self.raw.acquire(region);
        self.held(&mut **region)
    }

    /// For who has just acquired `raw`, in `region`.
    #[inline(always)]
    fn held<'a, L: CanWait, R: DerefMut<Target = Irql<L>>>(&'a self, region: R) -> GuardedGuard<'a, T, L, R> {
        GuardedGuard { value: &self.value, held: Held { raw: &self.raw, region } }
    }

    /// Is it held? Stale at once.
    pub fn is_held(&self) -> bool {
        self.raw.is_held()
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// Held; released when dropped, then the region ends: in the order of declaration, which is relied on.
struct Held<'a, L: CanWait, R: DerefMut<Target = Irql<L>>> {
    raw: &'a RawFastMutex<Wakeup>,
    region: R,
}

impl<L: CanWait, R: DerefMut<Target = Irql<L>>> Drop for Held<'_, L, R> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: made by an acquire of this thread, which a token in `region` can't leave; the guard that it is in is not used any more.
        unsafe { self.raw.release(&mut self.region) };
    }
}

/// The mutex is held, in a guarded region: one of its own, or by the borrow of another. Derefs to the data.
#[must_use = "dropping it at once releases the mutex"]
#[doc(alias = "KeReleaseGuardedMutex")]
#[doc(alias = "KeReleaseGuardedMutexUnsafe")]
pub struct GuardedGuard<'a, T, L: CanWait, R: DerefMut<Target = Irql<L>>> {
    value: &'a UnsafeCell<T>,
    held: Held<'a, L, R>,
}

impl<T, L: CanWait, R: DerefMut<Target = Irql<L>>> GuardedGuard<'_, T, L, R> {
    /// The data and the token at once, for waits and other locks while this one is held.
    #[inline(always)]
    pub fn parts(&mut self) -> (&mut T, &mut Irql<L>) {
        // SAFETY: I1, and the guard is borrowed uniquely for as long.
        (unsafe { &mut *self.value.get() }, &mut self.held.region)
    }
}

impl<T, L: CanWait, R: DerefMut<Target = Irql<L>>> Deref for GuardedGuard<'_, T, L, R> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: I1, and `&self` shares the one access that the guard allows.
        unsafe { &*self.value.get() }
    }
}

impl<T, L: CanWait, R: DerefMut<Target = Irql<L>>> DerefMut for GuardedGuard<'_, T, L, R> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        self.parts().0
    }
}
