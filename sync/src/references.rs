//! A count of references that ends what it counts exactly once.
//!
//! ```text
//! one that has a reference              another one that has one
//! uses the object                       uses the object
//! release: count - 1       (Release) ─► release: count - 1, the last    (Acquire)
//!                                       nobody else's use is still to come: it may be freed
//! ```
//!
//! IRQL:       any.
//! Invariants: I1 the count is the number of references; it never rises again from zero, since whoever adds one has one.
//! Ordering:   each release publishes what came before; the last one's fence sees all of them.
//! Tests:      tests/models/tests/references.rs.

use crate::prim::{AtomicU32, Ordering, const_unless_loom, fence};

/// See the module.
pub struct References(AtomicU32);

impl References {
    /// More than this are a leak on the way to an overflow.
    const MOST: u32 = u32::MAX / 2;

    const_unless_loom! {
        /// One, the maker's.
        pub const fn new() -> Self {
            Self(AtomicU32::new(1))
        }
    }

    /// One more, by whoever has one.
    ///
    /// # Bugchecks
    /// REFERENCE_BY_POINTER if there is none, or are more than can be: the caller's was not one.
    #[inline]
    pub fn acquire(&self) {
        self.acquire_many(1);
    }

    /// `count` more, by whoever has one.
    ///
    /// # Bugchecks
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub fn acquire_many(&self, count: u32) {
        // Relaxed: the reference that the caller has orders what matters.
        let before = self.0.fetch_add(count, Ordering::Relaxed);
        if before == 0 || before > Self::MOST {
            Self::broken(before);
        }
    }

    /// One less. True: it was the last, and what is counted is the caller's alone.
    ///
    /// # Bugchecks
    /// REFERENCE_BY_POINTER if there was none.
    #[inline]
    #[must_use = "the last one frees"]
    pub fn release(&self) -> bool {
        self.release_many(1)
    }

    /// `count` less, all the caller's. True: they were the last.
    ///
    /// # Bugchecks
    /// As [`release`](Self::release), if there were fewer.
    #[inline]
    #[must_use = "the last one frees"]
    pub fn release_many(&self, count: u32) -> bool {
        let before = self.0.fetch_sub(count, Ordering::Release);
        if before < count {
            Self::broken(before);
        }
        if before == count {
            fence(Ordering::Acquire);
        }
        before == count
    }

    /// How many; stale at once.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    #[cold]
    fn broken(count: u32) -> ! {
        arch::fatal(0x18, [count.into(), 0, 0, 0])
    }
}

impl Default for References {
    fn default() -> Self {
        Self::new()
    }
}
