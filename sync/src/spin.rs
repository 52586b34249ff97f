//! `SpinLock<T, R>`: data behind a `KSPIN_LOCK` word, with a rank in its type.
//!
//! Owns:       the lock, its guard. The word itself is word.rs.
//! IRQL:       taken with a token strictly below R, held at R's CR8 value, yields `Irql<R>`.
//! Invariants: I1 `value` is accessed only between a successful acquire of `word` and its release: by the guard (guard.rs).
//! Forgetting: `mem::forget` of a guard leaves the lock held and the level raised for ever: nobody gets at the data again,
//!             so it is a hang (the checked build names the owner), never a race.
//! Ordering:   word.rs; the data needs nothing of its own.
//! Tests:      tests/models/tests/spin.rs (I1); tests/props/tests/injection.rs; tests/refuse; the unit tests below.

use core::marker::PhantomData;

use crate::guard;
use crate::irql::{Below, Irql, Raised, Rank};
use crate::prim::{MutPtr, UnsafeCell, const_unless_loom};
use crate::word::{Held, Word};

/// A spin lock of rank `R` around a `T`. The rank belongs to the lock, so one lock has one discipline.
#[doc(alias = "KSPIN_LOCK")]
pub struct SpinLock<T, R: Rank> {
    word: Word,
    rank: PhantomData<fn() -> R>,
    value: UnsafeCell<T>,
}

// SAFETY: one processor at a time reaches `value`, and always by `&mut` (I1): like a mutex, it hands T from thread to thread.
unsafe impl<T: Send, R: Rank> Sync for SpinLock<T, R> {}
// SAFETY: owning the lock is owning the T.
unsafe impl<T: Send, R: Rank> Send for SpinLock<T, R> {}

impl<T, R: Rank> SpinLock<T, R> {
    const_unless_loom! {
        /// A free lock.
        pub const fn new(value: T) -> Self {
            Self { word: Word::new(), rank: PhantomData, value: UnsafeCell::new(value) }
        }
    }

    /// Raises to the rank's CR8 value and spins until the lock is ours.
    ///
    /// # Bugchecks
    /// Checked build: SPIN_LOCK_ALREADY_OWNED when this processor holds it.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "KeAcquireSpinLock")]
    #[doc(alias = "KeAcquireSpinLockAtDpcLevel")]
    pub fn lock<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> SpinGuard<'a, T, R> {
        let raised = at.raise::<R>();
        let held = Held::acquire(&self.word);
        SpinGuard { value: self.value.get_mut(), held, raised }
    }

    /// Takes the lock if it is free. Never spins; a failure leaves the level as it was.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "KeTryToAcquireSpinLockAtDpcLevel")]
    pub fn try_lock<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> Option<SpinGuard<'a, T, R>> {
        let raised = at.raise::<R>();
        let held = Held::try_acquire(&self.word)?;
        Some(SpinGuard { value: self.value.get_mut(), held, raised })
    }

    /// Is it held by anybody? Stale at once.
    #[doc(alias = "KeTestSpinLock")]
    pub fn is_locked(&self) -> bool {
        self.word.is_held()
    }

    /// The word alone, for a lock set.
    pub(crate) fn word(&self) -> &Word {
        &self.word
    }

    /// Where the data is, for a lock set.
    pub(crate) fn value_ptr(&self) -> *mut T {
        self.value.with_mut(|value| value)
    }

    /// The data, without the lock: `&mut self` shows that nobody else has it.
    pub fn get_mut(&mut self) -> &mut T {
        let value = self.value.get_mut();
        // SAFETY: `&mut self` excludes every guard (they borrow the lock), and lends the value for its own lifetime.
        unsafe { &mut *core::ptr::from_mut(value.deref()) }
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// The lock is held; derefs to the data. [`parts`](Self::parts) gives the token as well, for what is done under the lock.
///
/// The fields are dropped in the order they stand in, and that is relied on: the access to the data ends, the word is
/// released, the level is lowered. Lowering first would let an interrupt in that spins on the word for ever.
#[must_use = "dropping it at once releases the lock"]
pub struct SpinGuard<'a, T, R: Rank> {
    value: MutPtr<T>,
    #[expect(dead_code, reason = "held for its drop")]
    held: Held<'a>,
    raised: Raised<'a, R>,
}

guard::exclusive!([T, R: Rank] SpinGuard<'_, T, R>, T, R);

impl<T, R: Rank> SpinGuard<'_, T, R> {
    /// The token alone, the data staying locked.
    #[inline(always)]
    pub fn token(&mut self) -> &mut Irql<R> {
        &mut self.raised
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::irql::{Dispatch, PrcbLock, ThreadLock};
    use crate::testing::at_passive;

    #[test]
    fn a_lock_is_the_size_of_its_word_and_data() {
        assert_eq!(size_of::<SpinLock<(), Dispatch>>(), 8);
        assert_eq!(size_of::<SpinLock<u64, Dispatch>>(), 16);
        assert_eq!(size_of::<Irql<Dispatch>>(), 0);
    }

    #[test]
    fn locks_nest_upwards_and_come_down_in_reverse() {
        let thread = SpinLock::<_, ThreadLock>::new(1);
        let prcb = SpinLock::<_, PrcbLock>::new(2);
        at_passive(|at| {
            {
                let mut outer = thread.lock(at);
                let (a, at) = outer.parts();
                let mut inner = prcb.lock(at);
                *inner += *a;
                assert_eq!(inner.token().level(), 2);
                assert!(thread.is_locked() && prcb.is_locked());
            }
            assert!(!thread.is_locked() && !prcb.is_locked());
            assert_eq!(arch::irql::current(), 0);
            assert_eq!(*prcb.lock(at), 3);
        });
    }

    #[test]
    fn try_lock_fails_without_changing_the_level() {
        let lock = SpinLock::<_, PrcbLock>::new(());
        at_passive(|at| {
            let mut raised = at.raise::<Dispatch>();
            let held = lock.lock(&mut raised);
            std::thread::scope(|s| {
                s.spawn(|| {
                    at_passive(|at| {
                        assert!(lock.try_lock(at).is_none());
                        assert_eq!(arch::irql::current(), 0);
                    })
                });
            });
            assert!(lock.is_locked(), "a failed try must not release");
            drop(held);
            assert!(lock.try_lock(&mut raised).is_some());
        });
    }

    #[test]
    fn processors_exclude_each_other() {
        const ROUNDS: usize = if cfg!(miri) { 20 } else { 10_000 };
        let lock = SpinLock::<_, PrcbLock>::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| at_passive(|at| (0..ROUNDS).for_each(|_| *lock.lock(at) += 1)));
            }
        });
        assert_eq!(lock.into_inner(), 3 * ROUNDS);
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn recursion_and_a_foreign_release_are_bugchecks() {
        let lock = SpinLock::<_, PrcbLock>::new(());
        at_passive(|at| {
            core::mem::forget(lock.lock(at));
            // The forgotten guard left the level high; a handler would find the lock like this.
            let again = arch::stop::catch(|| {
                // SAFETY: CR8 is 2 and no other token of this thread is in use.
                unsafe { Irql::<Dispatch>::with(|at| drop(lock.lock(at))) }
            });
            assert_eq!(again.map(|stop| stop.code), Some(0x0F));
            // SAFETY: nothing relies on the level.
            unsafe { arch::irql::set(0) };
        });
        let word = Word::new();
        // SAFETY: it protects nothing; the wrong release is what the check is for.
        let foreign = arch::stop::catch(|| unsafe { word.release() });
        assert_eq!(foreign.map(|stop| stop.code), Some(0x10));
    }
}
