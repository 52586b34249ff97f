//! SLIST: each entry is popped by one, who sees what was written to it before the push; none is lost; no ABA.
//!
//! The header's 16 bytes are modelled (sync/src/prim/wide.rs): halves may be read stale and of different times, both are
//! exchanged at once. An entry's own `next` is loom's atomic, so a late pop reads any value that it ever had. What an entry
//! carries is a loom cell, which its owner writes: two owners, or an unpublished push, are reported as a race.
//! Bound: two threads with up to three operations each on lists of two, any number of preemptions or five; three threads,
//! three.
#![cfg(loom)]

use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use models::explore;
use sync::slist::{Entry, Header};

#[repr(C)]
struct Item {
    entry: Entry,
    owner: UnsafeCell<usize>,
}

struct Lists {
    header: Header,
    items: Vec<Item>,
}

// SAFETY: an item's cell is accessed by who popped it: what the model checks.
unsafe impl Sync for Lists {}
// SAFETY: as above.
unsafe impl Send for Lists {}

impl Lists {
    fn new(pushed: usize, more: usize) -> Arc<Self> {
        let item = || Item { entry: Entry::new(), owner: UnsafeCell::new(usize::MAX) };
        let lists = Self { header: Header::new(), items: (0..pushed + more).map(|_| item()).collect() };
        (0..pushed).for_each(|index| lists.push(index));
        Arc::new(lists)
    }

    fn push(&self, index: usize) {
        // SAFETY: the models push what they own; items live as long as the header.
        unsafe { self.header.push(NonNull::from(&self.items[index].entry)) };
    }

    fn index(&self, entry: NonNull<Entry>) -> usize {
        let found = self.items.iter().position(|item| NonNull::from(&item.entry) == entry);
        found.expect("popped what nobody pushed")
    }

    /// Pops one as thread `number`, writes to it as its owner does, and says which.
    fn pop(&self, number: usize) -> Option<usize> {
        let index = self.index(self.header.pop()?);
        self.own(index, number);
        Some(index)
    }

    fn own(&self, index: usize, number: usize) {
        // SAFETY: popped, so ours alone; loom checks it.
        self.items[index].owner.with_mut(|owner| unsafe { *owner = number });
    }

    /// All that is left, sorted.
    fn rest(&self) -> Vec<usize> {
        let mut rest: Vec<_> = core::iter::from_fn(|| self.pop(usize::MAX)).collect();
        rest.sort_unstable();
        rest
    }
}

/// The classic: one pops while another pops two, pushes a third and the first of them again. Depth and first entry are as before;
/// what is second is not.
#[test]
fn a_first_entry_that_is_back_is_no_longer_what_it_was() {
    explore(None, || {
        let lists = Lists::new(2, 1);
        let theirs = lists.clone();
        let other = thread::spawn(move || {
            let first = theirs.pop(1);
            let second = theirs.pop(1);
            theirs.own(2, 1);
            theirs.push(2);
            if let Some(first) = first {
                theirs.push(first);
            }
            second
        });
        let mine = lists.pop(0);
        let second = other.join().unwrap();
        let mut all: Vec<_> = mine.into_iter().chain(second).chain(lists.rest()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2], "lost or doubled");
        assert_eq!(lists.header.depth(), 0);
    });
}

#[test]
fn pushes_and_pops_lose_and_double_nothing() {
    explore(Some(5), || {
        let lists = Lists::new(1, 2);
        let run = |lists: &Lists, number: usize| {
            lists.own(number, number);
            lists.push(number);
            lists.pop(number)
        };
        let theirs = lists.clone();
        let other = thread::spawn(move || run(&theirs, 1));
        let mine = run(&lists, 2);
        let mut all: Vec<_> = mine.into_iter().chain(other.join().unwrap()).chain(lists.rest()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2], "lost or doubled");
    });
}

#[test]
fn a_flush_takes_all_or_leaves_them_to_pops() {
    explore(Some(5), || {
        let lists = Lists::new(2, 1);
        let theirs = lists.clone();
        let other = thread::spawn(move || {
            let popped = theirs.pop(1);
            theirs.own(2, 1);
            theirs.push(2);
            popped
        });
        let mut all = Vec::new();
        let mut next = lists.header.flush();
        while let Some(entry) = next {
            // SAFETY: flushed, so ours.
            next = unsafe { entry.as_ref() }.next();
            let index = lists.index(entry);
            lists.own(index, 0);
            all.push(index);
        }
        all.extend(other.join().unwrap());
        all.extend(lists.rest());
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2], "lost or doubled");
    });
}

#[test]
fn three_pop_from_two() {
    explore(Some(3), || {
        let lists = Lists::new(2, 0);
        let pops = |number: usize| {
            let lists = lists.clone();
            thread::spawn(move || lists.pop(number))
        };
        let others = [pops(1), pops(2)];
        let mine = lists.pop(0);
        if let Some(mine) = mine {
            lists.push(mine);
        }
        let theirs: Vec<_> = others.into_iter().filter_map(|other| other.join().unwrap()).collect();
        let mut all: Vec<_> = theirs.into_iter().chain(lists.rest()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1], "lost or doubled");
    });
}
