//! The word of a spin lock, `KSPIN_LOCK`'s: one `usize`, 0 is free, bit 0 is held. No IRQL, no data: the locks add those.
//!
//! Checked build: the upper bits hold the owner, processor number + 1, so that recursion is a bugcheck and not a silent
//! hang, and so is the release of a word that its caller doesn't hold. A lock holder is at DISPATCH or above, so "the same
//! processor" means recursion even if an interrupt handler asks: the holder beneath it cannot go on.
//! Invariants: I1 bit 0 is set exactly while one holder is between `acquire` and `release`.
//! Ordering:   `release` stores 0 with Release; the read-modify-write that next sets bit 0 reads that 0 with Acquire.

#[cfg(not(feature = "verifier"))]
use core::hint::cold_path;

#[cfg(feature = "verifier")]
use arch::trace::{Kind, about};

use crate::prim::{AtomicUsize, Backoff, Ordering, const_unless_loom};

/// See the module.
#[repr(transparent)]
pub(crate) struct Word(AtomicUsize);

impl Word {
    const_unless_loom! {
        /// A free one.
        pub(crate) const fn new() -> Self {
            Self(AtomicUsize::new(0))
        }
    }

    /// Spins until the word is ours.
    #[cfg(not(feature = "verifier"))]
    #[inline(always)]
    pub(crate) fn acquire(&self) {
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
    }

    #[cfg(not(feature = "verifier"))]
    #[cold]
    extern "sysv64" fn acquire_contended(&self) {
        let backoff = Backoff::new();
        loop {
            // Wait on a shared copy of the line; the locked operation would take it from the holder each time.
            while self.0.load(Ordering::Relaxed) != 0 {
                backoff.spin();
            }
            if self.try_acquire() {
                return;
            }
        }
    }

    /// Takes the word if it is free; never spins. The bit test of the old value makes this `lock bts` and a jump.
    #[cfg(not(feature = "verifier"))]
    #[inline(always)]
    pub(crate) fn try_acquire(&self) -> bool {
        self.0.fetch_or(1, Ordering::Acquire) & 1 == 0
    }

    /// Gives the word back.
    ///
    /// # Safety
    /// The caller holds it (I1), and nothing that it protects is used any more.
    #[cfg(not(feature = "verifier"))]
    #[inline(always)]
    pub(crate) unsafe fn release(&self) {
        #[cfg(not(loom))]
        self.0.store(0, Ordering::Release);
        // loom does not order a store after another thread's read-modify-write that came before it, and would let a failed
        // `fetch_or` undo the release. As a read-modify-write it is ordered; what it reads it doesn't acquire, and the only
        // other thing that it adds, to prolong the last holder's release sequence, tells the next holder nothing new: this
        // holder acquired that release (tests/models/tests/litmus.rs).
        #[cfg(loom)]
        self.0.swap(0, Ordering::Release);
    }

    /// Is it held by anybody? Stale at once.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

#[cfg(feature = "verifier")]
impl Word {
    fn mine() -> usize {
        (arch::cpu::number() as usize + 1) << 1 | 1
    }

    #[track_caller]
    fn violation(&self, code: u32) -> ! {
        let lock = core::ptr::from_ref(self).addr() as u64;
        let owner = self.0.load(Ordering::Relaxed) as u64 >> 1;
        let culprit = core::panic::Location::caller();
        arch::fatal_at(code, [lock.into(), owner.into(), culprit.into(), 0_u64.into()]);
    }

    #[track_caller]
    pub(crate) fn acquire(&self) {
        if self.try_acquire() {
            return;
        }
        let owner = self.0.load(Ordering::Relaxed);
        about(Kind::Contended, (owner >> 1) as u16, self, 0);
        let backoff = Backoff::new();
        while !self.try_acquire() {
            if self.0.load(Ordering::Relaxed) == Self::mine() {
                self.violation(crate::irql::stop::SPIN_LOCK_ALREADY_OWNED);
            }
            backoff.spin();
        }
        about(Kind::Acquired, 0, self, 0);
    }

    pub(crate) fn try_acquire(&self) -> bool {
        self.0.compare_exchange(0, Self::mine(), Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// # Safety
    /// As in the other build; here a caller that doesn't hold it ends in SPIN_LOCK_NOT_OWNED.
    #[track_caller]
    pub(crate) unsafe fn release(&self) {
        if self.0.load(Ordering::Relaxed) != Self::mine() {
            self.violation(crate::irql::stop::SPIN_LOCK_NOT_OWNED);
        }
        self.0.store(0, Ordering::Release);
    }
}

/// A word that is held: released when dropped. Guards have it as a field above the `Raised` that lowers.
pub(crate) struct Held<'a>(&'a Word);

impl<'a> Held<'a> {
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub(crate) fn acquire(word: &'a Word) -> Self {
        word.acquire();
        Self(word)
    }

    #[inline(always)]
    pub(crate) fn try_acquire(word: &'a Word) -> Option<Self> {
        // Not `then_some`: its argument is made, and dropped, in the failing case too.
        word.try_acquire().then(|| Self(word))
    }
}

impl Drop for Held<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: made only by an acquire that succeeded, and not `Clone`, so the word is ours (I1). The guard's fields order
        // its drop after that of the access to the data.
        unsafe { self.0.release() };
    }
}
