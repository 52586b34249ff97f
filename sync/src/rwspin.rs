//! Reader/writer spin lock: any number of readers or one writer, each at the rank's CR8 value.
//!
//! The word: bit 31 is "a writer holds it or waits for the readers to leave", the rest counts readers.
//!
//! | word | means | who may enter |
//! |---|---|---|
//! | 0 | free | anybody |
//! | n | n readers | readers; a writer may set bit 31 |
//! | bit 31 + n | n readers, a writer waits | nobody: the writer, when n is 0 |
//! | bit 31 | a writer holds it | nobody |
//!
//! Setting bit 31 is the writer's arrival: a reader that comes later does not enter before it, so writers wait for the readers
//! of one moment and are not starved by a stream of them. (Readers can be, by a stream of writers, as on NT.)
//!
//! IRQL:       taken with a token strictly below R, held at R's CR8 value, yields `Irql<R>`; a processor can't take it a second
//!             time, shared or not, which a waiting writer would make a deadlock.
//! Invariants: I1 bit 31 set => one writer set it and has not cleared it. I2 the writer accesses the value only after it saw
//!             the count at 0 with bit 31 set; a reader only while it is counted.
//! Ordering:   a reader's count down (Release) → the writer's look (Acquire); the writer's release (Release) → the compare-
//!             exchange of the next reader or writer (Acquire).
//! Tests:      tests/models/tests/rwspin.rs; tests/props (locks.rs, injection.rs); the unit tests below.

use core::marker::PhantomData;

use crate::guard;
use crate::irql::{Below, Irql, Raised, Rank};
use crate::prim::{AtomicU32, Backoff, ConstPtr, MutPtr, Ordering, UnsafeCell, const_unless_loom};

const WRITER: u32 = 1 << 31;

/// A reader/writer spin lock of rank `R` around a `T`.
#[doc(alias = "EX_SPIN_LOCK")]
pub struct RwSpinLock<T, R: Rank> {
    word: Word,
    rank: PhantomData<fn() -> R>,
    value: UnsafeCell<T>,
}

// SAFETY: readers share `&T` between processors, hence `T: Sync`; the writer alone has `&mut T` (I2), hence `T: Send`.
unsafe impl<T: Send + Sync, R: Rank> Sync for RwSpinLock<T, R> {}
// SAFETY: owning the lock is owning the T.
unsafe impl<T: Send, R: Rank> Send for RwSpinLock<T, R> {}

struct Word {
    state: AtomicU32,
    #[cfg(feature = "verifier")]
    writer: crate::owner::Owner,
}

impl Word {
    #[inline(always)]
    fn try_shared(&self) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        // A failed exchange is another reader's arrival or leaving just then; the caller decides whether to look again.
        state & WRITER == 0
            && self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn shared_contended(&self) {
        let backoff = Backoff::new();
        while !self.try_shared() {
            backoff.spin();
        }
    }

    #[inline(always)]
    fn try_exclusive(&self) -> bool {
        self.state.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    #[inline(never)]
    fn exclusive_contended(&self) {
        let backoff = Backoff::new();
        loop {
            let state = self.state.load(Ordering::Relaxed);
            let claimed = state & WRITER == 0
                && self
                    .state
                    .compare_exchange(state, state | WRITER, Ordering::Relaxed, Ordering::Relaxed)
                    .is_ok();
            if claimed {
                break;
            }
            backoff.spin();
        }
        // Bit 31 is ours (I1): no reader enters any more. Acquire: what the last of them, or the last writer, did with the value;
        // so the claim above needed none.
        let backoff = Backoff::new();
        while self.state.load(Ordering::Acquire) != WRITER {
            backoff.spin();
        }
    }
}

/// One reader's count; counts down when dropped.
struct Shared<'a>(&'a Word);

impl Drop for Shared<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

/// The writer's bit; cleared when dropped.
struct Exclusive<'a>(&'a Word);

impl Drop for Exclusive<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        #[cfg(feature = "verifier")]
        self.0.writer.clear();
        // A plain store: while bit 31 is set and no reader is counted, nobody else's exchange succeeds.
        self.0.state.store(0, Ordering::Release);
    }
}

impl<T, R: Rank> RwSpinLock<T, R> {
    const_unless_loom! {
        /// A free lock.
        pub const fn new(value: T) -> Self {
            Self {
                word: Word {
                    state: AtomicU32::new(0),
                    #[cfg(feature = "verifier")]
                    writer: crate::owner::Owner::new(),
                },
                rank: PhantomData,
                value: UnsafeCell::new(value),
            }
        }
    }

    /// Raises, and enters beside other readers once no writer holds the lock or waits for it.
    ///
    /// # Bugchecks
    /// Checked build: SPIN_LOCK_ALREADY_OWNED when this processor holds it exclusively.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExAcquireSpinLockShared")]
    pub fn shared<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> SharedGuard<'a, T, R> {
        let raised = at.raise::<R>();
        #[cfg(feature = "verifier")]
        self.word.writer.check_not_mine();
        if !self.word.try_shared() {
            self.word.shared_contended();
        }
        SharedGuard { value: self.value.get(), held: Shared(&self.word), raised }
    }

    /// Raises, and enters alone.
    ///
    /// # Bugchecks
    /// Checked build: SPIN_LOCK_ALREADY_OWNED when this processor holds it exclusively.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExAcquireSpinLockExclusive")]
    pub fn exclusive<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> ExclusiveGuard<'a, T, R> {
        let raised = at.raise::<R>();
        #[cfg(feature = "verifier")]
        self.word.writer.check_not_mine();
        if !self.word.try_exclusive() {
            self.word.exclusive_contended();
        }
        self.exclusively(raised)
    }

    /// Enters beside other readers unless a writer holds the lock or waits for it. Never spins; may also fail when another
    /// reader comes or goes at the same moment.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExTryAcquireSpinLockSharedAtDpcLevel")]
    pub fn try_shared<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> Option<SharedGuard<'a, T, R>> {
        let raised = at.raise::<R>();
        let held = self.word.try_shared().then(|| Shared(&self.word))?;
        Some(SharedGuard { value: self.value.get(), held, raised })
    }

    /// Enters alone if nobody is in. Never spins, and does not count as a waiting writer.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExTryAcquireSpinLockExclusiveAtDpcLevel")]
    pub fn try_exclusive<'a, L: Below<R>>(&'a self, at: &'a mut Irql<L>) -> Option<ExclusiveGuard<'a, T, R>> {
        let raised = at.raise::<R>();
        if self.word.try_exclusive() { Some(self.exclusively(raised)) } else { None }
    }

    #[inline(always)]
    fn exclusively<'a>(&'a self, raised: Raised<'a, R>) -> ExclusiveGuard<'a, T, R> {
        #[cfg(feature = "verifier")]
        self.word.writer.set();
        ExclusiveGuard { value: self.value.get_mut(), held: Exclusive(&self.word), raised }
    }

    /// Does a writer hold the lock or wait for it? Stale at once.
    pub fn is_claimed(&self) -> bool {
        self.word.state.load(Ordering::Relaxed) & WRITER != 0
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// Held beside other readers; derefs to the data. Fields in the order of their drop, which is relied on: access, count, level.
#[must_use = "dropping it at once releases the lock"]
pub struct SharedGuard<'a, T, R: Rank> {
    value: ConstPtr<T>,
    #[expect(dead_code, reason = "held for its drop")]
    held: Shared<'a>,
    raised: Raised<'a, R>,
}

/// Held alone; derefs to the data. Fields in the order of their drop, which is relied on: access, word, level.
#[must_use = "dropping it at once releases the lock"]
pub struct ExclusiveGuard<'a, T, R: Rank> {
    value: MutPtr<T>,
    #[expect(dead_code, reason = "held for its drop")]
    held: Exclusive<'a>,
    raised: Raised<'a, R>,
}

guard::shared!([T, R: Rank] SharedGuard<'_, T, R>, T, R);
guard::exclusive!([T, R: Rank] ExclusiveGuard<'_, T, R>, T, R);

#[cfg(all(test, not(loom)))]
mod tests;
