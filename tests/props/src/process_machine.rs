//! A machine for address spaces in a test: an arena's pages, blocks of the host's allocator, and a processor's translations, which
//! it keeps until it is told to forget them.

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;

use kernel::mm::Exhausted;
use kernel::mm::pages::{Page, PageCache};
use kernel::mm::pfn::{Memory, PageNumber};
use kernel::mm::process::machine::{Commit, Machine};
use kernel::mm::ranges::PageRange;
use sync::irql::{AddressSpaceLock, Below, Ipi, Irql, PageCacheAccess, PfnLock, PoolAccess, SpaceLock};
use sync::shootdown::{Run, Space};

use crate::arena::{Arena, on_processor};

/// What a processor remembers of a page: which one it is, and whether it may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The page.
    pub page: PageNumber,
    /// May it be written?
    pub writable: bool,
}

/// One machine with one processor, which may have every space's translations.
pub struct Host {
    arena: Arena,
    cache: PageCache,
    commit: Commit,
    names: Cell<u64>,
    /// Allocations until one fails; none fails without.
    fail_in: Cell<Option<u32>>,
    blocks: Cell<usize>,
    flushes: Cell<usize>,
    turns: Cell<usize>,
    /// Pages in use by physical address, and how often.
    held: RefCell<BTreeMap<PageNumber, u32>>,
    /// By space and page.
    translations: RefCell<BTreeMap<(usize, u64), Translation>>,
}

// SAFETY: each test has a machine of its own, and one thread.
unsafe impl Sync for Host {}
// SAFETY: as above.
unsafe impl Send for Host {}

/// A pointer to it, for as long as the test runs.
#[derive(Clone, Copy)]
pub struct HostRef(NonNull<Host>);

// SAFETY: as a reference to a `Host`.
unsafe impl Sync for HostRef {}
// SAFETY: as above.
unsafe impl Send for HostRef {}

impl HostRef {
    /// With so many pages.
    pub fn new(pages: u32) -> Self {
        let range = PageRange { start: 1000, end: 1000 + pages };
        Self(NonNull::from(Box::leak(Box::new(Host {
            arena: Arena::new(&[range], true),
            cache: PageCache::new(),
            commit: Commit::new(u64::MAX),
            names: Cell::new(0),
            fail_in: Cell::new(None),
            blocks: Cell::new(0),
            flushes: Cell::new(0),
            turns: Cell::new(0),
            held: RefCell::new(BTreeMap::new()),
            translations: RefCell::new(BTreeMap::new()),
        }))))
    }

    fn host(&self) -> &Host {
        // SAFETY: it lives until `end`.
        unsafe { self.0.as_ref() }
    }

    /// Frees it; true if it was given back all that it gave.
    ///
    /// # Safety
    /// No copy is used any more.
    pub unsafe fn end(self) -> bool {
        // SAFETY: leaked by `new`; the caller's.
        let host = unsafe { Box::from_raw(self.0.as_ptr()) };
        let free = on_processor(|at| {
            host.arena.manager.drain(&host.cache, at);
            host.arena.manager.frames().lock(at).verify().unwrap().free
        });
        free == host.arena.total() && host.blocks.get() == 0 && host.commit.used() == 0
    }

    /// The allocation behind `count` more fails.
    pub fn fail_in(self, count: Option<u32>) {
        self.host().fail_in.set(count);
    }

    /// Is one still to fail?
    pub fn is_to_fail(self) -> bool {
        self.host().fail_in.get().is_some()
    }

    /// Flushes so far.
    pub fn flushes(self) -> usize {
        self.host().flushes.get()
    }

    /// Pages that can be had, those of the cache left out.
    pub fn free_pages(self) -> u32 {
        on_processor(|at| {
            self.host().arena.manager.drain(&self.host().cache, at);
            self.host().arena.manager.counts(at).free
        })
    }

    /// The page of that number, which somebody has.
    pub fn in_use(self, number: u64) -> PageNumber {
        on_processor(|at| self.host().arena.manager.frames().lock(at).in_use(number)).expect("in use")
    }

    /// How often it is held.
    pub fn holds_of(self, page: PageNumber) -> u32 {
        self.host().held.borrow().get(&page).copied().unwrap_or(0)
    }

    fn is_nobodys(self, page: PageNumber) {
        assert_eq!(self.holds_of(page), 0, "somebody holds it");
    }

    /// The processor's translation.
    pub fn cached(self, space: &Space, page: u64) -> Option<Translation> {
        self.host().translations.borrow().get(&(key(space), page)).copied()
    }

    /// It walked the tables.
    pub fn cache(self, space: &Space, page: u64, translation: Translation) {
        self.host().translations.borrow_mut().insert((key(space), page), translation);
    }

    /// It loads other tables.
    pub fn leave(self, space: &Space) {
        self.host().translations.borrow_mut().retain(|&(owner, _), _| owner != key(space));
    }

    /// The first word of a page.
    pub fn word(self, page: PageNumber) -> *mut u64 {
        self.memory().address(page).cast()
    }

    fn may(self) -> Result<(), Exhausted> {
        match self.host().fail_in.get() {
            Some(0) => {
                self.host().fail_in.set(None);
                Err(Exhausted)
            }
            left => {
                self.host().fail_in.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }

    fn translations_of(self, page: PageNumber) -> u32 {
        self.host().translations.borrow().values().filter(|translation| translation.page == page).count()
            as u32
    }
}

fn key(space: &Space) -> usize {
    core::ptr::from_ref(space).addr()
}

// SAFETY: pages are the arena's, blocks the host's; the one processor forgets what it is told to.
unsafe impl Machine for HostRef {
    fn memory(self) -> Memory {
        self.host().arena.manager.memory()
    }

    fn commit(&self) -> &Commit {
        &self.host().commit
    }

    fn new_name(self) -> u64 {
        self.host().names.set(self.host().names.get() + 1);
        self.host().names.get()
    }

    fn enter_kernel_half<L: Below<SpaceLock>>(self, root: PageNumber, _: &mut Irql<L>) {
        // SAFETY: a new root; its upper half is one that nobody may touch.
        unsafe { self.memory().address(root).add(2048).write_bytes(0xEE, 2048) };
    }

    fn allocate<L: Below<PageCacheAccess>>(self, zeroed: bool, at: &mut Irql<L>) -> Result<Page, Exhausted> {
        self.may()?;
        let mut at = at.raise::<PageCacheAccess>();
        if zeroed {
            let page = self.host().arena.manager.allocate_zeroed(&self.host().cache, &mut at)?;
            self.is_nobodys(page.number());
            return Ok(page);
        }
        let page = self.host().arena.manager.allocate(&self.host().cache, &mut at)?;
        self.is_nobodys(page.number());
        // SAFETY: just allocated; what was there before must be seen by nobody.
        unsafe { self.memory().address(page.number()).write_bytes(0xDB, 4096) };
        Ok(page)
    }

    fn allocate_cleared<L: Below<PageCacheAccess>>(self, at: &mut Irql<L>) -> Option<Page> {
        // Now and then there is one.
        self.host().turns.set(self.host().turns.get() + 1);
        if self.host().turns.get().is_multiple_of(2) { self.allocate(true, at).ok() } else { None }
    }

    fn free<L: Below<PageCacheAccess>>(self, page: Page, at: &mut Irql<L>) {
        assert_eq!(self.translations_of(page.number()), 0, "freed with a translation left");
        let mut at = at.raise::<PageCacheAccess>();
        self.host().arena.manager.discard(page, &self.host().cache, &mut at);
    }

    fn share<L: Below<PfnLock>>(self, page: PageNumber, at: &mut Irql<L>) {
        assert!(!self.host().arena.manager.frames().lock(at).share(page), "it was in use");
    }

    fn unshare<L: Below<PfnLock>>(self, page: PageNumber, at: &mut Irql<L>) {
        let (_, shares) = self.memory().entry(page).counts();
        // One is the section's, one the entry's that is gone.
        assert!(self.translations_of(page) <= shares - 2, "unmapped with a translation left");
        self.host().arena.manager.frames().lock(at).unshare(page, false);
    }

    fn hold(self, page: PageNumber, _: bool, at: &mut Irql<AddressSpaceLock>) {
        *self.host().held.borrow_mut().entry(page).or_insert(0) += 1;
        self.host().arena.manager.frames().lock(at).reference(page);
    }

    fn let_go<L: Below<PageCacheAccess>>(self, page: PageNumber, at: &mut Irql<L>) {
        let mut held = self.host().held.borrow_mut();
        match held.get_mut(&page) {
            Some(1) => drop(held.remove(&page)),
            Some(more) => *more -= 1,
            None => panic!("let go, and not held"),
        }
        let mut at = at.raise::<PageCacheAccess>();
        self.host().arena.manager.with(&mut at, |frames| frames.dereference(page));
    }

    fn flush<L: Below<Ipi>>(self, space: &Space, runs: Option<&[Run]>, _: &mut Irql<L>) {
        self.host().flushes.set(self.host().flushes.get() + 1);
        let ended = |page: u64| {
            let within =
                |run: &Run| (run.start..run.start + u64::from(run.pages) * 4096).contains(&(page * 4096));
            runs.is_none_or(|runs| runs.iter().any(within))
        };
        self.host().translations.borrow_mut().retain(|&(owner, page), _| owner != key(space) || !ended(page));
    }

    fn block<T, L: Below<PoolAccess>>(self, _: &mut Irql<L>) -> Result<NonNull<T>, Exhausted> {
        self.may()?;
        self.host().blocks.set(self.host().blocks.get() + 1);
        // SAFETY: not of no bytes.
        NonNull::new(unsafe { std::alloc::alloc(Layout::new::<T>()) }.cast()).ok_or(Exhausted)
    }

    unsafe fn free_block<T, L: Below<PoolAccess>>(self, block: NonNull<T>, _: &mut Irql<L>) {
        self.host().blocks.set(self.host().blocks.get() - 1);
        // SAFETY: from `block`.
        unsafe { std::alloc::dealloc(block.as_ptr().cast(), Layout::new::<T>()) };
    }
}
