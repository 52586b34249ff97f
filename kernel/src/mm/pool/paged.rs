//! Paged pool's bookkeeping: which of its addresses are whose. The addresses have pages only where somebody touched them; those are
//! `mm::paged`'s.
//!
//! ```text
//!  nonpaged: an entry a page (32 bytes, `Pfn`)          paged: the pages themselves
//!  slab   use, class, a bit for each free block   ────► [header | payload | red zone] [header | ...
//!  large  use, size, tag                          ────► payload ...
//! ```
//!
//! The pages are touched at APC, holding nothing; what is known under the lock lies in nonpaged memory. So a free block has no link in
//! it, but a bit in its slab's entry, and a slab has at most 64 blocks.
//!
//! IRQL:       APC. The lock is held at DISPATCH for some tens of instructions, or for what a new chunk's entries take.
//! Invariants: I1 a page's entry is Active exactly while its address is handed out, and its use is other than `Page` exactly while
//!                it may be touched: `is_allocated` may be asked at any time, without the lock.
//!             I2 bit n of a slab's `owner` is set exactly if block n is free and not in the quarantine; a slab is on its class's list
//!                exactly if some bit is set.
//!             I3 a page that may be touched was promised (`Backing::promise`), so that a fault finds one.
//!             I4 some block of a slab on a list is not free: one whose last block comes back goes.
//! Misuse:     as in nonpaged pool (`block`), and in every build two frees at once of one block, by its bit.
//! Not as NT:  one lock, no lists of each processor's own: paged pool is not for what is allocated often. A block of more than a page is
//!             zero, as its pages are made when they are touched; the checked build does not fill it.
//! Tests:      tests/props/tests/mm_paged.rs; selftest `memory_paged::*`; crash `paged_*`.

use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use sync::SpinLock;
use sync::irql::{Apc, Irql, PoolLock};

use super::Statistics;
use super::block::{self, Block, Caller};
use super::class::{CLASSES, Class};
use super::sites::{Live, Sites};
use super::tags::{TAGS, Tag, TagTable};
use crate::mm::Exhausted;
use crate::mm::frames::{CHUNK, Frames};
use crate::mm::lists::List;
use crate::mm::pages::NO_LIMIT;
use crate::mm::pfn::{Memory, PAGE_SIZE, PageNumber, State, Use};
use crate::mm::ranges::{PageRange, Ranges};

/// Freed blocks that are kept from reuse in the checked build.
const QUARANTINE: usize = 64;
/// The smallest class: 64 bytes with what lies around a block, so that a slab's blocks have a bit each.
const SMALLEST: u16 = 2;
const _: () = assert!(Class::new(SMALLEST).unwrap().in_a_page() == 64);

/// What stands behind the addresses. Page numbers count from the first of the pool.
pub trait Backing {
    /// From now on the entries of `chunk` can be written, and a fault on its pages will need no memory but the page.
    fn grow(&self, chunk: u32, at: &mut Irql<PoolLock>) -> Result<(), Exhausted>;
    /// `count` pages will be there when they are touched.
    fn promise(&self, count: u32, at: &mut Irql<Apc>) -> Result<(), Exhausted>;
    /// They won't be touched.
    fn unpromise(&self, count: u32, at: &mut Irql<Apc>);
    /// The pages from `first` on are nobody's any more: what was made is given back, what was promised and not made is not needed.
    fn end(&self, first: u32, count: u32, at: &mut Irql<Apc>);
}

struct Control<const SITES: usize> {
    /// The addresses.
    pages: Frames,
    partial: [List; CLASSES],
    counters: [Statistics; TAGS],
    sites: Sites<SITES>,
    quarantine: [usize; QUARANTINE],
    oldest: usize,
    most_chunks: u32,
}

/// See the module. `SITES` as for the nonpaged pool.
pub struct PagedPool<const SITES: usize, B> {
    backing: B,
    memory: Memory,
    tags: TagTable,
    /// Chunks that have entries. Written under the lock.
    grown: AtomicU32,
    control: SpinLock<Control<SITES>, PoolLock>,
}

impl<const SITES: usize, B: Backing> PagedPool<SITES, B> {
    const CHECKED: bool = SITES > 0;

    /// An empty one, with no addresses yet.
    ///
    /// # Safety
    /// `memory` says where the pool's pages are reached (once they are touched) and their entries (once `backing` made them).
    pub const unsafe fn new(backing: B, memory: Memory) -> Self {
        Self {
            backing,
            memory,
            tags: TagTable::new(),
            grown: AtomicU32::new(0),
            control: SpinLock::new(Control {
                pages: Frames::new(),
                partial: [const { List::new() }; CLASSES],
                counters: [Statistics { allocations: 0, frees: 0, bytes: 0 }; TAGS],
                sites: Sites::new(),
                quarantine: [0; QUARANTINE],
                oldest: 0,
                most_chunks: 0,
            }),
        }
    }

    /// It may grow to as many chunks as `opened`, which is zero, has bits for.
    pub fn start(&self, opened: &'static mut [u64], at: &mut Irql<Apc>) {
        let mut control = self.control.lock(at);
        control.most_chunks = opened.len() as u32 * 64;
        // SAFETY: no pages; those that are added have entries by then.
        unsafe { control.pages.start(self.memory, Ranges::new(), opened) };
    }

    /// `size` bytes, aligned as nonpaged pool's; content unknown, but for blocks of more than a page, which are zero.
    pub fn allocate(
        &self,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        at: &mut Irql<Apc>,
    ) -> Result<NonNull<[u8]>, Exhausted> {
        let start = match Class::of(size, Self::CHECKED) {
            Some(class) => {
                let class =
                    Class::new(SMALLEST).filter(|least| least.total() > class.total()).unwrap_or(class);
                self.allocate_small(class, tag, size, site, at)?
            }
            None => self.allocate_large(tag, size, site, at)?,
        };
        Ok(NonNull::slice_from_raw_parts(start, size))
    }

    fn allocate_small(
        &self,
        class: Class,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        at: &mut Irql<Apc>,
    ) -> Result<NonNull<u8>, Exhausted> {
        let index = self.tags.index(tag);
        let mut fresh = None;
        let (payload, number) = loop {
            let mut control = self.control.lock(at);
            if let Some(page) = fresh {
                // Its first block is ours: were it left to whoever comes first, all could stay free, and the slab for good (I4).
                self.memory.entry(page).owner.store(full(class), Ordering::Relaxed);
                control.partial[class.index()].push_front(self.memory, page);
            }
            if let Some(payload) = control.take(class, self.memory, block::prefix(Self::CHECKED)) {
                control.count(index, class.bytes(Self::CHECKED));
                let number = if Self::CHECKED { control.sites.add(tag, site, size) } else { 0 };
                break (payload, number);
            }
            drop(control);
            fresh = Some(self.new_slab(class, at)?);
        };
        let block = Block::<SITES>::at(self.memory.pointer(payload));
        if Self::CHECKED {
            block.check_untouched(class);
        }
        block.allocated(tag, class, index);
        if Self::CHECKED {
            block.note(site, size, number);
            block.fill(size, class);
        }
        Ok(block.payload())
    }

    /// A page cut into blocks, on no list yet. Its page is made here, by the first touch.
    fn new_slab(&self, class: Class, at: &mut Irql<Apc>) -> Result<PageNumber, Exhausted> {
        let page = self.take_addresses(1, Use::PoolSlab, at)?;
        let entry = self.memory.entry(page);
        entry.tag.store(class.index() as u32, Ordering::Relaxed);
        entry.owner.store(0, Ordering::Relaxed);
        let first = self.memory.address(page).addr() + block::prefix(Self::CHECKED);
        for at in 0..class.in_a_page() {
            Block::<SITES>::at(self.memory.pointer(first + at * class.total())).format(class);
        }
        Ok(page)
    }

    /// `count` pages of addresses, promised.
    fn take_addresses(&self, count: u32, usage: Use, at: &mut Irql<Apc>) -> Result<PageNumber, Exhausted> {
        self.backing.promise(count, at)?;
        let mut control = self.control.lock(at);
        let (control_, inner) = control.parts();
        let found = loop {
            if let Some(first) = control_.pages.take_contiguous(count, 0, NO_LIMIT) {
                break Ok(first);
            }
            let chunk = self.grown.load(Ordering::Relaxed);
            if chunk >= control_.most_chunks || self.backing.grow(chunk, inner).is_err() {
                break Err(Exhausted);
            }
            let range = PageRange { start: chunk * CHUNK, end: (chunk + 1) * CHUNK };
            // SAFETY: new addresses, whose entries were made just now.
            unsafe { control_.pages.add(range) };
            // Release: whoever sees the chunk sees its entries.
            self.grown.store(chunk + 1, Ordering::Release);
        };
        if let Ok(first) = found {
            self.each(first, count).for_each(|page| self.memory.entry(page).set_use(Use::PoolBody));
            self.memory.entry(first).set_use(usage);
        }
        drop(control);
        if found.is_err() {
            self.backing.unpromise(count, at);
        }
        found
    }

    fn each(&self, first: PageNumber, count: u32) -> impl Iterator<Item = PageNumber> + use<SITES, B> {
        // SAFETY: pages of the pool that were handed out together, so they have entries.
        (first.number()..first.number() + count).map(|number| unsafe { PageNumber::new(number) })
    }

    fn allocate_large(
        &self,
        tag: Tag,
        size: usize,
        site: &'static Location<'static>,
        at: &mut Irql<Apc>,
    ) -> Result<NonNull<u8>, Exhausted> {
        let count = u32::try_from(size.div_ceil(PAGE_SIZE)).map_err(|_| Exhausted)?;
        let index = self.tags.index(tag);
        let page = self.take_addresses(count, Use::PoolLarge, at)?;
        let entry = self.memory.entry(page);
        entry.tag.store(tag.value(), Ordering::Relaxed);
        entry.owner.store(size as u64, Ordering::Relaxed);
        let bytes = count as usize * PAGE_SIZE;
        let mut control = self.control.lock(at);
        control.count(index, bytes);
        if Self::CHECKED {
            let number = control.sites.add(tag, site, size);
            entry.next.store(number.into(), Ordering::Relaxed);
        }
        drop(control);
        let start = self.memory.address(page);
        if Self::CHECKED {
            // SAFETY: the pages just taken; the red zone alone, so that the others are made when they are touched.
            unsafe { block::fill_large(start.wrapping_add(size), 0, bytes - size) };
        }
        // SAFETY: in the kernel half, so not null.
        Ok(unsafe { NonNull::new_unchecked(start) })
    }

    /// Takes a block back.
    ///
    /// # Bugchecks
    /// As for nonpaged pool.
    ///
    /// # Safety
    /// As for nonpaged pool.
    pub unsafe fn free(
        &self,
        payload: NonNull<u8>,
        tag: Tag,
        site: &'static Location<'static>,
        at: &mut Irql<Apc>,
    ) {
        let address = payload.addr().get();
        let Some(page) = self.page_of(address) else { block::not_large(address, false, tag.value()) };
        let entry = self.memory.entry(page);
        if address.is_multiple_of(PAGE_SIZE) {
            return self.free_large(page, payload, tag, at);
        }
        let class = Class::new(entry.tag.load(Ordering::Relaxed) as u16);
        let Some(class) = class.filter(|_| entry.is_used_as(Use::PoolSlab)) else {
            block::not_large(address, entry.state() == Some(State::Free), tag.value())
        };
        let inside = (address % PAGE_SIZE).wrapping_sub(block::prefix(Self::CHECKED));
        let number = inside / class.total();
        if !inside.is_multiple_of(class.total()) || number >= class.in_a_page() {
            block::not_large(address, false, tag.value());
        }
        let block = Block::<SITES>::at(self.memory.pointer(address));
        let caller = Caller { tag, site: Self::CHECKED.then_some(site) };
        let (_, index) = block.check_allocated(&caller);
        let account = Self::CHECKED.then(|| block.check_red_zone(class));
        block.freed();
        if Self::CHECKED {
            block.poison(site, class);
        }
        let mut control = self.control.lock(at);
        if entry.owner.load(Ordering::Relaxed) >> number & 1 != 0 {
            block::not_large(address, true, tag.value());
        }
        control.uncount(index, class.bytes(Self::CHECKED));
        let mut given = address;
        if let Some((number, size)) = account {
            control.sites.remove(number, size);
            given = control.quarantine(address);
        }
        let empty = self.give(given, &mut control);
        drop(control);
        if let Some(page) = empty {
            self.end(page, 1, at);
        }
    }

    /// A block goes back to its slab; says which page is to be ended, if that was its last one. Zero is no block.
    fn give(&self, payload: usize, control: &mut Control<SITES>) -> Option<PageNumber> {
        let page = self.page_of(payload)?;
        let entry = self.memory.entry(page);
        let class = Class::new(entry.tag.load(Ordering::Relaxed) as u16)?;
        let number = (payload % PAGE_SIZE - block::prefix(Self::CHECKED)) / class.total();
        let before = entry.owner.load(Ordering::Relaxed);
        let after = before | 1 << number;
        entry.owner.store(after, Ordering::Relaxed);
        let list = &mut control.partial[class.index()];
        match (before, after == full(class)) {
            // A slab of one block: it was not on the list.
            (0, true) => {}
            (0, false) => {
                list.push_front(self.memory, page);
                return None;
            }
            (_, true) => list.remove(self.memory, page),
            (_, false) => return None,
        }
        // Not to be touched from here on (I1).
        entry.set_use(Use::Page);
        Some(page)
    }

    fn free_large(&self, page: PageNumber, payload: NonNull<u8>, tag: Tag, at: &mut Irql<Apc>) {
        let entry = self.memory.entry(page);
        let address = payload.addr().get();
        if !entry.is_used_as(Use::PoolLarge) {
            block::not_large(address, entry.state() == Some(State::Free), entry.tag.load(Ordering::Relaxed));
        }
        let owner = entry.tag.load(Ordering::Relaxed);
        if owner != tag.value() {
            block::wrong_tag(address, owner, tag);
        }
        let size = entry.owner.load(Ordering::Relaxed) as usize;
        let count = size.div_ceil(PAGE_SIZE).max(1);
        if Self::CHECKED {
            let behind = payload.as_ptr().wrapping_add(size);
            // SAFETY: the block's pages, which its owner gave up.
            unsafe { block::check_large(behind, 0, count * PAGE_SIZE - size, tag) };
        }
        let index = self.tags.index(tag);
        let mut control = self.control.lock(at);
        if !entry.is_used_as(Use::PoolLarge) {
            block::not_large(address, true, tag.value());
        }
        control.uncount(index, count * PAGE_SIZE);
        if Self::CHECKED {
            control.sites.remove(entry.next.load(Ordering::Relaxed) as u16, size);
        }
        // Not to be touched from here on (I1).
        self.each(page, count as u32).for_each(|page| self.memory.entry(page).set_use(Use::Page));
        drop(control);
        self.end(page, count as u32, at);
    }

    /// Pages whose use is `Page` again lose what was made of them, and then their addresses.
    fn end(&self, first: PageNumber, count: u32, at: &mut Irql<Apc>) {
        self.backing.end(first.number(), count, at);
        self.control.lock(at).pages.give_contiguous(first, count);
    }

    /// May the page at `address` be touched, so that one is to be made? At any time, from anywhere (I1).
    pub fn is_allocated(&self, address: usize) -> bool {
        self.page_of(address).is_some_and(|page| {
            let entry = self.memory.entry(page);
            [Use::PoolSlab, Use::PoolLarge, Use::PoolBody].into_iter().any(|usage| entry.is_used_as(usage))
        })
    }

    /// The page of an address of the pool, as far as it has grown.
    fn page_of(&self, address: usize) -> Option<PageNumber> {
        let number = u32::try_from(address.checked_sub(self.memory.start().addr())? / PAGE_SIZE).ok()?;
        // SAFETY: a page of a chunk that has entries.
        (number / CHUNK < self.chunks()).then(|| unsafe { PageNumber::new(number) })
    }

    /// Chunks that have entries: they stay.
    pub fn chunks(&self) -> u32 {
        // Acquire: whoever sees the chunk sees its entries.
        self.grown.load(Ordering::Acquire)
    }

    /// What stands behind it.
    pub fn backing(&self) -> &B {
        &self.backing
    }

    /// What `tag` has.
    pub fn statistics(&self, tag: Tag, at: &mut Irql<Apc>) -> Statistics {
        let index = self.tags.index(tag);
        self.control.lock(at).counters[usize::from(index) % TAGS]
    }

    /// Pages of addresses that are handed out.
    pub fn pages_in_use(&self, at: &mut Irql<Apc>) -> u32 {
        let control = self.control.lock(at);
        self.chunks() * CHUNK - control.pages.counts().free
    }

    /// Checks the addresses' bookkeeping and I4: for tests.
    pub fn verify(&self, at: &mut Irql<Apc>) -> Result<(), (&'static str, u32)> {
        let control = self.control.lock(at);
        for (list, class) in control.partial.iter().zip((0..).map_while(Class::new)) {
            let is_free = |page| self.memory.entry(page).owner.load(Ordering::Relaxed) == full(class);
            if let Some(page) = list.iter(self.memory).find(|&page| is_free(page)) {
                return Err(("a slab of which nobody has a block", page.number()));
            }
        }
        control.pages.verify().map(drop)
    }

    /// Remembers what is in use: [`leaks`](Self::leaks) tells what came since. Checked build.
    pub fn mark(&self, at: &mut Irql<Apc>) {
        self.control.lock(at).sites.mark();
    }

    /// Every tag and call site that has more blocks than at the last [`mark`](Self::mark). Called at DISPATCH, under a lock.
    pub fn leaks(&self, at: &mut Irql<Apc>, mut tell: impl FnMut(&Live)) {
        self.control.lock(at).sites.leaks(&mut tell);
    }

    /// Gives what the quarantine holds back.
    pub fn drain(&self, at: &mut Irql<Apc>) {
        for slot in 0..QUARANTINE {
            let mut control = self.control.lock(at);
            let payload = core::mem::take(&mut control.quarantine[slot]);
            let empty = self.give(payload, &mut control);
            drop(control);
            if let Some(page) = empty {
                self.end(page, 1, at);
            }
        }
    }
}

/// A bit for each block of a slab.
const fn full(class: Class) -> u64 {
    u64::MAX >> (64 - class.in_a_page())
}

impl<const SITES: usize> Control<SITES> {
    /// A free block's payload.
    fn take(&mut self, class: Class, memory: Memory, prefix: usize) -> Option<usize> {
        let list = &mut self.partial[class.index()];
        let page = list.first()?;
        let entry = memory.entry(page);
        let free = entry.owner.load(Ordering::Relaxed);
        let left = free & free.wrapping_sub(1);
        entry.owner.store(left, Ordering::Relaxed);
        if left == 0 {
            list.remove(memory, page);
        }
        Some(memory.address(page).addr() + prefix + free.trailing_zeros() as usize * class.total())
    }

    fn count(&mut self, tag: u16, bytes: usize) {
        let counter = &mut self.counters[usize::from(tag) % TAGS];
        counter.allocations += 1;
        counter.bytes += bytes as u64;
    }

    fn uncount(&mut self, tag: u16, bytes: usize) {
        let counter = &mut self.counters[usize::from(tag) % TAGS];
        counter.frees += 1;
        counter.bytes = counter.bytes.wrapping_sub(bytes as u64);
    }

    /// Keeps a block, and gives the one that was kept longest, or zero.
    fn quarantine(&mut self, block: usize) -> usize {
        let at = self.oldest;
        self.oldest = (at + 1) % QUARANTINE;
        core::mem::replace(&mut self.quarantine[at], block)
    }
}
