//! A processor's part of the pool: short lists of free blocks, counters by tag, and the quarantine of the checked build.
//!
//! Reached with `PoolAccess` on its own processor; the counters may be read from any.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Statistics;
use super::class::{CLASSES, Class};
use super::tags::TAGS;

/// Freed blocks that are kept from reuse in the checked build. Miri looks at every one at each borrow.
const QUARANTINE: usize = if cfg!(miri) { 8 } else { 64 };

/// Free blocks by class, linked through themselves; zero ends a list. Two arrays: each is reached by a scaled index.
struct Lists {
    heads: [Cell<usize>; CLASSES],
    /// How many more a list takes; below zero, some must go. Counted down, so that the compare is with zero.
    room: [Cell<i16>; CLASSES],
}

impl Lists {
    const fn new() -> Self {
        let mut room = [const { Cell::new(0) }; CLASSES];
        let mut at = 0;
        while let Some(class) = Class::new(at) {
            room[at as usize] = Cell::new(class.most_kept() as i16);
            at += 1;
        }
        Self { heads: [const { Cell::new(0) }; CLASSES], room }
    }
}

/// One tag's counters on one processor. Own processor writes, any reads.
struct Counter {
    allocations: AtomicU64,
    frees: AtomicU64,
    bytes: AtomicU64,
}

/// See the module.
pub struct PoolLocal {
    lists: Lists,
    counters: [Counter; TAGS],
    quarantine: [Cell<usize>; QUARANTINE],
    oldest: Cell<usize>,
}

/// One writer: a load and a store are enough.
#[inline]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(value), Relaxed);
}

impl PoolLocal {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self {
            lists: Lists::new(),
            counters: [const {
                Counter { allocations: AtomicU64::new(0), frees: AtomicU64::new(0), bytes: AtomicU64::new(0) }
            }; TAGS],
            quarantine: [const { Cell::new(0) }; QUARANTINE],
            oldest: Cell::new(0),
        }
    }

    #[inline]
    pub(super) fn pop(&self, class: Class, next: impl FnOnce(usize) -> usize) -> Option<usize> {
        let (list, room) = (&self.lists.heads[class.index()], &self.lists.room[class.index()]);
        let head = list.get();
        if head == 0 {
            return None;
        }
        list.set(next(head));
        room.set(room.get().wrapping_add(1));
        Some(head)
    }

    /// Says whether there are too many now.
    #[inline]
    pub(super) fn push(&self, class: Class, block: usize, set_next: impl FnOnce(usize)) -> bool {
        let (list, room) = (&self.lists.heads[class.index()], &self.lists.room[class.index()]);
        set_next(list.get());
        list.set(block);
        room.set(room.get().wrapping_sub(1));
        room.get() < 0
    }

    #[inline]
    pub(super) fn count_allocation(&self, tag: u16, bytes: usize) {
        let counter = &self.counters[usize::from(tag) % TAGS];
        add(&counter.allocations, 1);
        add(&counter.bytes, bytes as u64);
    }

    #[inline]
    pub(super) fn count_free(&self, tag: u16, bytes: usize) {
        let counter = &self.counters[usize::from(tag) % TAGS];
        add(&counter.frees, 1);
        add(&counter.bytes, (bytes as u64).wrapping_neg());
    }

    /// This processor's counts. Blocks freed elsewhere make `bytes` wrap here; the sum over all is right.
    pub(super) fn counted(&self, tag: u16) -> Statistics {
        let counter = &self.counters[usize::from(tag) % TAGS];
        Statistics {
            allocations: counter.allocations.load(Relaxed),
            frees: counter.frees.load(Relaxed),
            bytes: counter.bytes.load(Relaxed),
        }
    }

    /// Keeps a block, and gives the one that was kept longest.
    pub(super) fn quarantine(&self, block: usize) -> Option<usize> {
        let at = self.oldest.get();
        self.oldest.set((at + 1) % QUARANTINE);
        let old = self.quarantine[at].replace(block);
        (old != 0).then_some(old)
    }

    pub(super) fn take_quarantined(&self) -> Option<usize> {
        self.quarantine.iter().map(|slot| slot.take()).find(|&block| block != 0)
    }
}

impl Default for PoolLocal {
    fn default() -> Self {
        Self::new()
    }
}
