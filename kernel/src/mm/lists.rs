//! Doubly linked lists of pages, linked through their entries.
//!
//! Invariants: I1 an entry is on at most one list, and on the one that its state names.
//!             I2 `count` is the number of entries from `head` to `tail`; `previous` mirrors `next`.

use core::sync::atomic::Ordering::Relaxed;

use super::pfn::{Memory, NONE, PageNumber};

/// Head and tail of a list.
#[derive(Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
    count: u32,
}

impl List {
    pub(super) const fn new() -> Self {
        Self { head: NONE, tail: NONE, count: 0 }
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    fn known(number: u32) -> Option<PageNumber> {
        // SAFETY: links are written by this file alone, from `PageNumber`s (I1), and `NONE` is no page.
        (number != NONE).then(|| unsafe { PageNumber::new(number) })
    }

    pub(super) fn first(&self) -> Option<PageNumber> {
        Self::known(self.head)
    }

    pub(super) fn after(memory: Memory, page: PageNumber) -> Option<PageNumber> {
        Self::known(memory.entry(page).next.load(Relaxed))
    }

    pub(super) fn push_front(&mut self, memory: Memory, page: PageNumber) {
        let entry = memory.entry(page);
        entry.previous.store(NONE, Relaxed);
        entry.next.store(self.head, Relaxed);
        match self.first() {
            Some(old) => memory.entry(old).previous.store(page.number(), Relaxed),
            None => self.tail = page.number(),
        }
        self.head = page.number();
        self.count += 1;
    }

    pub(super) fn push_back(&mut self, memory: Memory, page: PageNumber) {
        let entry = memory.entry(page);
        entry.next.store(NONE, Relaxed);
        entry.previous.store(self.tail, Relaxed);
        match Self::known(self.tail) {
            Some(old) => memory.entry(old).next.store(page.number(), Relaxed),
            None => self.head = page.number(),
        }
        self.tail = page.number();
        self.count += 1;
    }

    /// Takes `page`, which is on this list, out of it.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT if the neighbours don't point back: an unlink would spread the damage.
    pub(super) fn remove(&mut self, memory: Memory, page: PageNumber) {
        let entry = memory.entry(page);
        let (next, previous) =
            (Self::known(entry.next.load(Relaxed)), Self::known(entry.previous.load(Relaxed)));
        let forward = previous.map_or(self.head, |previous| memory.entry(previous).next.load(Relaxed));
        let backward = next.map_or(self.tail, |next| memory.entry(next).previous.load(Relaxed));
        if forward != page.number() || backward != page.number() {
            entry.corrupt(page);
        }
        match previous {
            Some(previous) => {
                memory.entry(previous).next.store(next.map_or(NONE, PageNumber::number), Relaxed)
            }
            None => self.head = next.map_or(NONE, PageNumber::number),
        }
        match next {
            Some(next) => {
                memory.entry(next).previous.store(previous.map_or(NONE, PageNumber::number), Relaxed)
            }
            None => self.tail = previous.map_or(NONE, PageNumber::number),
        }
        self.count -= 1;
    }

    pub(super) fn pop_front(&mut self, memory: Memory) -> Option<PageNumber> {
        let page = self.first()?;
        self.remove(memory, page);
        Some(page)
    }

    /// The pages, first to last.
    pub(super) fn iter(&self, memory: Memory) -> impl Iterator<Item = PageNumber> {
        core::iter::successors(self.first(), move |&page| Self::after(memory, page))
    }
}
