//! A push lock with the data that it guards, and the guards.

use core::mem::ManuallyDrop;
use core::ptr;

use super::RawPushLock;
use crate::event::{Event, MayWait};
use crate::guard;
use crate::irql::{Apc, Irql, Raised};
use crate::prim::{ConstPtr, MutPtr, UnsafeCell, const_unless_loom};

/// A push lock around a `T`.
pub struct PushLock<T, E: Event> {
    raw: RawPushLock<E>,
    value: UnsafeCell<T>,
}

// SAFETY: sharers share `&T` between threads, hence `T: Sync`; who holds it alone has `&mut T`, hence `T: Send`.
unsafe impl<T: Send + Sync, E: Event> Sync for PushLock<T, E> {}
// SAFETY: owning the lock is owning the T.
unsafe impl<T: Send, E: Event> Send for PushLock<T, E> {}

impl<T, E: Event> PushLock<T, E> {
    const_unless_loom! {
        /// A free lock.
        pub const fn new(value: T) -> Self {
            Self { raw: RawPushLock::new(), value: UnsafeCell::new(value) }
        }
    }

    /// Raises to APC, and waits until it is the only holder.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExAcquirePushLockExclusive")]
    pub fn exclusive<'a, L: MayWait>(&'a self, at: &'a mut Irql<L>) -> ExclusiveGuard<'a, T, E> {
        let mut raised = at.raise::<Apc>();
        self.raw.acquire_exclusive(&mut raised);
        ExclusiveGuard { value: self.value.get_mut(), held: Held { lock: self, raised } }
    }

    /// Raises to APC, and waits until it is one of the sharers.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExAcquirePushLockShared")]
    pub fn shared<'a, L: MayWait>(&'a self, at: &'a mut Irql<L>) -> SharedGuard<'a, T, E> {
        let mut raised = at.raise::<Apc>();
        self.raw.acquire_shared(&mut raised);
        SharedGuard { value: self.value.get(), held: Held { lock: self, raised } }
    }

    /// As [`exclusive`](Self::exclusive) if it is free; never waits.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExTryAcquirePushLockExclusive")]
    pub fn try_exclusive<'a, L: MayWait>(&'a self, at: &'a mut Irql<L>) -> Option<ExclusiveGuard<'a, T, E>> {
        let raised = at.raise::<Apc>();
        let got = self.raw.try_acquire_exclusive();
        got.then(|| ExclusiveGuard { value: self.value.get_mut(), held: Held { lock: self, raised } })
    }

    /// As [`shared`](Self::shared) unless somebody holds it alone or waits; never waits.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExTryAcquirePushLockShared")]
    pub fn try_shared<'a, L: MayWait>(&'a self, at: &'a mut Irql<L>) -> Option<SharedGuard<'a, T, E>> {
        let raised = at.raise::<Apc>();
        let got = self.raw.try_acquire_shared();
        got.then(|| SharedGuard { value: self.value.get(), held: Held { lock: self, raised } })
    }

    /// Is it held by anybody? Stale at once.
    pub fn is_held(&self) -> bool {
        self.raw.is_held()
    }

    /// Does somebody wait for it? Stale at once.
    pub fn is_contended(&self) -> bool {
        self.raw.is_contended()
    }

    /// For tests that wait until somebody waits.
    #[cfg(all(test, not(loom)))]
    pub(super) fn word(&self) -> usize {
        self.raw.word.load(core::sync::atomic::Ordering::Relaxed).addr()
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// Held; released when dropped, then the level is lowered: in the order of declaration, which is relied on.
struct Held<'a, T, E: Event, const SHARED: bool> {
    lock: &'a PushLock<T, E>,
    raised: Raised<'a, Apc>,
}

impl<'a, T, E: Event, const SHARED: bool> Held<'a, T, E, SHARED> {
    /// Held in the other way, after the lock was told so.
    fn other<const OTHER: bool>(self) -> Held<'a, T, E, OTHER> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is never dropped or used again, so `raised` has one owner as before.
        Held { lock: this.lock, raised: unsafe { ptr::read(&this.raised) } }
    }
}

impl<T, E: Event, const SHARED: bool> Drop for Held<'_, T, E, SHARED> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: made when the lock was acquired in this way, not `Clone`; the guard's access to the data ended before (field
        //         order).
        unsafe {
            if SHARED {
                self.lock.raw.release_shared(&mut self.raised);
            } else {
                self.lock.raw.release_exclusive(&mut self.raised);
            }
        }
    }
}

/// Held alone; derefs to the data. Fields in the order of their drop, which is relied on: access, word, level.
#[must_use = "dropping it at once releases the lock"]
pub struct ExclusiveGuard<'a, T, E: Event> {
    value: MutPtr<T>,
    held: Held<'a, T, E, false>,
}

/// Held beside other sharers; derefs to the data. Fields in the order of their drop, which is relied on.
#[must_use = "dropping it at once releases the lock"]
pub struct SharedGuard<'a, T, E: Event> {
    value: ConstPtr<T>,
    held: Held<'a, T, E, true>,
}

impl<'a, T, E: Event> ExclusiveGuard<'a, T, E> {
    /// Ends the access to the data.
    fn into_held(self) -> Held<'a, T, E, false> {
        self.held
    }

    /// Becomes a sharer, without letting anybody write in between.
    #[doc(alias = "ExConvertPushLockExclusiveToShared")]
    pub fn into_shared(self) -> SharedGuard<'a, T, E> {
        let mut held = self.into_held();
        let lock = held.lock;
        // SAFETY: held alone.
        unsafe { lock.raw.convert_to_shared(&mut held.raised) };
        SharedGuard { value: lock.value.get(), held: held.other() }
    }
}

impl<'a, T, E: Event> SharedGuard<'a, T, E> {
    /// Ends the access to the data.
    fn into_held(self) -> Held<'a, T, E, true> {
        self.held
    }

    /// Becomes the only holder, unless there is another sharer or somebody waits.
    ///
    /// # Errors
    /// Itself, still shared.
    #[doc(alias = "ExTryConvertPushLockSharedToExclusive")]
    pub fn try_into_exclusive(self) -> Result<ExclusiveGuard<'a, T, E>, Self> {
        // SAFETY: we are a sharer.
        if !unsafe { self.held.lock.raw.try_convert_to_exclusive() } {
            return Err(self);
        }
        let held = self.into_held();
        Ok(ExclusiveGuard { value: held.lock.value.get_mut(), held: held.other() })
    }
}

guard::exclusive!(['a, T, E: Event] ExclusiveGuard<'a, T, E>, T, Apc, held.raised);
guard::shared!(['a, T, E: Event] SharedGuard<'a, T, E>, T, Apc, held.raised);
