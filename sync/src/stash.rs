//! A processor's own stash of numbers (free pages), from which others can take all when they have run out.
//!
//! ```text
//!  slots   [ a ][ b ][ - ][ c ][ - ][ - ]        - is empty: never filled, or taken by another processor
//!                               ▲ top: the owner's alone; all slots from here on are empty
//! ```
//!
//! The owner puts at the top and takes from it, without a lock; another processor takes from any slot. Whoever swaps a number out of
//! its slot has it, so each comes out once. Only the owner fills a slot, one that it knows to be empty, so nothing is overwritten.
//! The owner's operations don't interrupt each other: it is at DISPATCH (the rank `PageCacheAccess`).
//!
//! Invariants: I1 slots from `top` on are empty.
//!             I2 a number is in one slot, or with whoever swapped it out.
//! Ordering:   a slot is filled with Release and emptied with Acquire: what was done with a page before comes before what is done
//!             with it next, on whatever processor.
//! Tests:      tests/models/tests/stash.rs.

use crate::prim::{AtomicU32, Ordering};

/// What an empty slot holds; no number.
const EMPTY: u32 = u32::MAX;

/// At most `N` numbers below `u32::MAX`.
pub struct Stash<const N: usize> {
    slots: [AtomicU32; N],
    /// Written by the owner; others see a value that is stale at once.
    top: AtomicU32,
}

impl<const N: usize> Stash<N> {
    /// An empty one.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { slots: [const { AtomicU32::new(EMPTY) }; N], top: AtomicU32::new(0) }
    }

    /// An empty one.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU32::new(EMPTY)), top: AtomicU32::new(0) }
    }

    /// How many it holds; stale at once, but for the owner while nobody takes.
    pub fn len(&self) -> u32 {
        self.slots.iter().filter(|slot| slot.load(Ordering::Relaxed) != EMPTY).count() as u32
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// No room for the owner to put one more, though others may have taken some: [`take_oldest`](Self::take_oldest) makes room.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.top.load(Ordering::Relaxed) as usize >= N
    }

    /// Owner: the number put last.
    #[inline]
    pub fn pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Relaxed);
        while let Some(left) = top.checked_sub(1) {
            let number = self.slots[left as usize % N].swap(EMPTY, Ordering::Acquire);
            self.top.store(left, Ordering::Relaxed);
            if number != EMPTY {
                return Some(number);
            }
            top = left;
        }
        None
    }

    /// Owner: one more. False if it is full, and nothing was put.
    #[inline]
    #[must_use = "a number that found no room is lost"]
    pub fn push(&self, number: u32) -> bool {
        let top = self.top.load(Ordering::Relaxed);
        let Some(slot) = self.slots.get(top as usize) else { return false };
        fill(slot, number);
        self.top.store(top + 1, Ordering::Relaxed);
        true
    }

    /// Owner: gives those in the lowest `most` slots to `take`; the others move down.
    pub fn take_oldest(&self, most: usize, mut take: impl FnMut(u32)) {
        let top = (self.top.load(Ordering::Relaxed) as usize).min(N);
        let gone = top.min(most);
        self.slots[..gone]
            .iter()
            .map(|slot| slot.swap(EMPTY, Ordering::Acquire))
            .filter(|&n| n != EMPTY)
            .for_each(&mut take);
        let mut to = 0;
        for from in gone..top {
            let number = self.slots[from].swap(EMPTY, Ordering::Acquire);
            // To a slot below, which was emptied above or in an earlier round.
            if number != EMPTY {
                fill(&self.slots[to], number);
                to += 1;
            }
        }
        self.top.store(to as u32, Ordering::Relaxed);
    }

    /// Any processor: gives all to `take`. What the owner puts meanwhile may stay.
    pub fn take_all(&self, take: impl FnMut(u32)) {
        self.slots
            .iter()
            .map(|slot| slot.swap(EMPTY, Ordering::Acquire))
            .filter(|&n| n != EMPTY)
            .for_each(take);
    }
}

/// Owner: puts a number into a slot that it knows to be empty.
#[inline]
fn fill(slot: &AtomicU32, number: u32) {
    #[cfg(not(loom))]
    slot.store(number, Ordering::Release);
    // loom does not order a store after another thread's swap that came before it, and would let that swap's EMPTY be the last
    // (tests/models/tests/litmus.rs, `a_store_may_be_undone_...`).
    #[cfg(loom)]
    assert_eq!(slot.swap(number, Ordering::Release), EMPTY);
}

impl<const N: usize> Default for Stash<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn last_in_first_out_and_the_oldest_go() {
        let stash = Stash::<4>::new();
        assert_eq!(stash.pop(), None);
        assert!((1..=4).all(|number| stash.push(number)));
        assert!(stash.is_full() && !stash.push(5));
        let mut gone = Vec::new();
        stash.take_oldest(2, |number| gone.push(number));
        assert_eq!((gone.as_slice(), stash.len()), (&[1, 2][..], 2));
        assert_eq!((stash.pop(), stash.pop(), stash.pop()), (Some(4), Some(3), None));
    }

    #[test]
    fn holes_that_others_left_are_passed_over_and_closed() {
        let stash = Stash::<4>::new();
        assert!((1..=4).all(|number| stash.push(number)));
        let mut gone = Vec::new();
        stash.take_all(|number| gone.push(number));
        assert_eq!(gone, [1, 2, 3, 4]);
        assert!(stash.is_full() && stash.is_empty() && !stash.push(9));
        stash.take_oldest(2, |_| panic!("nothing is left"));
        assert!(stash.push(7) && stash.push(8));
        assert_eq!((stash.pop(), stash.pop(), stash.pop()), (Some(8), Some(7), None));
    }
}
