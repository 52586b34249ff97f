//! What a processor's clock is armed for, against what others put into its timer table.
//!
//! ```text
//! another processor, the table's lock held     the table's own
//! earliest := due                              armed := later, or nothing
//! fence                                        fence
//! armed <= earliest?  its look is ahead        earliest < armed?  arms for that
//! else asks it for a look
//! ```
//!
//! Owns:       [`Earliest`], [`Armed`]. Not: the table, the hardware.
//! IRQL:       any; `Armed` is written by its own processor alone, at HIGH or with IF=0.
//! Invariants: I1 `earliest` < `armed` => its processor is between two of these steps, or a look is asked of it.
//! Ordering:   store-buffering: of one that lowers `earliest` and one that raises `armed`, at least one sees the other.
//! Tests:      tests/models/tests/timer.rs (I1).

use crate::prim::{AtomicU64, Ordering, const_unless_loom, fence};

/// Not at all.
pub const NEVER: u64 = u64::MAX;

/// When the first timer of a table wants an interrupt. Written under the table's lock.
pub struct Earliest(AtomicU64);

/// What a processor's clock is programmed for. Written by that processor.
pub struct Armed(AtomicU64);

impl Earliest {
    const_unless_loom! {
        /// Of an empty table.
        pub const fn new() -> Self {
            Self(AtomicU64::new(NEVER))
        }
    }

    /// Stale at once, unless the table's lock is held.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The caller holds the table's lock. If it is sooner than before, it goes on with [`Armed::is_late_for`].
    #[inline(always)]
    pub fn set(&self, time: u64) {
        self.0.store(time, Ordering::Relaxed);
    }
}

impl Armed {
    const_unless_loom! {
        /// For nothing.
        pub const fn new() -> Self {
            Self(AtomicU64::new(NEVER))
        }
    }

    /// Exact on its own processor.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Own processor: it is to interrupt at `due` or before. True: the caller programs it for `due`.
    #[inline(always)]
    #[must_use]
    pub fn lower(&self, due: u64) -> bool {
        let sooner = due < self.get();
        if sooner {
            self.0.store(due, Ordering::Relaxed);
        }
        sooner
    }

    /// Own processor: it has interrupted, and is armed for nothing. The caller looks at the table after this.
    #[inline(always)]
    pub fn fired(&self) {
        self.0.store(NEVER, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Own processor: nothing of its own needs an interrupt before `next`. What the caller programs it for.
    #[must_use]
    pub fn raise(&self, next: u64, table: &Earliest) -> u64 {
        self.0.store(next, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let next = next.min(table.get());
        self.0.store(next, Ordering::Relaxed);
        next
    }

    /// Another processor than its own, which has put something into the table: must this one be asked for a look?
    #[inline(always)]
    #[must_use]
    pub fn is_late_for(&self, table: &Earliest) -> bool {
        fence(Ordering::SeqCst);
        table.get() < self.get()
    }
}

impl Default for Earliest {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Armed {
    fn default() -> Self {
        Self::new()
    }
}
