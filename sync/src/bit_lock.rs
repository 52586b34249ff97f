//! A spin lock in one bit of a word whose other bits mean something else: the lock of a dispatcher object, in its header.
//!
//! Owns:       [`LockWord`], its guard.
//! IRQL:       taken with a token strictly below R, held at R's CR8 value, yields `Irql<R>`.
//! Invariants: I1 bit 7 is set exactly while one guard is live. The other bits are written by its holder only.
//! Ordering:   the release is a store with Release of the word that the holder knows (I1), the acquire a read-modify-write with
//!             Acquire, as with any lock.
//! Not as NT:  where NT's waiters spin at DISPATCH, so do these; the bit is NT's KOBJECT_LOCK_BIT.
//! Tests:      tests/models/tests/bit_lock.rs (I1); the unit tests below.

use core::hint::cold_path;
use core::marker::PhantomData;

use arch::trace::Kind;

use crate::irql::{Below, Irql, Raised, Rank};
use crate::lock_set::Lockable;
use crate::prim::{AtomicU32, Backoff, Ordering, const_unless_loom};

/// The first word of a dispatcher object: type, flags, and in bit 7 the lock of rank `R`.
#[repr(transparent)]
pub struct LockWord<R: Rank> {
    word: AtomicU32,
    rank: PhantomData<fn() -> R>,
}

const LOCKED: u32 = 1 << 7;

impl<R: Rank> LockWord<R> {
    const_unless_loom! {
        /// Unlocked; `bits` without bit 7.
        pub const fn new(bits: u32) -> Self {
            Self { word: AtomicU32::new(bits & !LOCKED), rank: PhantomData }
        }
    }

    /// Raises to the rank's CR8 value and spins until the bit is ours.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn lock<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> WordGuard<'a, R> {
        let raised = at.raise::<R>();
        if !self.try_acquire() {
            cold_path();
            // SAFETY: such a function, and a word.
            #[cfg(target_os = "none")]
            unsafe {
                arch::call_aside!(Self::acquire_contended, self);
            }
            #[cfg(not(target_os = "none"))]
            self.acquire_contended();
        }
        WordGuard { held: HeldBit::new(self), raised }
    }

    /// Takes the bit if it is free, whatever else is held: a try can't wait in a circle. The guard comes without a token; the
    /// caller stays at the rank's CR8 value or above.
    #[inline(always)]
    pub fn try_lock_out_of_order<'a, L: crate::irql::AtLeastDispatch>(
        &'a self,
        at: &'a Irql<L>,
    ) -> Option<HeldBit<'a, R>> {
        at.check();
        self.try_acquire().then(|| HeldBit::new(self))
    }

    /// The word without the lock bit. Stale at once, unless the caller holds the lock.
    #[inline(always)]
    pub fn bits(&self) -> u32 {
        self.word.load(Ordering::Relaxed) & !LOCKED
    }

    /// The bit test of the old value makes this `lock bts` and a jump.
    #[cfg(not(loom))]
    #[inline(always)]
    fn try_acquire(&self) -> bool {
        self.word.fetch_or(LOCKED, Ordering::Acquire) & LOCKED == 0
    }

    /// As above, by an operation that leaves a held word alone: why, says word.rs.
    #[cfg(loom)]
    fn try_acquire(&self) -> bool {
        let found = self.word.load(Ordering::Relaxed) & !LOCKED;
        self.word.compare_exchange(found, found | LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    extern "sysv64" fn acquire_contended(&self) {
        arch::trace::about(Kind::Contended, 0, self, 0);
        let backoff = Backoff::new();
        loop {
            // Wait on a shared copy of the line; the locked operation would take it from the holder each time.
            while self.word.load(Ordering::Relaxed) & LOCKED != 0 {
                backoff.spin();
            }
            if self.try_acquire() {
                arch::trace::about(Kind::Acquired, 0, self, 0);
                return;
            }
        }
    }
}

// SAFETY: the bit excludes, and orders by Acquire and Release.
unsafe impl<R: Rank> Lockable for LockWord<R> {
    type Rank = R;

    unsafe fn acquire(&self) {
        if !self.try_acquire() {
            self.acquire_contended();
        }
    }

    unsafe fn release(&self) {
        // The holder is the caller, so the other bits stay as they are (I1).
        self.word.store(self.bits(), Ordering::Release);
    }
}

/// In a model, freeing the object is an access to its word, which must come after every other.
#[cfg(loom)]
impl<R: Rank> Drop for LockWord<R> {
    fn drop(&mut self) {
        self.word.with_mut(|_| ());
    }
}

/// The bit is held; released when dropped.
pub struct HeldBit<'a, R: Rank> {
    lock: &'a LockWord<R>,
    /// What the word is, but for bit 7: only the holder writes (I1).
    bits: u32,
}

impl<'a, R: Rank> HeldBit<'a, R> {
    /// `lock`'s bit was set just now.
    #[inline(always)]
    fn new(lock: &'a LockWord<R>) -> Self {
        Self { lock, bits: lock.bits() }
    }

    /// Changes the other bits: clears those of `mask`, then sets `bits`. Who looks without the lock sees it from now on.
    #[inline(always)]
    pub fn change(&mut self, mask: u32, bits: u32) {
        self.bits = (self.bits & !mask | bits) & !LOCKED;
        // A store: only the holder writes (I1), but for spinners, which set the bit that is set.
        self.lock.word.store(self.bits | LOCKED, Ordering::Relaxed);
    }

    /// The last change, and the release, in one store.
    #[inline(always)]
    pub fn release_with(mut self, mask: u32, bits: u32) {
        self.bits = (self.bits & !mask | bits) & !LOCKED;
    }

    /// The other bits.
    #[inline(always)]
    pub fn bits(&self) -> u32 {
        self.bits
    }
}

impl<R: Rank> Drop for HeldBit<'_, R> {
    #[inline(always)]
    fn drop(&mut self) {
        // Nobody else changes anything while the bit is set (I1), so a plain store will do.
        self.lock.word.store(self.bits, Ordering::Release);
    }
}

/// The bit is held, at the rank's level. Fields drop in order: the bit, then the level.
pub struct WordGuard<'a, R: Rank> {
    held: HeldBit<'a, R>,
    raised: Raised<'a, R>,
}

impl<'a, R: Rank> WordGuard<'a, R> {
    /// The lock's other bits and the token.
    #[inline(always)]
    pub fn parts(&mut self) -> (&mut HeldBit<'a, R>, &mut Irql<R>) {
        (&mut self.held, &mut self.raised)
    }

    /// The lock's other bits.
    #[inline(always)]
    pub fn bits(&self) -> u32 {
        self.held.bits()
    }

    /// The last change of the other bits, and the release, in one store.
    #[inline(always)]
    pub fn release_with(self, mask: u32, bits: u32) {
        let Self { held, raised } = self;
        held.release_with(mask, bits);
        drop(raised);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::irql::{Dispatch, ObjectLock, Passive};

    #[test]
    fn the_other_bits_survive_and_the_lock_excludes() {
        let word = LockWord::<ObjectLock>::new(0x1234_5608);
        // SAFETY: a test thread is a processor at PASSIVE, and uses this token only.
        unsafe {
            Irql::<Passive>::with(|at| {
                {
                    let mut guard = word.lock(at);
                    let (held, at) = guard.parts();
                    assert!(word.try_lock_out_of_order(at).is_none());
                    held.change(0xFF00, 0xAB00);
                    assert!(word.try_lock_out_of_order(at).is_none(), "a change left the lock held");
                    assert_eq!(at.level(), 2);
                }
                assert_eq!(arch::irql::current(), 0);
                assert_eq!(word.bits(), 0x1234_AB08);
                assert!(word.try_lock_out_of_order(&at.raise::<Dispatch>()).is_some());
                assert!(word.try_lock_out_of_order(&at.raise::<Dispatch>()).is_some(), "the try released");
            });
        }
    }

    #[test]
    fn processors_exclude_each_other() {
        const ROUNDS: u32 = if cfg!(miri) { 20 } else { 5_000 };
        let word = LockWord::<ObjectLock>::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for _ in 0..ROUNDS {
                        // SAFETY: as above, for each thread.
                        unsafe {
                            Irql::<Passive>::with(|at| {
                                let mut guard = word.lock(at);
                                let (held, _) = guard.parts();
                                let count = held.bits() >> 8;
                                held.change(!0xFF, (count + 1) << 8);
                            });
                        }
                    }
                });
            }
        });
        assert_eq!(word.bits() >> 8, 3 * ROUNDS);
    }
}
