//! A pile: entries that any processor puts on, at any level, and that are taken all at once.
//!
//! ```text
//! put                                     take
//! entry.below := top                      top -> empty                (Acquire)
//! top -> entry              (Release)     all of it is the taker's, the last one put on first
//! it was empty: ask for a taker
//! ```
//!
//! Owns:       [`Pile`], [`Entry`]. Not: what entries are part of, nor who takes.
//! IRQL:       any: nothing waits, and who loses an exchange was overtaken by one that succeeded.
//! Invariants: I1 an entry is on one pile from its `put` until it is taken, and belongs to that; then to who took it.
//!             I2 the pile isn't empty => a `put` has returned true, or is about to, since it was last taken. So who has each `true`
//!                followed by a `take` leaves no entry behind.
//! Why so:     nothing is taken singly, so no entry is read that somebody else may have taken: no ABA and no late read as of an SLIST's pop,
//!             and an entry's memory may be anything after it was taken, unmapped too.
//! Tests:      tests/models/tests/pile.rs (I1, I2); the unit tests below.

use core::ptr::{self, NonNull};

use crate::prim::{AtomicPtr, Ordering, const_unless_loom};

/// What makes something an entry.
#[repr(transparent)]
pub struct Entry {
    below: AtomicPtr<Entry>,
}

/// See the module.
pub struct Pile {
    top: AtomicPtr<Entry>,
}

impl Entry {
    const_unless_loom! {
        /// One that is on no pile.
        pub const fn new() -> Self {
            Self { below: AtomicPtr::new(ptr::null_mut()) }
        }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self::new()
    }
}

impl Pile {
    const_unless_loom! {
        /// An empty one.
        pub const fn new() -> Self {
            Self { top: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Puts `entry` on top. True: the pile was empty, and the caller sees to it that somebody takes it (I2).
    ///
    /// # Safety
    /// `entry` is the caller's, on no pile, and stays valid until it was taken (I1).
    #[must_use = "true: nobody else asks for a taker"]
    pub unsafe fn put(&self, entry: NonNull<Entry>) -> bool {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller's.
            unsafe { entry.as_ref() }.below.store(top, Ordering::Relaxed);
            // Release: the entry, and what was done with what it is part of, before whoever takes it.
            match self.top.compare_exchange(top, entry.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return top.is_null(),
                Err(found) => top = found,
            }
        }
    }

    /// Takes all entries: the caller's from here on, from the last one put to the first.
    pub fn take(&self) -> Taken {
        // Acquire: what came before the puts.
        Taken(self.top.swap(ptr::null_mut(), Ordering::Acquire))
    }

    /// Is nothing on it? Stale at once.
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed).is_null()
    }
}

impl Default for Pile {
    fn default() -> Self {
        Self::new()
    }
}

/// Entries that were taken; each may be freed as soon as it was returned. Those that are left when this is dropped are nobody's.
#[must_use = "entries that were taken are nobody else's"]
pub struct Taken(*mut Entry);

impl Iterator for Taken {
    type Item = NonNull<Entry>;

    fn next(&mut self) -> Option<NonNull<Entry>> {
        let entry = NonNull::new(self.0)?;
        // SAFETY: taken (I1), and not returned yet.
        self.0 = unsafe { entry.as_ref() }.below.load(Ordering::Relaxed);
        Some(entry)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_taken_once_the_last_first() {
        let (pile, entries) = (Pile::new(), [const { Entry::new() }; 3]);
        let put = |entry| {
            // SAFETY: the entries outlive the pile's use, and are put once between two takes.
            unsafe { pile.put(NonNull::from(entry)) }
        };
        assert!(pile.is_empty() && pile.take().next().is_none());
        for _ in 0..2 {
            assert_eq!(entries.each_ref().map(put), [true, false, false]);
            assert!(!pile.is_empty());
            let taken: Vec<_> = pile.take().collect();
            let expected: Vec<_> = entries.iter().rev().map(NonNull::from).collect();
            assert_eq!(taken, expected);
            assert!(pile.is_empty());
        }
    }
}
