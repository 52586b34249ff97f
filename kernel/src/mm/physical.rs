//! This machine's memory: the page manager, its database at a fixed address, and what bring-up and the loader leave to it.
//!
//! IRQL:       at or below DISPATCH.
//! Invariants: I1 the database's entries are backed for every chunk (2 MiB) that holds memory, in whole; nothing else is.
//!             I2 a processor's `Local` is reached on that processor only: with a token at DISPATCH, which borrows it.

use arch::paging::{Flags, OutOfPages, PAGE, Pages, hhdm};
use sync::irql::{Below, Dispatch, Irql, PageCacheAccess, Passive, PfnLock};

use super::early::EarlyPages;
use super::frames::{CHUNK, Counts, Frames, ORDERS};
use super::layout::PFN_DATABASE;
use super::pages::{Machine, Page, PageCache, PageManager};
use super::pfn::{Memory, PageNumber, Pfn};
use super::pressure::Conditions;
use super::ranges::{PageRange, Ranges};
use super::space::KernelSpace;
use super::{Exhausted, pager, zeroing};
use crate::boot::limine::{Entry, EntryType};
use crate::ke::dpc::Dpc;
use crate::ke::event::{Event, EventKind};
use crate::ke::prcb::{self, Prcb};

static PAGES: PageManager = PageManager::new(Machine {
    caches: |each| prcb::all().for_each(|processor| each(&processor.prcb().memory.pages)),
    notice: |at| _ = NOTICE.queue([0; 2], at),
});

/// Tells whoever waits that memory became scarce, plenty or dirty: threads, whose locks come before those of memory.
static NOTICE: Dpc = Dpc::new(tell);

/// Little memory is left.
#[doc(alias = "LowMemoryCondition")]
pub static LOW_MEMORY: Event = Event::new(EventKind::Notification, false);
/// There is plenty.
#[doc(alias = "HighMemoryCondition")]
pub static HIGH_MEMORY: Event = Event::new(EventKind::Notification, false);

/// On two processors at once, too, as the DPC leaves its queue before it runs: whoever stores an event last has seen the conditions
/// behind that be what it stored.
fn tell(_: &'static Dpc, at: &mut Irql<Dispatch>, _: [usize; 2]) {
    let mut conditions = self::conditions(at);
    loop {
        for (holds, event) in [(conditions.low, &LOW_MEMORY), (conditions.high, &HIGH_MEMORY)] {
            if holds {
                event.set(0, at);
            } else {
                event.reset(at);
            }
        }
        let now = self::conditions(at);
        if now == conditions {
            break;
        }
        conditions = now;
    }
    let counts = PAGES.frames().lock(at).counts();
    if counts.zeroed < zeroing::LOW {
        zeroing::wake(at);
    }
    if conditions.low {
        pager::wake(at);
    }
}

/// How much is left; stale at once. [`LOW_MEMORY`] and [`HIGH_MEMORY`] follow it, as soon as a DPC runs.
pub fn conditions<L: Below<PfnLock>>(at: &mut Irql<L>) -> Conditions {
    PAGES.frames().lock(at).pressure().conditions()
}

/// Below so many pages is little.
pub fn low_below<L: Below<PfnLock>>(at: &mut Irql<L>) -> u32 {
    PAGES.frames().lock(at).pressure().low_below()
}

/// Clears a free page if there are fewer zeroed ones than `wanted`. Says whether it did; if not, becoming few is told of again.
pub(super) fn zero_one<L: Below<PfnLock>>(wanted: fn(&Counts) -> u32, at: &mut Irql<L>) -> bool {
    let mut frames = PAGES.frames().lock(at);
    let counts = frames.counts();
    let page = if counts.zeroed < wanted(&counts) { frames.take_to_zero() } else { None };
    let Some(page) = page else {
        frames.watch_zeroed(zeroing::LOW);
        return false;
    };
    drop(frames);
    // SAFETY: just taken.
    unsafe { PAGES.memory().zero(page) };
    PAGES.frames().lock(at).give_zeroed(page);
    true
}

/// Bytes of entries for a chunk's pages.
const CHUNK_ENTRIES: u64 = CHUNK as u64 * size_of::<Pfn>() as u64;
/// Chunks whose entries fill a 2 MiB page.
const GROUP: u32 = (LARGE / CHUNK_ENTRIES) as u32;
const LARGE: u64 = 2 << 20;

const _: () = assert!(CHUNK_ENTRIES.is_multiple_of(PAGE), "a chunk's entries are whole pages");

/// Pages of memory, the loader's included, that the database covers: 16 TiB, as links have 32 bits.
const MOST_PAGES: u64 = u32::MAX as u64 - CHUNK as u64;

/// Whole pages of an entry of the loader's map.
fn pages_of(entry: &Entry) -> PageRange {
    let page = |address: u64| (address / PAGE).min(MOST_PAGES) as u32;
    PageRange { start: page(entry.base.next_multiple_of(PAGE)), end: page(entry.base + entry.length) }
}

/// What will be free, at once or once the loader is gone.
fn is_to_be_free(entry: &Entry) -> bool {
    [EntryType::USABLE, EntryType::BOOTLOADER_RECLAIMABLE].contains(&entry.entry_type)
}

/// Builds the database over what bring-up left, and hands that to the page manager: bring-up's allocator ends here.
///
/// Nothing but page tables and one bit a chunk is written, so this costs the same for any amount of memory.
pub(crate) fn start(
    map: &[&Entry],
    space: &mut KernelSpace,
    mut early: EarlyPages,
    at: &mut Irql<Passive>,
) -> Result<u64, OutOfPages> {
    let memory = map.iter().filter(|entry| is_to_be_free(entry)).map(|entry| pages_of(entry));
    let end = memory.clone().map(|range| range.end).max().unwrap_or(0);
    let words = Frames::bitmap_words(end);
    let bitmap = early.contiguous(words as u64 * 8).ok_or(OutOfPages)?;
    back(memory, space, &mut early)?;
    let mut boot = Ranges::new();
    for (start, end) in early.rest() {
        let page = |address: u64| (address / PAGE).min(MOST_PAGES) as u32;
        if !boot.push(PageRange { start: page(start), end: page(end) }) {
            crate::warn!("memory at {start:#x} stays unused: too many ranges");
        }
    }
    // SAFETY: 1. the bitmap's pages are zeroed and nobody else's. 2. `rest` is what bring-up handed to nobody, and its
    //         allocator is consumed. 3. every chunk of it was backed just now (I1), and the HHDM maps it.
    unsafe {
        let bitmap = core::slice::from_raw_parts_mut((hhdm() + bitmap) as *mut u64, words);
        let memory = Memory::new(hhdm() as *mut u8, PFN_DATABASE as *const Pfn);
        PAGES.start(memory, boot, bitmap, &mut at.raise::<PageCacheAccess>());
    }
    Ok(early.used())
}

/// Backs the entries of every chunk that has memory (I1): by 2 MiB where all of their chunks do, else chunk by chunk.
fn back(
    memory: impl Iterator<Item = PageRange> + Clone,
    space: &mut KernelSpace,
    early: &mut EarlyPages,
) -> Result<(), OutOfPages> {
    let has_memory = |chunk: u32| {
        let all = PageRange { start: chunk * CHUNK, end: (chunk + 1).saturating_mul(CHUNK) };
        memory.clone().any(|range| !range.intersect(all).is_empty())
    };
    // Ranges ascend, so groups do: each is looked at once.
    let mut next = 0;
    for range in memory.clone().filter(|range| !range.is_empty()) {
        let groups = range.start / CHUNK / GROUP..range.end.div_ceil(CHUNK).div_ceil(GROUP);
        for group in groups.start.max(next)..groups.end {
            next = group + 1;
            let chunks = group * GROUP..(group + 1) * GROUP;
            // One look at the map for most groups: by chunks, it would be what a boot with much memory takes longest for.
            let all = PageRange { start: chunks.start * CHUNK, end: chunks.end.saturating_mul(CHUNK) };
            if memory.clone().any(|range| range.covers(all)) || chunks.clone().all(has_memory) {
                if let Some(physical) = early.contiguous_high(LARGE, LARGE) {
                    map_entries(chunks.start, physical, LARGE, space, early)?;
                    continue;
                }
                crate::info!("PFN database: no 2 MiB in a row, so by small pages");
            }
            for chunk in chunks.filter(|&chunk| has_memory(chunk)) {
                let physical = early.contiguous_high(CHUNK_ENTRIES, PAGE).ok_or(OutOfPages)?;
                map_entries(chunk, physical, CHUNK_ENTRIES, space, early)?;
            }
        }
    }
    Ok(())
}

fn map_entries(
    chunk: u32,
    physical: u64,
    bytes: u64,
    space: &mut KernelSpace,
    early: &mut EarlyPages,
) -> Result<(), OutOfPages> {
    let flags = Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE | Flags::GLOBAL;
    // SAFETY: the database's own addresses, each chunk's once; fresh memory.
    unsafe { space.map(PFN_DATABASE + u64::from(chunk) * CHUNK_ENTRIES, physical, bytes, flags, early) }
}

/// Frees what was the loader's. Returns how many pages.
///
/// # Safety
/// Nobody uses its tables, stacks or answers any more, on any processor; `map` itself is a copy.
pub(crate) unsafe fn reclaim_loader(map: &[&Entry], at: &mut Irql<Passive>) -> u32 {
    let mut count = 0;
    for entry in map.iter().filter(|entry| entry.entry_type == EntryType::BOOTLOADER_RECLAIMABLE) {
        let mut range = pages_of(entry);
        // As for bring-up's allocator: the first MiB is the firmware's.
        range.start = range.start.max(super::early::FIRST_PAGE);
        if !range.is_empty() {
            // SAFETY: the caller's; its chunks have entries (I1).
            unsafe { PAGES.frames().lock(at).add(range) };
            count += range.len();
        }
    }
    count
}

/// Runs `f` with this processor's cache (I2).
#[inline(always)]
fn here<L: Below<PageCacheAccess>, R>(
    at: &mut Irql<L>,
    f: impl FnOnce(&PageCache, &mut Irql<PageCacheAccess>) -> R,
) -> R {
    let mut raised = at.raise::<PageCacheAccess>();
    let (here, at) = Prcb::here(&mut raised);
    f(&here.memory.pages, at)
}

/// A page, its content unknown; reached at [`address`].
#[inline]
pub fn allocate<L: Below<PageCacheAccess>>(at: &mut Irql<L>) -> Result<Page, Exhausted> {
    here(at, |cache, at| PAGES.allocate(cache, at))
}

/// A page of zeroes.
pub fn allocate_zeroed<L: Below<PageCacheAccess>>(at: &mut Irql<L>) -> Result<Page, Exhausted> {
    here(at, |cache, at| PAGES.allocate_zeroed(cache, at))
}

/// A page of zeroes that was cleared ahead of need, if there is any.
pub(super) fn allocate_cleared<L: Below<PageCacheAccess>>(at: &mut Irql<L>) -> Option<Page> {
    here(at, |_, at| PAGES.allocate_cleared(at))
}

/// `count` pages in a row whose addresses are all in `lowest..limit`, as [`allocate_contiguous`].
pub(super) fn allocate_contiguous_within<L: Below<PageCacheAccess>>(
    count: u32,
    align: u8,
    within: PageRange,
    at: &mut Irql<L>,
) -> Result<Page, Exhausted> {
    here(at, |_, at| PAGES.allocate_contiguous_within(count, align, within, at))
}

/// Takes a page back.
///
/// # Bugchecks
/// PFN_LIST_CORRUPT for one that is not in use, or still referenced.
#[inline]
pub fn free<L: Below<PageCacheAccess>>(page: Page, at: &mut Irql<L>) {
    here(at, |cache, at| PAGES.free(page, cache, at));
}

/// Takes a page back that must not be used again: its memory is broken. Nobody has it for good.
///
/// # Bugchecks
/// As [`free`].
#[doc(alias = "MmMarkPhysicalMemoryAsBad")]
pub fn retire<L: Below<PageCacheAccess>>(page: Page, at: &mut Irql<L>) {
    here(at, |_, at| PAGES.with(at, |frames| frames.retire(page.into_number())));
}

/// Takes a page back: at once, or when the last use by its physical address ends.
pub(super) fn discard<L: Below<PageCacheAccess>>(page: Page, at: &mut Irql<L>) {
    here(at, |cache, at| PAGES.discard(page, cache, at));
}

/// Ends a use by physical address, which may have been the last: then the page is free, or on the list that its content belongs on.
pub(super) fn dereference<L: Below<PageCacheAccess>>(page: PageNumber, at: &mut Irql<L>) {
    here(at, |_, at| PAGES.with(at, |frames| frames.dereference(page)));
}

/// `count` pages in a row whose addresses are all below `limit` (`None`: anywhere), the first a multiple of 2^`align` pages.
#[doc(alias = "MmAllocateContiguousMemory")]
pub fn allocate_contiguous<L: Below<PageCacheAccess>>(
    count: u32,
    align: u8,
    limit: Option<u64>,
    at: &mut Irql<L>,
) -> Result<Page, Exhausted> {
    let limit = limit.map_or(super::pages::NO_LIMIT, |limit| u32::try_from(limit / PAGE).unwrap_or(u32::MAX));
    here(at, |_, at| PAGES.allocate_contiguous(count, align, limit, at))
}

/// Takes pages back that were allocated together.
///
/// # Safety
/// All `count` of them are the caller's, and nobody reaches them any more.
#[doc(alias = "MmFreeContiguousMemory")]
pub unsafe fn free_contiguous<L: Below<PageCacheAccess>>(first: Page, count: u32, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    here(at, |_, at| unsafe { PAGES.free_contiguous(first, count, at) });
}

/// Where the page is mapped, writable and never executable. Its owner may use it there.
#[inline]
pub fn address(page: PageNumber) -> *mut u8 {
    PAGES.memory().address(page)
}

/// The page of that number, if somebody has it. It may be given up at any time by whoever does.
pub fn in_use<L: Below<PfnLock>>(number: u64, at: &mut Irql<L>) -> Option<PageNumber> {
    PAGES.frames().lock(at).in_use(number)
}

/// References and shares of a page; stale at once.
pub fn references(page: PageNumber) -> (u32, u32) {
    PAGES.memory().entry(page).counts()
}

/// The number behind the last page that there is.
pub(super) fn end_of_memory<L: Below<PfnLock>>(at: &mut Irql<L>) -> u32 {
    PAGES.frames().lock(at).end()
}

/// Gives this processor's cached pages back to all.
pub fn drain<L: Below<PageCacheAccess>>(at: &mut Irql<L>) {
    here(at, |cache, at| PAGES.drain(cache, at));
}

/// How many pages are where.
pub fn counts<L: Below<PageCacheAccess>>(at: &mut Irql<L>) -> Counts {
    here(at, |_, at| PAGES.counts(at))
}

/// Free blocks of 2^n pages, by n: how fragmented memory is.
pub fn blocks<L: Below<PfnLock>>(at: &mut Irql<L>) -> [u32; ORDERS] {
    PAGES.frames().lock(at).blocks()
}

/// Pages in the caches of all processors, stale at once.
pub fn cached() -> u32 {
    prcb::all().map(|processor| processor.prcb().memory.pages.len()).sum()
}

/// Everything that can be had at once, in pages; stale at once.
#[doc(alias = "MmAvailablePages")]
pub fn available<L: Below<PageCacheAccess>>(at: &mut Irql<L>) -> u32 {
    let counts = counts(at);
    counts.free + counts.zeroed + counts.standby + cached()
}

/// The page manager, for the pool.
pub(super) const fn manager() -> &'static PageManager {
    &PAGES
}

/// Checks the invariants of the free memory: for self-tests. Holds the PFN lock for as long as it takes.
pub fn verify<L: Below<PageCacheAccess>>(at: &mut Irql<L>) -> Result<Counts, (&'static str, u32)> {
    here(at, |_, at| PAGES.frames().lock(at).verify())
}

/// Pages for page tables, once bring-up's allocator is gone: kept for good.
pub struct TablePages<'a, L: Below<PageCacheAccess>>(pub &'a mut Irql<L>);

impl<L: Below<PageCacheAccess>> Pages for TablePages<'_, L> {
    fn page(&mut self) -> Option<u64> {
        allocate_zeroed(self.0).ok().map(|page| page.into_number().physical())
    }
}
