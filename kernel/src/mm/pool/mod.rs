//! Nonpaged pool: tagged memory of any size, at or below DISPATCH.
//!
//! ```text
//!  allocate ─► this processor's list of the size class ─► the class's slabs (PoolLock) ─► a page
//!          └─► above a page: pages in a row, from the page manager
//! ```
//!
//! Owns:       [`Pool`] and its parts: [`class`] (sizes), [`block`] (what lies around a block), [`local`] (a processor's lists and
//!             counters), [`slabs`], [`tags`], [`sites`] (checked build: who holds what). `here` is this machine's pool, `heap` the
//!             same as Rust's allocator, `owned` a box that fails instead of aborting. [`paged`] is paged pool's bookkeeping.
//! IRQL:       at or below DISPATCH. Memory is reached through the HHDM: writable, never executable (NonPagedPoolNx).
//! Locks:      the rank `PoolAccess` is the right to this processor's lists, as `PageCacheAccess` is for pages; `PoolLock`, one for
//!             each class, above it.
//! Invariants: I1 a block is in one place: in use, in one processor's list or quarantine, or in its slab's list.
//!             I2 a block's header says which of these it is, bound to its address: what was not allocated can't be freed, nor
//!                anything twice.
//!             I3 a slab's page is Active with use `PoolSlab`; a large block's first page has use `PoolLarge`, its size and tag.
//! Misuse:     found in every build: double free, wrong tag, damaged header. Checked build, which is a pool with `SITES` above
//!             zero: also overrun (on free), writes after free (before reuse, which is delayed), leaks by tag and call site; and `special`
//!             pool, where a chosen tag's blocks lie against guard pages.
//! Not as NT:  one pool for all nodes; no quota; blocks above a page are multiples of it in physical memory, too.
//! Tests:      tests/props/tests/mm_pool.rs; selftest `memory_pool::*`; crash `pool_*`.
//! Sources:    WDK, `ExAllocatePool2`, `ExFreePoolWithTag`, "Bug Check 0x19", "Bug Check 0xC2".

pub mod block;
pub mod class;
#[cfg(target_os = "none")]
mod heap;
#[cfg(target_os = "none")]
mod here;
pub mod local;
#[cfg(target_os = "none")]
pub mod nt;
#[cfg(target_os = "none")]
mod owned;
pub mod paged;
pub mod sites;
pub mod slabs;
#[cfg(target_os = "none")]
pub mod special;
pub mod tags;

use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

use sync::SpinLock;
use sync::irql::{Irql, PageCacheAccess, PoolAccess, PoolLock};

use super::Exhausted;
use super::local::Local;
use super::pages::{NO_LIMIT, Page, PageManager};
use super::pfn::{PAGE_SIZE, PageNumber, State, Use};
use block::{Block, Caller};
use class::{CLASSES, Class};
use sites::{Live, Sites};
use slabs::Slabs;
pub use tags::Tag;
use tags::TagTable;

#[cfg(target_os = "none")]
pub use here::{allocate, allocate_zeroed, drain, drain_everything, free, leaks, mark, statistics};
#[cfg(target_os = "none")]
pub use owned::Owned;

/// The right to this processor's lists.
pub type At = Irql<PoolAccess>;

/// What a tag has, summed over processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks ever allocated.
    pub allocations: u64,
    /// Blocks ever freed.
    pub frees: u64,
    /// Bytes in use, as rounded up by the pool.
    pub bytes: u64,
}

/// A pool over a page manager. `SITES`: places in the code that it can tell apart in its account of who holds what; zero is a
/// pool without the checked build's checks.
pub struct Pool<const SITES: usize> {
    pages: &'static PageManager,
    slabs: [SpinLock<Slabs, PoolLock>; CLASSES],
    tags: TagTable,
    sites: SpinLock<Sites<SITES>, PoolLock>,
}

impl<const SITES: usize> Pool<SITES> {
    /// With the checked build's checks?
    pub const CHECKED: bool = SITES > 0;

    /// An empty one.
    pub const fn new(pages: &'static PageManager) -> Self {
        Self {
            pages,
            slabs: [const { SpinLock::new(Slabs::new()) }; CLASSES],
            tags: TagTable::new(),
            sites: SpinLock::new(Sites::new()),
        }
    }

    /// `size` bytes, aligned to 16, to a page if `size` is at least a page; content unknown. Zero bytes are a block as well.
    ///
    /// # Bugchecks
    /// BAD_POOL_HEADER (3) if the block that would be handed out was written to since it was freed: checked build.
    #[inline]
    pub fn allocate(
        &self,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) -> Result<NonNull<[u8]>, Exhausted> {
        // All that is needed is at hand, or the rest is a tail call: nothing is saved on the stack for it.
        if let Some(class) = Class::of(size, Self::CHECKED) {
            if let Some(index) = self.tags.known(tag)
                && let Some(block) = local.pool.pop(class, |block| self.next(block))
            {
                return Ok(self.hand_out(block, class, index, tag, size, site, local, at));
            }
            return self.allocate_slowly(class, tag, size, site, local, at);
        }
        self.allocate_large(tag, size, site, local, at)
    }

    /// The first block of a tag, or the one that a list has run out for.
    #[cold]
    #[inline(never)]
    fn allocate_slowly(
        &self,
        class: Class,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) -> Result<NonNull<[u8]>, Exhausted> {
        let index = self.tags.index(tag);
        let block = match local.pool.pop(class, |block| self.next(block)) {
            Some(block) => block,
            None => self.refill(class, local, at)?,
        };
        Ok(self.hand_out(block, class, index, tag, size, site, local, at))
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one place in two functions")]
    fn hand_out(
        &self,
        block: usize,
        class: Class,
        index: u16,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) -> NonNull<[u8]> {
        let block = self.block(block);
        if Self::CHECKED {
            block.check_untouched(class);
        }
        block.allocated(tag, class, index);
        local.pool.count_allocation(index, class.bytes(Self::CHECKED));
        if Self::CHECKED {
            let number = self.sites.lock(at).add(tag, site, size);
            block.note(site, size, number);
            block.fill(size, class);
        }
        NonNull::slice_from_raw_parts(block.payload(), size)
    }

    /// Takes a block back.
    ///
    /// # Bugchecks
    /// BAD_POOL_CALLER for a block that is free already (7), another tag's (0xA), or no block (0x42); BAD_POOL_HEADER for one whose
    /// header was overwritten (0x20) or, in the checked build, that was written behind its end (0x21).
    ///
    /// # Safety
    /// `payload` came from [`allocate`](Self::allocate) of this pool and nobody uses the block any more. What is found of calls
    /// that break this is a bugcheck; not everything is found.
    #[inline]
    pub unsafe fn free(
        &self,
        payload: NonNull<u8>,
        tag: Tag,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) {
        if payload.addr().get().is_multiple_of(PAGE_SIZE) {
            return self.free_large(payload, tag, local, at);
        }
        let block = self.block(payload.addr().get());
        let caller = Caller { tag, site: Self::CHECKED.then_some(site) };
        let (class, index) = block.check_allocated(&caller);
        local.pool.count_free(index, class.bytes(Self::CHECKED));
        if !Self::CHECKED {
            block.freed();
            return self.give(block.address(), class, local, at);
        }
        let (number, size) = block.check_red_zone(class);
        self.sites.lock(at).remove(number, size);
        block.freed();
        block.poison(site, class);
        // Delayed reuse: the block that was freed longest ago comes out.
        if let Some(old) = local.pool.quarantine(block.address()) {
            let class = self.block(old).class();
            self.give(old, class, local, at);
        }
    }

    /// What `tag` has, by the counters of these processors.
    pub fn statistics<'a>(&self, tag: Tag, locals: impl Iterator<Item = &'a Local>) -> Statistics {
        let index = self.tags.index(tag);
        locals.fold(Statistics::default(), |sum, local| {
            let one = local.pool.counted(index);
            Statistics {
                allocations: sum.allocations.wrapping_add(one.allocations),
                frees: sum.frees.wrapping_add(one.frees),
                bytes: sum.bytes.wrapping_add(one.bytes),
            }
        })
    }

    /// Remembers what is in use: [`leaks`](Self::leaks) tells what came since. Checked build.
    pub fn mark(&self, at: &mut At) {
        self.sites.lock(at).mark();
    }

    /// Every tag and call site that has more blocks than at the last [`mark`](Self::mark). Called at DISPATCH, under a lock.
    pub fn leaks(&self, at: &mut At, mut tell: impl FnMut(&Live)) {
        self.sites.lock(at).leaks(&mut tell);
    }

    /// Gives this processor's lists and quarantine back to the slabs, and empty slabs to the page manager.
    pub fn drain(&self, local: &Local, at: &mut At) {
        while let Some(old) = local.pool.take_quarantined() {
            let class = self.block(old).class();
            self.give(old, class, local, at);
        }
        for class in Class::all() {
            self.spill(class, u16::MAX, local, at);
        }
    }

    /// Counts a block that comes from elsewhere and takes `bytes`; returns its site's number.
    #[cfg(target_os = "none")]
    fn account(
        &self,
        tag: Tag,
        site: &'static Location<'static>,
        (size, bytes): (usize, usize),
        local: &Local,
        at: &mut At,
    ) -> u16 {
        local.pool.count_allocation(self.tags.index(tag), bytes);
        self.sites.lock(at).add(tag, site, size)
    }

    /// The same for its end.
    #[cfg(target_os = "none")]
    fn unaccount(&self, tag: Tag, number: u16, (size, bytes): (usize, usize), local: &Local, at: &mut At) {
        local.pool.count_free(self.tags.index(tag), bytes);
        self.sites.lock(at).remove(number, size);
    }

    /// Gives this processor's cached pages back.
    pub fn drain_pages(&self, local: &Local, at: &mut At) {
        self.pages.drain(&local.pages, &mut at.raise::<PageCacheAccess>());
    }

    /// Pages that slabs have.
    pub fn slab_pages(&self, at: &mut At) -> u32 {
        self.slabs.iter().map(|slabs| slabs.lock(at).pages()).sum()
    }

    fn block(&self, payload: usize) -> Block<SITES> {
        Block::at(self.pages.memory().pointer(payload))
    }

    fn next(&self, payload: usize) -> usize {
        self.block(payload).next()
    }

    #[inline]
    fn give(&self, payload: usize, class: Class, local: &Local, at: &mut At) {
        if local.pool.push(class, payload, |next| self.block(payload).set_next(next)) {
            self.spill(class, class.most_kept() / 2, local, at);
        }
    }

    /// Fills this processor's list from the slabs, and takes one block of it.
    #[cold]
    #[inline(never)]
    fn refill(&self, class: Class, local: &Local, at: &mut At) -> Result<usize, Exhausted> {
        let memory = self.pages.memory();
        let mut slabs = self.slabs[class.index()].lock(at);
        for nth in 0..(class.most_kept() / 2).max(1) {
            let (slabs, at) = slabs.parts();
            let taken = slabs.take::<SITES>(memory);
            let taken = taken.or_else(|| {
                let at = &mut at.raise::<PageCacheAccess>();
                let page = match nth {
                    0 => self.pages.allocate(&local.pages, at),
                    _ => self.pages.allocate_spare(&local.pages, at),
                };
                let page = page.ok()?;
                slabs.add::<SITES>(memory, page, class);
                slabs.take::<SITES>(memory)
            });
            let Some(payload) = taken else { break };
            local.pool.push(class, payload, |next| self.block(payload).set_next(next));
        }
        drop(slabs);
        local.pool.pop(class, |block| self.next(block)).ok_or(Exhausted)
    }

    /// Gives up to `count` blocks of this processor's list back to their slabs.
    #[cold]
    #[inline(never)]
    fn spill(&self, class: Class, count: u16, local: &Local, at: &mut At) {
        let memory = self.pages.memory();
        let mut slabs = self.slabs[class.index()].lock(at);
        for _ in 0..count {
            let Some(payload) = local.pool.pop(class, |block| self.next(block)) else { break };
            let (slabs, at) = slabs.parts();
            if let Some(empty) = slabs.give::<SITES>(memory, payload) {
                self.pages.free(empty, &local.pages, &mut at.raise::<PageCacheAccess>());
            }
        }
    }

    #[inline(never)]
    fn allocate_large(
        &self,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) -> Result<NonNull<[u8]>, Exhausted> {
        if size <= 2 * PAGE_SIZE
            && let Some(index) = self.tags.known(tag)
        {
            if size <= PAGE_SIZE {
                if let Some(page) = self.pages.allocate_cached(&local.pages) {
                    return Ok(self.hand_out_pages(page, 1, index, tag, size, site, local, at));
                }
            } else if let Some(first) = self.pages.allocate_cached_pair(&local.pages) {
                return Ok(self.hand_out_pages(first, 2, index, tag, size, site, local, at));
            }
        }
        self.allocate_large_slowly(tag, size, site, local, at)
    }

    #[inline(never)]
    fn allocate_large_slowly(
        &self,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) -> Result<NonNull<[u8]>, Exhausted> {
        let count = u32::try_from(size.div_ceil(PAGE_SIZE)).map_err(|_| Exhausted)?;
        let page = {
            let at = &mut at.raise::<PageCacheAccess>();
            match count {
                1 => self.pages.allocate(&local.pages, at)?,
                2 => self.pages.allocate_pair(&local.pages, at)?,
                _ => self.pages.allocate_contiguous(count, 0, NO_LIMIT, at)?,
            }
        };
        let index = self.tags.index(tag);
        Ok(self.hand_out_pages(page, count, index, tag, size, site, local, at))
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "one place in two functions")]
    fn hand_out_pages(
        &self,
        page: Page,
        count: u32,
        index: u16,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        local: &Local,
        at: &mut At,
    ) -> NonNull<[u8]> {
        let memory = self.pages.memory();
        let page = page.into_number();
        let entry = memory.entry(page);
        entry.set_use(Use::PoolLarge);
        entry.tag.store(tag.value(), Relaxed);
        entry.owner.store(size as u64, Relaxed);
        local.pool.count_allocation(index, count as usize * PAGE_SIZE);
        let start = memory.address(page);
        if Self::CHECKED {
            let number = self.sites.lock(at).add(tag, site, size);
            entry.next.store(number.into(), Relaxed);
            // SAFETY: the pages just taken.
            unsafe { block::fill_large(start, size, count as usize * PAGE_SIZE) };
        }
        // SAFETY: a mapped page is not at address zero.
        NonNull::slice_from_raw_parts(unsafe { NonNull::new_unchecked(start) }, size)
    }

    #[inline(never)]
    fn free_large(&self, payload: NonNull<u8>, tag: Tag, local: &Local, at: &mut At) {
        let memory = self.pages.memory();
        let address = payload.addr().get();
        // SAFETY: a page of the pool, by `free`'s contract.
        let page = unsafe { PageNumber::new(memory.number_of(address)) };
        let entry = memory.entry(page);
        if !entry.is_used_as(Use::PoolLarge) {
            block::not_large(address, entry.state() == Some(State::Free), entry.tag.load(Relaxed));
        }
        let owner = entry.tag.load(Relaxed);
        if owner != tag.value() {
            block::wrong_tag(address, owner, tag);
        }
        let size = entry.owner.load(Relaxed) as usize;
        let count = if size <= PAGE_SIZE { 1 } else { size.div_ceil(PAGE_SIZE) };
        local.pool.count_free(self.tags.index(tag), count * PAGE_SIZE);
        if Self::CHECKED {
            // SAFETY: the block's pages, which its owner gave up.
            unsafe { block::check_large(memory.address(page), size, count * PAGE_SIZE, tag) };
            self.sites.lock(at).remove(entry.next.load(Relaxed) as u16, size);
        }
        entry.set_use(Use::Page);
        let at = &mut at.raise::<PageCacheAccess>();
        // SAFETY: taken by `allocate_large`, all `count` of them, and given up by the block's owner.
        unsafe {
            let page = Page::from_number(page);
            match count {
                1 => self.pages.free(page, &local.pages, at),
                2 => self.pages.free_pair(page, &local.pages, at),
                _ => self.pages.free_contiguous(page, count as u32, at),
            }
        }
    }
}
