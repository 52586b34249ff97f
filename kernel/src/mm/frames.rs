//! The free memory of the machine: what is free, zeroed, still good, or promised.
//!
//! Owns:       [`Frames`]: everything that the PFN lock protects. Not: how free pages are found (frames/blocks.rs), shares and
//!             references (frames/sharing.rs), slots of a backing store (frames/store.rs), the processors' caches in front (pages.rs).
//! IRQL:       whatever the lock is held at; no state of its own.
//! Invariants: I1 free and zeroed pages together are at least as many as are promised.
//! Promises:   a page that will be asked for by somebody who can't take no for an answer (a page fault) is promised when its
//!             address is handed out. Other requests leave as many as are promised.
//! Running out: standby pages become free one by one, the oldest first, as many as are needed; all of them where pages must lie in a row.
//! Tests:      tests/props/tests/mm_pages.rs against a list of pages; `verify` checks I1.

pub use blocks::{ANYWHERE, CHUNK, ORDERS};
use blocks::{Blocks, CHUNK_ORDER, below};

use super::lists::List;
use super::pfn::{CACHED, Memory, NOT_HEAD, PageNumber, State};
use super::pressure::Pressure;
use super::ranges::{PageRange, Ranges};
use crate::ke::bugcheck::StopCode;
pub use store::{Left, Slots};

/// See the module.
pub struct Frames {
    memory: Memory,
    blocks: Blocks,
    zeroed: List,
    standby: List,
    modified: List,
    bad: u32,
    promised: u32,
    store: Option<store::Store>,
    /// Pages that there are at all.
    total: u32,
    pressure: Pressure,
    /// Fewer zeroed pages than this are told of.
    zeroed_low: u32,
}

/// How many pages are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Free, content unknown.
    pub free: u32,
    /// Free and zero.
    pub zeroed: u32,
    /// Reusable at once, content still good.
    pub standby: u32,
    /// Reusable once written out.
    pub modified: u32,
    /// Retired.
    pub bad: u32,
    /// Of those free or zeroed, not to be had by others than those they are promised to.
    pub promised: u32,
}

impl Frames {
    /// Before memory is known: has nothing.
    pub const fn new() -> Self {
        Self {
            memory: Memory::nowhere(),
            blocks: Blocks::new(),
            zeroed: List::new(),
            standby: List::new(),
            modified: List::new(),
            bad: 0,
            promised: 0,
            store: None,
            total: 0,
            pressure: Pressure::new(),
            zeroed_low: 0,
        }
    }

    /// `u64`s of bitmap for memory up to page `end`.
    pub const fn bitmap_words(end: u32) -> usize {
        end.div_ceil(CHUNK).div_ceil(64) as usize
    }

    /// Memory is known: `boot` is free, `opened` is zero and has a bit for each chunk up to the last one that will ever be added.
    ///
    /// # Safety
    /// Nobody else uses the pages of `boot`; all chunks that they touch have entries in `memory`, not yet initialised ones.
    pub unsafe fn start(&mut self, memory: Memory, boot: Ranges, opened: &'static mut [u64]) {
        self.memory = memory;
        self.blocks.start(memory, boot, opened);
        self.count_total(self.blocks.free());
    }

    /// The number behind the last page that can ever be free.
    pub fn end(&self) -> u32 {
        self.blocks.end()
    }

    /// Free blocks by order, up to 2 MiB; chunks that are not open yet are left out.
    pub fn blocks(&self) -> [u32; ORDERS] {
        self.blocks.by_order()
    }

    fn count_total(&mut self, more: u32) {
        self.total += more;
        self.pressure.set_total(self.total);
    }

    /// Tells by [`take_notice`](Self::take_notice) of fewer than `low` zeroed pages, once each time.
    pub fn watch_zeroed(&mut self, low: u32) {
        self.zeroed_low = low;
    }

    /// Says whether something changed that somebody waits for: a condition of [`Pressure`], or zeroed pages became few.
    #[inline]
    pub fn take_notice(&mut self) -> bool {
        let changed = self.pressure.update(self.spare() + self.standby.count());
        // Where there is little to clear, nobody need begin.
        let few = self.zeroed.count() < self.zeroed_low.min(self.spare() / 8);
        if few {
            self.zeroed_low = 0;
        }
        changed || few
    }

    /// How much is left, what nobody was promised.
    pub fn pressure(&self) -> &Pressure {
        &self.pressure
    }

    /// Where pages are reached.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// How many pages are where, those in caches and in use left out.
    pub fn counts(&self) -> Counts {
        Counts {
            free: self.blocks.free(),
            zeroed: self.zeroed.count(),
            standby: self.standby.count(),
            modified: self.modified.count(),
            bad: self.bad,
            promised: self.promised,
        }
    }

    /// Takes over more memory: pages that were the loader's.
    ///
    /// # Safety
    /// Nobody uses them any more, and their chunks have entries.
    pub unsafe fn add(&mut self, range: PageRange) {
        self.count_total(range.len());
        self.blocks.add(range);
    }

    /// `1 << order` pages that end at or below page `limit`, in use from now on.
    pub fn take(&mut self, order: u8, limit: u32) -> Option<PageNumber> {
        self.take_within(order, below(limit))
    }

    /// `1 << order` pages of `within`, in use from now on.
    pub fn take_within(&mut self, order: u8, within: PageRange) -> Option<PageNumber> {
        if !self.leaves(1 << order) {
            return None;
        }
        let page = self.take_by(|blocks| blocks.take(order, within))?;
        self.activate(page, 1 << order);
        Some(page)
    }

    /// What `take` finds among the free blocks; if that is nothing, once more with what can be made free.
    fn take_by(&mut self, take: impl Fn(&mut Blocks) -> Option<PageNumber>) -> Option<PageNumber> {
        let mut found = take(&mut self.blocks);
        if found.is_none() && self.reclaim_zeroed() {
            found = take(&mut self.blocks);
        }
        if found.is_none() && self.evict() {
            while self.evict() {}
            found = take(&mut self.blocks);
        }
        found
    }

    /// Free and zeroed pages that nobody was promised.
    fn spare(&self) -> u32 {
        (self.blocks.free() + self.zeroed.count()).saturating_sub(self.promised)
    }

    /// Would what is promised still be there, `count` pages taken? Standby pages are given up for it.
    fn leaves(&mut self, count: u32) -> bool {
        self.spare() >= count || self.make_spare(count)
    }

    #[cold]
    #[inline(never)]
    fn make_spare(&mut self, count: u32) -> bool {
        let missing = count.saturating_sub(self.spare());
        missing <= self.standby.count() && (0..missing).all(|_| self.evict())
    }

    /// Keeps `count` pages for as many calls of [`keep_promise`](Self::keep_promise). Says whether there are so many.
    #[must_use]
    pub fn promise(&mut self, count: u32) -> bool {
        let can = self.leaves(count);
        if can {
            self.promised += count;
        }
        can
    }

    /// Gives up `count` promises.
    ///
    /// # Bugchecks
    /// MEMORY_MANAGEMENT (0x410, promised, given up) for more than were made.
    pub fn unpromise(&mut self, count: u32) {
        match self.promised.checked_sub(count) {
            Some(left) => self.promised = left,
            None => self.broken_promise(count),
        }
    }

    /// A promised page, in use from now on, and whether it is zero.
    ///
    /// # Bugchecks
    /// MEMORY_MANAGEMENT (0x410, promised, 1) if none was.
    pub fn keep_promise(&mut self) -> (PageNumber, bool) {
        self.unpromise(1);
        if let Some(page) = self.zeroed.pop_front(self.memory) {
            self.memory.entry(page).activate();
            return (page, true);
        }
        match self.take_any() {
            Some(found) => found,
            None => self.broken_promise(1),
        }
    }

    /// A page that is free or zeroed, in use from now on, and whether it is zero.
    fn take_any(&mut self) -> Option<(PageNumber, bool)> {
        let (page, is_zero) = match self.blocks.take(0, below(ANYWHERE)) {
            Some(page) => (page, false),
            None => (self.zeroed.pop_front(self.memory)?, true),
        };
        self.activate(page, 1);
        Some((page, is_zero))
    }

    #[cold]
    fn broken_promise(&self, count: u32) -> ! {
        let parameters = [0x410, self.promised.into(), count.into(), self.blocks.free().into()];
        arch::fatal(StopCode::MemoryManagement as u32, parameters)
    }

    /// `count` pages in a row that end at or below page `limit`; the first is a multiple of 2^`align`.
    pub fn take_contiguous(&mut self, count: u32, align: u8, limit: u32) -> Option<PageNumber> {
        self.take_contiguous_within(count, align, below(limit))
    }

    /// `count` pages in a row of `within`; the first is a multiple of 2^`align`. They cross no multiple of their number rounded up to
    /// a power of two, if that is at most a chunk.
    pub fn take_contiguous_within(&mut self, count: u32, align: u8, within: PageRange) -> Option<PageNumber> {
        if count == 0 {
            return None;
        }
        let order = (count.checked_next_power_of_two()?.trailing_zeros() as u8).max(align);
        if !self.leaves(count) {
            return None;
        }
        // The tail goes back, so it need not lie in the range; but blocks are found whole.
        let (whole, page) = if order <= CHUNK_ORDER {
            (1 << order, self.take_by(|blocks| blocks.take(order, within))?)
        } else {
            let chunks = count.div_ceil(CHUNK);
            (chunks * CHUNK, self.take_by(|blocks| blocks.take_chunks(chunks, align, within))?)
        };
        self.activate(page, count);
        self.blocks.give_run(PageRange { start: page.0 + count, end: page.0 + whole });
        Some(page)
    }

    /// Up to `out.len()` single pages, still counted as free by their entries: for a processor's cache. Returns how many.
    pub fn take_for_cache(&mut self, out: &mut [u32]) -> usize {
        let mut filled = 0;
        if !self.leaves(out.len() as u32) {
            let most = (self.spare() + self.standby.count()) as usize;
            return if most == 0 { 0 } else { self.take_for_cache(&mut out[..most]) };
        }
        while filled < out.len() {
            // The smallest block there is, so that odd ends are used first, but several pages of it: neighbours stay together.
            let most = (out.len() - filled).ilog2() as u8;
            let block = self.blocks.take_between(0, most.min(CHUNK_ORDER), below(ANYWHERE));
            let Some((page, order)) = block else {
                if self.reclaim_zeroed() || self.evict() {
                    continue;
                }
                break;
            };
            for number in page.0..page.0 + (1 << order) {
                // SAFETY: part of the block.
                self.memory.entry(unsafe { PageNumber::new(number) }).set(State::Free, CACHED);
                out[filled] = number;
                filled += 1;
            }
        }
        filled
    }

    /// A page comes back: from a cache, or released by its owner.
    pub fn give(&mut self, page: PageNumber) {
        let entry = self.memory.entry(page);
        if entry.state() != Some(State::Free) || entry.order() != CACHED {
            entry.corrupt(page);
        }
        entry.set(State::Free, NOT_HEAD);
        self.blocks.give(page);
    }

    /// `count` pages in a row, taken together, come back.
    pub fn give_contiguous(&mut self, page: PageNumber, count: u32) {
        for number in page.0..page.0 + count {
            // SAFETY: the caller has the block.
            let page = unsafe { PageNumber::new(number) };
            self.memory.entry(page).release(page);
        }
        self.blocks.give_run(PageRange { start: page.0, end: page.0 + count });
    }

    /// An active page that must not be used again.
    pub fn retire(&mut self, page: PageNumber) {
        let entry = self.memory.entry(page);
        entry.release(page);
        entry.set(State::Bad, NOT_HEAD);
        self.bad += 1;
    }

    /// A free page to be cleared; it comes back by [`give_zeroed`](Self::give_zeroed). None that was promised: until it comes back, it is
    /// nobody's to have (I1).
    pub fn take_to_zero(&mut self) -> Option<PageNumber> {
        if self.spare() == 0 {
            return None;
        }
        let page = self.blocks.take(0, below(ANYWHERE))?;
        self.activate(page, 1);
        Some(page)
    }

    /// A page that its owner cleared.
    pub fn give_zeroed(&mut self, page: PageNumber) {
        let entry = self.memory.entry(page);
        entry.release(page);
        entry.set(State::Zeroed, NOT_HEAD);
        self.zeroed.push_back(self.memory, page);
    }

    /// A zeroed page, in use from now on.
    pub fn take_zeroed(&mut self) -> Option<PageNumber> {
        if self.spare() == 0 {
            return None;
        }
        let page = self.zeroed.pop_front(self.memory)?;
        self.memory.entry(page).activate();
        Some(page)
    }

    fn activate(&mut self, page: PageNumber, count: u32) {
        for number in page.0..page.0 + count {
            // SAFETY: part of the block just taken.
            self.memory.entry(unsafe { PageNumber::new(number) }).activate();
        }
    }

    /// Makes zeroed pages free, so that they merge. Says whether there were any.
    fn reclaim_zeroed(&mut self) -> bool {
        let mut any = false;
        while let Some(page) = self.zeroed.pop_front(self.memory) {
            self.memory.entry(page).set(State::Free, CACHED);
            self.give(page);
            any = true;
        }
        any
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

mod blocks;
mod sharing;
mod store;
mod verify;
