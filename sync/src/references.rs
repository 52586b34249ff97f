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
        // Relaxed: the reference that the caller has orders what matters.
        let before = self.0.fetch_add(1, Ordering::Relaxed);
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
        let before = self.0.fetch_sub(1, Ordering::Release);
        if before == 0 {
            Self::broken(before);
        }
        if before == 1 {
            fence(Ordering::Acquire);
        }
        before == 1
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
