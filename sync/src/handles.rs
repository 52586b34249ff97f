//! A table of handles: names for objects, looked up without a lock while others enter, close and grow.
//!
//! ```text
//! branches ─► branch ─► leaf ─► entry: word │ info
//!
//! word: bits 20–63  address of the object, from bit 4 on; zero: no object
//!            6–19   sequence: how many objects were here before, modulo 2^14
//!            1–5    credits: references to the object that lookups may take along
//!            0      lock
//!
//! lookup                                    close
//! word: of this name, a credit left         lock: nobody else changes the entry now, but for credits
//! info                                      word -> empty, sequence + 1             (AcqRel)
//! word: credits - 1, if it still is that    what credits are left, and one more reference, are the closer's
//!                               (AcqRel)    then the entry is free, and gets another info and another object
//! ```
//!
//! A lookup must not touch an object to which it has no reference, so references are counted ahead: the entry has some, and who takes one
//! along does so by the exchange that finds the entry unchanged. Who finds no credit left takes the entry's lock, under which the handle's
//! own reference stays, and adds to the object's count for all who come next.
//!
//! Owns:       [`Table`], [`Name`]: `entry` has the word, `blocks` the memory and the free list. Not: the memory of its blocks, what info means, nor the objects' counts ([`Counted`]).
//! IRQL:       all below R; an entry's lock and the free list's are held at R's CR8 value, never both.
//! Invariants: H1 an entry with an object has one reference to it, and one for each credit. Who takes a credit, or empties the entry, has
//!                what he took. So an object is there while a word that leads to it can still be exchanged.
//!             H2 the lock bit is set by who will clear it, or empty the entry. Under it nobody else does anything but take credits.
//!             H3 an entry is empty <=> it is on the free list, or about to be put there by who emptied it, or to be filled or put back by who took it ([`Vacant`]).
//!             H4 a block that was published stays where it is until the table ends.
//! Ordering:   a word is published with Release behind its info. A lookup's exchange is Release and the emptying one Acquire: what a lookup
//!             has read of info comes before what is written there for the next object, so it belongs to the object that it got.
//! Reuse:      the free list is first in, first out, and a name has 9 bits of the sequence. A closed handle leads to nothing until its entry
//!             was reused 512 times, for which at least all that were free have to be. NT's handles have no sequence.
//! Tests:      tests/models/tests/handles.rs (H1, H2, H4); the unit tests (handles/tests.rs).

use core::ptr::{self, NonNull};

use crate::irql::{Below, Irql, Rank};
use crate::prim::{AtomicPtr, Ordering};
use crate::spin::SpinLock;

mod blocks;
mod entry;
#[cfg(all(test, not(loom)))]
mod tests;

pub use blocks::{Blocks, Branch, Growth, Leaf};
pub use entry::{Name, Vacant};

use blocks::{BRANCHES, Free};
use entry::{CREDIT, CREDIT_MASK, CREDITS, Entry, LOCK, SEQUENCE, SEQUENCE_MASK, object_of};

/// What handles lead to.
///
/// # Safety
/// Aligned to 16 bytes, and its address is one of 48 bits, sign-extended.
pub unsafe trait Counted {
    /// Counts `count` references more.
    ///
    /// # Safety
    /// Somebody has one, and keeps it until this returns.
    unsafe fn acquire(object: NonNull<Self>, count: u32);
}

/// A handle that is one no more.
#[must_use = "its references are the caller's"]
pub struct Closed<T> {
    /// What it led to.
    pub object: NonNull<T>,
    /// References that were the entry's: at least one. The caller's now.
    pub references: u32,
    /// As it was.
    pub info: u64,
}

/// Why a handle was not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotClosed {
    /// There is no such handle.
    Unknown,
    /// The caller's question was answered with no.
    Kept,
}

/// See the module.
pub struct Table<T, R: Rank> {
    branches: [AtomicPtr<Branch<T>>; BRANCHES],
    free: SpinLock<Free, R>,
}

// SAFETY: objects are reached by who has a reference, which is `Counted`'s and the caller's to say; the rest are atomics.
unsafe impl<T: Send + Sync, R: Rank> Sync for Table<T, R> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync, R: Rank> Send for Table<T, R> {}

impl<T: Counted, R: Rank> Table<T, R> {
    #[cfg(not(loom))]
    /// An empty one, without blocks.
    #[expect(clippy::new_without_default, reason = "it is a part of what has a default or not")]
    pub const fn new() -> Self {
        Self {
            branches: [const { AtomicPtr::new(ptr::null_mut()) }; BRANCHES],
            free: SpinLock::new(Free { first: 0, last: 0, leaves: 0 }),
        }
    }

    #[cfg(loom)]
    /// An empty one, without blocks.
    #[expect(clippy::new_without_default, reason = "it is a part of what has a default or not")]
    pub fn new() -> Self {
        Self {
            branches: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            free: SpinLock::new(Free { first: 0, last: 0, leaves: 0 }),
        }
    }

    /// What `name` leads to, and its info; a reference to it is the caller's.
    #[inline]
    pub fn lookup<L: Below<R>>(&self, name: Name, at: &mut Irql<L>) -> Option<(NonNull<T>, u64)> {
        let entry = self.entry(name.index())?;
        loop {
            // Acquire: info, as it was when the object came.
            let word = entry.word.load(Ordering::Acquire);
            if !name.is_of(word.addr()) {
                return None;
            }
            if word.addr() & CREDIT_MASK == 0 {
                return Self::lookup_without_credit(entry, name, at);
            }
            let info = entry.info.load(Ordering::Relaxed);
            let less = word.map_addr(|word| word - CREDIT);
            // Release: info was read before the entry is emptied. Acquire: what came before the object was entered.
            if entry.word.compare_exchange(word, less, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return object_of(word).map(|object| (object, info));
            }
        }
    }

    #[cold]
    fn lookup_without_credit<L: Below<R>>(
        entry: &Entry<T>,
        name: Name,
        at: &mut Irql<L>,
    ) -> Option<(NonNull<T>, u64)> {
        let _at = at.raise::<R>();
        let word = entry.lock(name)?;
        // Others may take of these, none adds (H2).
        let more = CREDITS - (word.addr() & CREDIT_MASK) / CREDIT;
        let object = object_of(word)?;
        // SAFETY: the entry's own reference stays while it is locked (H1, H2).
        unsafe { T::acquire(object, more as u32 + 1) };
        let info = entry.info.load(Ordering::Relaxed);
        entry.change(|word| (word + more * CREDIT) & !LOCK);
        Some((object, info))
    }

    /// A free entry, the caller's alone. None: there is none.
    #[inline]
    pub fn take<L: Below<R>>(&self, at: &mut Irql<L>) -> Option<Vacant<'_, T>> {
        let mut free = self.free.lock(at);
        let index = free.first;
        let entry = (index != 0).then(|| self.entry(index as usize)).flatten()?;
        free.first = entry.info.load(Ordering::Relaxed) as u32;
        Some(Vacant { index, entry })
    }

    /// Gives one back that was not filled.
    ///
    /// # Panics
    /// If it is another table's.
    pub fn give_back<L: Below<R>>(&self, vacant: Vacant<'_, T>, at: &mut Irql<L>) {
        let own = self.entry(vacant.index as usize).is_some_and(|entry| core::ptr::eq(entry, vacant.entry));
        assert!(own, "an entry of another table");
        self.put_back(vacant.index, vacant.entry, at);
    }

    /// Ends the handle `name`, if `may` says so of its info.
    ///
    /// # Errors
    /// Why it was not.
    #[inline]
    pub fn close<L: Below<R>>(
        &self,
        name: Name,
        may: impl FnOnce(u64) -> bool,
        at: &mut Irql<L>,
    ) -> Result<Closed<T>, NotClosed> {
        let entry = self.entry(name.index()).ok_or(NotClosed::Unknown)?;
        let closed = {
            let _at = at.raise::<R>();
            entry.lock(name).ok_or(NotClosed::Unknown)?;
            let info = entry.info.load(Ordering::Relaxed);
            if !may(info) {
                entry.unlock();
                return Err(NotClosed::Kept);
            }
            Self::empty(entry, info).ok_or(NotClosed::Unknown)?
        };
        self.put_back(name.index() as u32, entry, at);
        Ok(closed)
    }

    /// The lock is the caller's, or the table is.
    fn empty(entry: &Entry<T>, info: u64) -> Option<Closed<T>> {
        // H2: the sequence stays, credits may go.
        let sequence = entry.word.load(Ordering::Relaxed).addr() & SEQUENCE_MASK;
        let next = sequence.wrapping_add(SEQUENCE) & SEQUENCE_MASK;
        // AcqRel: behind it are the lookups that have found the entry, with what they have read of info.
        let word = entry.word.swap(ptr::without_provenance_mut(next), Ordering::AcqRel);
        let credits = (word.addr() & CREDIT_MASK) / CREDIT;
        object_of(word).map(|object| Closed { object, references: credits as u32 + 1, info })
    }

    fn put_back<L: Below<R>>(&self, index: u32, entry: &Entry<T>, at: &mut Irql<L>) {
        entry.info.store(0, Ordering::Relaxed);
        let mut free = self.free.lock(at);
        self.append(&mut free, index);
    }

    /// Changes the info of `name`, for lookups from now on. False: there is no such handle.
    #[inline]
    pub fn change_info<L: Below<R>>(
        &self,
        name: Name,
        change: impl FnOnce(u64) -> u64,
        at: &mut Irql<L>,
    ) -> bool {
        let Some(entry) = self.entry(name.index()) else { return false };
        let _at = at.raise::<R>();
        if entry.lock(name).is_none() {
            return false;
        }
        entry.info.store(change(entry.info.load(Ordering::Relaxed)), Ordering::Relaxed);
        entry.unlock();
        true
    }
}
