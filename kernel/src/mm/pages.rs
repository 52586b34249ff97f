//! Page allocation: a processor's own cache, and behind it the machine's free memory under the PFN lock.
//!
//! Owns:       [`PageManager`], [`PageCache`], [`Page`].
//! IRQL:       at or below DISPATCH; any lock of a rank below `PageCacheAccess` may be held.
//! Locks:      `PageCacheAccess` is no lock but the right to this processor's cache: a token of that rank is at DISPATCH, so the
//!             thread stays, and exists once on a processor, so nobody else is half-way in the cache. `PfnLock` above it.
//! Invariants: I1 a page is in one place: in use (a `Page`), in one cache, or in `Frames`.
//!             I2 pages in caches are Free by their entries, so that a second free is found before it does harm.
//! Running out: what all processors hold in their caches, at most [`PageCache::MOST`] pages and [`PageCache::PAIRS`] pairs each, goes back
//!             to the machine's lists, by whoever finds these empty (`sync::stash`).
//! Tests:      tests/props/tests/mm_pages.rs; selftest `memory_pages::*`.

use core::cell::UnsafeCell;

use sync::SpinLock;
use sync::irql::{Irql, PageCacheAccess, PfnLock};
use sync::stash::Stash;

use super::frames::{ANYWHERE, Counts, Frames};
use super::pfn::{Memory, PageNumber};
use super::ranges::PageRange;
use super::{Exhausted, is_refused};

/// A page in use: whoever has the value owns the page. Dropping it leaks the page, since giving it back needs a level.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a dropped page is lost"]
pub struct Page(PageNumber);

impl Page {
    /// Its number.
    #[inline]
    pub fn number(&self) -> PageNumber {
        self.0
    }

    /// Gives up ownership, to whoever keeps the number.
    #[inline]
    pub fn into_number(self) -> PageNumber {
        self.0
    }

    /// Takes ownership again.
    ///
    /// # Safety
    /// The number came from [`into_number`](Self::into_number), or from a contiguous run, once.
    #[inline]
    pub unsafe fn from_number(number: PageNumber) -> Self {
        Self(number)
    }
}

/// One processor's free pages: its own to put and to take; others take all of them when memory has run out.
#[derive(Default)]
pub struct PageCache {
    single: Stash<{ Self::MOST }>,
    /// Of each the first of two pages in a row: to split and merge them would cost ten times as much as to keep them.
    pairs: Stash<{ Self::PAIRS }>,
}

impl PageCache {
    /// The most pages that it holds one by one.
    pub const MOST: usize = 32;
    /// And the most pairs.
    pub const PAIRS: usize = 8;
    /// How many move at once between it and the machine's lists.
    const BATCH: usize = Self::MOST / 2;

    /// An empty one.
    pub const fn new() -> Self {
        Self { single: Stash::new(), pairs: Stash::new() }
    }

    /// How many pages it holds; another processor's is stale at once.
    pub fn len(&self) -> u32 {
        self.single.len() + 2 * self.pairs.len()
    }

    /// None?
    pub fn is_empty(&self) -> bool {
        self.single.is_empty() && self.pairs.is_empty()
    }

    #[inline]
    fn pop(&self) -> Option<PageNumber> {
        // SAFETY: the cache holds pages that came from `Frames` or a `Page` (I1).
        self.single.pop().map(|number| unsafe { PageNumber::new(number) })
    }

    /// Any processor: gives all pages to `take`.
    fn take_all(&self, mut take: impl FnMut(PageNumber)) {
        // SAFETY: the cache holds pages (I1).
        self.single.take_all(|number| take(unsafe { PageNumber::new(number) }));
        self.pairs.take_all(|first| pair(first).into_iter().for_each(&mut take));
    }
}

/// The pages of a pair that a cache holds.
fn pair(first: u32) -> [PageNumber; 2] {
    // SAFETY: the cache holds pages (PageManager's I1), of a pair both.
    unsafe { [PageNumber::new(first), PageNumber::new(first + 1)] }
}

/// What is done with each cache.
pub type Visit<'a> = &'a mut dyn FnMut(&PageCache);

/// What the machine has to do with it.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Calls a function with the cache of each processor: they are emptied when memory has run out.
    pub caches: fn(Visit<'_>),
    /// [`Frames::take_notice`] said that something changed. At DISPATCH, under whatever locks are held there.
    pub notice: fn(&mut At),
}

/// All memory.
pub struct PageManager {
    frames: SpinLock<Frames, PfnLock>,
    /// Written by `start` alone, before anybody has a page; a plain load, since each allocation needs it.
    memory: UnsafeCell<Memory>,
    machine: Machine,
}

// SAFETY: `frames` is a lock; `memory` doesn't change once a second processor can look (`start`'s contract).
unsafe impl Sync for PageManager {}

/// The right to this processor's cache.
pub type At = Irql<PageCacheAccess>;

impl PageManager {
    /// Before memory is known: every allocation fails.
    pub const fn new(machine: Machine) -> Self {
        Self { frames: SpinLock::new(Frames::new()), memory: UnsafeCell::new(Memory::nowhere()), machine }
    }

    /// The frames behind the lock, for what needs no cache.
    pub fn frames(&self) -> &SpinLock<Frames, PfnLock> {
        &self.frames
    }

    /// Memory is known.
    ///
    /// # Safety
    /// As [`Frames::start`]; once, and nobody else uses the manager meanwhile.
    pub unsafe fn start(
        &self,
        memory: Memory,
        boot: super::ranges::Ranges,
        opened: &'static mut [u64],
        at: &mut At,
    ) {
        // SAFETY: nobody else looks meanwhile; the rest is the caller's.
        unsafe {
            *self.memory.get() = memory;
            self.frames.lock(at).start(memory, boot, opened);
        }
    }

    /// Where pages are reached. Nobody has a page before [`start`](Self::start).
    #[inline]
    pub fn memory(&self) -> Memory {
        // SAFETY: not written after `start`, which nobody looks during.
        unsafe { *self.memory.get() }
    }

    /// A page, its content unknown.
    #[inline]
    pub fn allocate(&self, cache: &PageCache, at: &mut At) -> Result<Page, Exhausted> {
        if is_refused() {
            return Err(Exhausted);
        }
        self.allocate_spare(cache, at)
    }

    /// As [`allocate`](Self::allocate), for who does as well without one: not refused on purpose, as nobody could tell.
    #[inline]
    pub(super) fn allocate_spare(&self, cache: &PageCache, at: &mut At) -> Result<Page, Exhausted> {
        match self.allocate_cached(cache) {
            Some(page) => Ok(page),
            None => self.allocate_slowly(cache, at),
        }
    }

    /// A page of this processor's cache.
    #[inline]
    pub(super) fn allocate_cached(&self, cache: &PageCache) -> Option<Page> {
        let page = cache.pop()?;
        self.memory().entry(page).activate();
        Some(Page(page))
    }

    #[cold]
    #[inline(never)]
    fn allocate_slowly(&self, cache: &PageCache, at: &mut At) -> Result<Page, Exhausted> {
        let page = self.refill(cache, at)?;
        self.memory().entry(page).activate();
        Ok(Page(page))
    }

    /// A page of zeroes.
    pub fn allocate_zeroed(&self, cache: &PageCache, at: &mut At) -> Result<Page, Exhausted> {
        if is_refused() {
            return Err(Exhausted);
        }
        if let Some(page) = self.with(at, Frames::take_zeroed) {
            return Ok(Page(page));
        }
        let page = match self.allocate_cached(cache) {
            Some(page) => page,
            None => self.allocate_slowly(cache, at)?,
        };
        // SAFETY: just allocated.
        unsafe { self.memory().zero(page.0) };
        Ok(page)
    }

    /// A page of zeroes that was cleared ahead of need, if there is any.
    pub fn allocate_cleared(&self, at: &mut At) -> Option<Page> {
        if is_refused() {
            return None;
        }
        self.with(at, Frames::take_zeroed).map(Page)
    }

    /// Takes a page back.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for one that is not in use, or still referenced.
    #[inline]
    pub fn free(&self, page: Page, cache: &PageCache, at: &mut At) {
        self.memory().entry(page.0).release(page.0);
        if !cache.single.push(page.0.0) {
            self.free_slowly(page, cache, at);
        }
    }

    /// Two pages in a row, content unknown; the first is returned. They are freed by [`free_pair`](Self::free_pair), or one by one.
    #[inline]
    pub fn allocate_pair(&self, cache: &PageCache, at: &mut At) -> Result<Page, Exhausted> {
        if is_refused() {
            return Err(Exhausted);
        }
        match self.allocate_cached_pair(cache) {
            Some(first) => Ok(first),
            None => self.allocate_contiguous(2, 0, NO_LIMIT, at),
        }
    }

    /// Two pages in a row of this processor's cache.
    #[inline]
    pub(super) fn allocate_cached_pair(&self, cache: &PageCache) -> Option<Page> {
        let [first, second] = pair(cache.pairs.pop()?);
        self.memory().entry(first).activate();
        self.memory().entry(second).activate();
        Some(Page(first))
    }

    /// Takes two pages in a row back.
    ///
    /// # Safety
    /// Both are the caller's.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT as [`free`](Self::free), for either.
    #[inline]
    pub unsafe fn free_pair(&self, first: Page, cache: &PageCache, at: &mut At) {
        for page in pair(first.0.0) {
            self.memory().entry(page).release(page);
        }
        if !cache.pairs.push(first.0.0) {
            self.free_pair_slowly(first, cache, at);
        }
    }

    #[cold]
    #[inline(never)]
    fn free_pair_slowly(&self, first: Page, cache: &PageCache, at: &mut At) {
        self.spill_pairs(cache, PageCache::PAIRS / 2, at);
        if !cache.pairs.push(first.0.0) {
            let mut frames = self.frames.lock(at);
            pair(first.0.0).into_iter().for_each(|page| frames.give(page));
        }
    }

    /// Takes a page back that others may still use by its physical address: then the last such use frees it.
    ///
    /// # Bugchecks
    /// PFN_LIST_CORRUPT for one that is mapped otherwise, too.
    #[inline]
    pub fn discard(&self, page: Page, cache: &PageCache, at: &mut At) {
        if !self.memory().entry(page.0).try_release() {
            // It is free at once if the last such use has ended meanwhile.
            self.with(at, |frames| frames.discard(page.0));
        } else if !cache.single.push(page.0.0) {
            self.free_slowly(page, cache, at);
        }
    }

    #[cold]
    #[inline(never)]
    fn free_slowly(&self, page: Page, cache: &PageCache, at: &mut At) {
        self.spill(cache, PageCache::BATCH, at);
        if !cache.single.push(page.0.0) {
            self.frames.lock(at).give(page.0);
        }
    }

    /// Changes the machine's lists, and tells of it where somebody waits for that.
    #[inline]
    pub fn with<R>(&self, at: &mut At, f: impl FnOnce(&mut Frames) -> R) -> R {
        let mut frames = self.frames.lock(at);
        let result = f(&mut frames);
        let notice = frames.take_notice();
        drop(frames);
        if notice {
            (self.machine.notice)(at);
        }
        result
    }

    /// Takes what `f` finds in the machine's lists; if that is nothing, once more with what the processors keep.
    pub fn take<R>(&self, at: &mut At, f: impl Fn(&mut Frames) -> Option<R>) -> Option<R> {
        self.with(at, |frames| {
            if let Some(taken) = f(frames) {
                return Some(taken);
            }
            let mut any = false;
            (self.machine.caches)(&mut |cache| {
                cache.take_all(|page| {
                    any = true;
                    frames.give(page);
                });
            });
            if any { f(frames) } else { None }
        })
    }

    /// `count` pages in a row below page `limit`, the first a multiple of 2^`align` pages; content unknown. They are freed by
    /// [`free_contiguous`](Self::free_contiguous), or one by one.
    #[doc(alias = "MmAllocateContiguousMemory")]
    #[inline(never)]
    pub fn allocate_contiguous(
        &self,
        count: u32,
        align: u8,
        limit: u32,
        at: &mut At,
    ) -> Result<Page, Exhausted> {
        if is_refused() {
            return Err(Exhausted);
        }
        self.take(at, |frames| frames.take_contiguous(count, align, limit)).map(Page).ok_or(Exhausted)
    }

    /// The same in a range of pages.
    pub fn allocate_contiguous_within(
        &self,
        count: u32,
        align: u8,
        within: PageRange,
        at: &mut At,
    ) -> Result<Page, Exhausted> {
        if is_refused() {
            return Err(Exhausted);
        }
        self.take(at, |frames| frames.take_contiguous_within(count, align, within)).map(Page).ok_or(Exhausted)
    }

    /// Takes pages back that were allocated together.
    ///
    /// # Safety
    /// All of them are the caller's.
    #[doc(alias = "MmFreeContiguousMemory")]
    #[inline(never)]
    pub unsafe fn free_contiguous(&self, first: Page, count: u32, at: &mut At) {
        self.with(at, |frames| frames.give_contiguous(first.0, count));
    }

    /// Promises `count` pages, for as many calls of [`keep_promise`](Self::keep_promise).
    pub fn promise(&self, count: u32, at: &mut At) -> Result<(), Exhausted> {
        if is_refused() {
            return Err(Exhausted);
        }
        self.try_promise(count, at)
    }

    /// One of several attempts at [`promise`](Self::promise), of which all are refused on purpose or none.
    pub(super) fn try_promise(&self, count: u32, at: &mut At) -> Result<(), Exhausted> {
        self.take(at, |frames| frames.promise(count).then_some(())).ok_or(Exhausted)
    }

    /// A page to read into: if need be, one of the store's reserve.
    pub fn take_to_read(&self, at: &mut At) -> Option<PageNumber> {
        if is_refused() {
            return None;
        }
        self.take(at, Frames::take_to_read)
    }

    /// Gives up `count` promises.
    pub fn unpromise(&self, count: u32, at: &mut At) {
        self.with(at, |frames| frames.unpromise(count));
    }

    /// A promised page, all zeroes.
    pub fn keep_promise(&self, at: &mut At) -> Page {
        let (page, is_zero) = self.with(at, Frames::keep_promise);
        if !is_zero {
            // SAFETY: just taken.
            unsafe { self.memory().zero(page) };
        }
        Page(page)
    }

    /// Gives back what the cache holds.
    pub fn drain(&self, cache: &PageCache, at: &mut At) {
        self.spill(cache, PageCache::MOST, at);
        self.spill_pairs(cache, PageCache::PAIRS, at);
    }

    /// How many pages are where, caches and pages in use left out.
    pub fn counts(&self, at: &mut At) -> Counts {
        self.frames.lock(at).counts()
    }

    fn refill(&self, cache: &PageCache, at: &mut At) -> Result<PageNumber, Exhausted> {
        let (pages, filled) = self
            .take(at, |frames| {
                let mut pages = [0; PageCache::BATCH];
                let filled = frames.take_for_cache(&mut pages);
                (filled > 0).then_some((pages, filled))
            })
            .ok_or(Exhausted)?;
        let (&first, rest) = pages[..filled].split_first().ok_or(Exhausted)?;
        for &page in rest {
            // The cache is empty, and takes more than a batch; if not, the lists have the page back.
            if !cache.single.push(page) {
                // SAFETY: `Frames` gave it for the cache.
                self.frames.lock(at).give(unsafe { PageNumber::new(page) });
            }
        }
        // SAFETY: as above.
        Ok(unsafe { PageNumber::new(first) })
    }

    /// The oldest go: what was freed last is in the processor's caches.
    fn spill(&self, cache: &PageCache, most: usize, at: &mut At) {
        self.with(at, |frames| {
            // SAFETY: the cache holds pages (I1).
            cache.single.take_oldest(most, |page| frames.give(unsafe { PageNumber::new(page) }));
        });
    }

    fn spill_pairs(&self, cache: &PageCache, most: usize, at: &mut At) {
        self.with(at, |frames| {
            cache.pairs.take_oldest(most, |first| pair(first).into_iter().for_each(|page| frames.give(page)));
        });
    }
}

impl Default for PageManager {
    /// Without caches to empty, or anybody who is told.
    fn default() -> Self {
        Self::new(Machine { caches: |_| {}, notice: |_| {} })
    }
}

/// No limit on the address, for [`PageManager::allocate_contiguous`].
pub const NO_LIMIT: u32 = ANYWHERE;
