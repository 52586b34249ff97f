//! Paged pool on this machine: pages that are made when they are touched, at or below APC.
//!
//! ```text
//!  allocate  pages promised, addresses taken           nothing is mapped
//!  touch     #PF ─► resolve: a promised page, zeroed, mapped
//!  trim      present ─► hidden, all processors forget it         the page and its content stay
//!  touch     #PF ─► resolve: present again
//!  pager     present ─► in transition ─► out                     to a backing store, if there is one: mm/paging.rs has the steps
//!  touch     #PF ─► resolve: taken back, or read in, by one for all who need it
//!  free      unmapped, forgotten, given back; what was never touched is no longer promised
//! ```
//!
//! Owns:       the pool, its page-table entries, the pages behind them. Not: who has which addresses (pool/paged.rs), which pages go
//!             where and when (pager.rs).
//! IRQL:       at or below APC, which the tokens say; a touch at DISPATCH is bugcheck 0x0A, if the page isn't there. [`trim`] takes
//!             the pages away so that it isn't: the checked build's `trim` on the command line does that at each raise to DISPATCH.
//! Locks:      the pool's, then `SpaceLock`, under which pages are made and ended, then the page manager's.
//! Invariants: I1 a page is made under `SpaceLock` for an address that is handed out then, and addresses are taken back under it
//!                after they ceased to be handed out: no page is made behind an end.
//!             I2 what is made was promised, so it can't fail: two processors that touch one page make one.
//!             I3 tables are there for every chunk that the pool has grown to.
//!             I4 what is out needs no promise: it is read in when there is memory, which is waited for.
//! Not as NT:  what was never touched is promised in memory, never in the store.
//! Tests:      selftest `memory_paged::*`, `memory_pager::*`; crash `paged_*`; mutants `mm/paged_*`, `mm/demand_zero_*`.
//! Sources:    WDK, `ExAllocatePool2`, "Writing Pageable Code", "Driver Verifier", force IRQL checking.

use core::ops::{Deref, DerefMut};
use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use arch::paging::PAGE;
use sync::Paged;
use sync::irql::{Apc, AtOrBelow, Irql, MayBlock, PageCacheAccess, Passive, PoolLock, SpaceLock};

use super::frames::CHUNK;
use super::layout::{PAGED_POOL, PAGED_POOL_ENTRIES};
use super::pages::Page;
use super::paging::{self, Ended};
use super::pfn::{Memory, PAGE_SIZE, PageNumber, Pfn};
use super::pool::paged::{Backing, PagedPool};
use super::pool::sites::Live;
use super::pool::{Statistics, Tag};
use super::resolve::Resolution;
use super::tables::{Access, Caching, Found, Leaf, Tables};
use super::{Exhausted, pager, physical, shootdown, system_pte};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::rtl::NtStatus;

pub use bytes::PagedBytes;
use moves::Missing;

mod bytes;
pub(super) mod moves;

/// As for nonpaged pool.
const SITES: usize = if cfg!(feature = "verifier") { 512 } else { 0 };
/// 4 GiB of addresses: chunks of 2 MiB, in words of their bitmap.
const WORDS: usize = 32;
/// Pages of them.
const MOST_PAGES: u32 = (WORDS * 64) as u32 * CHUNK;
/// Bytes of a chunk's entries.
const CHUNK_ENTRIES: u64 = CHUNK as u64 * size_of::<Pfn>() as u64;
/// Pages that are ended before processors are told to forget them.
const BATCH: usize = 64;

const LEAF: Leaf = Leaf { access: Access::Write, caching: Caching::WriteBack };

static POOL: PagedPool<SITES, Kernel> =
    // SAFETY: the addresses are the pool's alone; entries are written once `Kernel::grow` made them.
    unsafe {
        PagedPool::new(Kernel, Memory::new(PAGED_POOL as *mut u8, PAGED_POOL_ENTRIES as *const Pfn))
    };

/// Pages that are present or hidden, by chunk: what can be put into transition. Written under `SpaceLock`.
static RESIDENT: [AtomicU32; WORDS * 64] = [const { AtomicU32::new(0) }; WORDS * 64];
/// Their sum.
static ALL_RESIDENT: AtomicU32 = AtomicU32::new(0);
/// Pages that are present, by chunk: what a trim would find. Written under `SpaceLock`.
static PRESENT: [AtomicU32; WORDS * 64] = [const { AtomicU32::new(0) }; WORDS * 64];
/// Their sum.
static ALL_PRESENT: AtomicU32 = AtomicU32::new(0);

/// A page is present that was not, or was and is not.
fn count_present(page: u32, is: bool) {
    count(&PRESENT, &ALL_PRESENT, page, is);
}

/// A page is present or hidden that was neither, or the reverse.
fn count_resident(page: u32, is: bool) {
    count(&RESIDENT, &ALL_RESIDENT, page, is);
}

fn count(chunks: &[AtomicU32; WORDS * 64], all: &AtomicU32, page: u32, is: bool) {
    let chunk = &chunks[(page / CHUNK) as usize % chunks.len()];
    let by = if is { 1 } else { u32::MAX };
    chunk.store(chunk.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    // Release: who finds none present finds the trim under way that has hidden the last.
    all.store(all.load(Ordering::Relaxed).wrapping_add(by), Ordering::Release);
}

/// This machine behind the pool.
struct Kernel;

/// Where a page of the pool lies.
pub(super) fn address_of(page: u32) -> u64 {
    PAGED_POOL + u64::from(page) * PAGE
}

/// The page of an address of the pool.
fn page_of(address: u64) -> u32 {
    ((address - PAGED_POOL) / PAGE) as u32
}

/// A page whose address has ended, and whether the writer has it, too.
type Gone = (PageNumber, bool);

fn free_page((page, being_written): Gone, at: &mut Irql<Apc>) {
    // SAFETY: a page that this file mapped, and mapped nowhere any more.
    let page = unsafe { Page::from_number(page) };
    if being_written { physical::discard(page, at) } else { physical::free(page, at) }
}

/// Ends an address of the pool. Most pages have no slot: nobody but the leaf leads to them, so the PFN lock isn't needed.
fn end_address(address: u64, tables: &mut Tables, at: &mut Irql<SpaceLock>) -> Ended {
    if let Found::Present(physical) | Found::Hidden(physical) = tables.state(address) {
        // SAFETY: this file maps pages of the page manager alone.
        let page = unsafe { PageNumber::new((physical / PAGE) as u32) };
        if physical::manager().memory().entry(page).slot().is_none() {
            return Ended::Page { page, was: tables.clear(address), being_written: false };
        }
    }
    moves::with_frames(tables, at, |tables, frames| paging::end(tables, frames, address))
}

impl Backing for Kernel {
    fn grow(&self, chunk: u32, at: &mut Irql<PoolLock>) -> Result<(), Exhausted> {
        let entries = PAGED_POOL_ENTRIES + u64::from(chunk) * CHUNK_ENTRIES;
        let grown = system_pte::with_tables(at, |tables, source| {
            let page = &mut || source.page();
            tables.prepare(address_of(chunk * CHUNK), page)?;
            for at in 0..CHUNK_ENTRIES / PAGE {
                // What a chunk that failed half-way left is used by the next try.
                if tables.look(entries + at * PAGE).is_none() {
                    let physical = page()?;
                    // SAFETY: the entries' own addresses, a fresh page.
                    unsafe { tables.map(entries + at * PAGE, physical, LEAF, page)? };
                }
            }
            Ok(())
        });
        grown.unwrap_or(Err(Exhausted))
    }

    fn promise(&self, count: u32, at: &mut Irql<Apc>) -> Result<(), Exhausted> {
        moves::promise(count, at)
    }

    fn unpromise(&self, count: u32, at: &mut Irql<Apc>) {
        physical::manager().unpromise(count, &mut at.raise::<PageCacheAccess>());
    }

    fn end(&self, first: u32, count: u32, at: &mut Irql<Apc>) {
        let (mut next, end) = (first, first + count);
        let mut made = 0;
        while next < end {
            let mut pages: [Option<Gone>; BATCH] = [None; BATCH];
            let mut found = 0;
            let from = next;
            system_pte::with_tables(at, |tables, source| {
                while next < end && found < BATCH {
                    match end_address(address_of(next), tables, source.at) {
                        Ended::Nothing => {}
                        Ended::Done => made += 1,
                        Ended::Page { page, was, being_written } => {
                            pages[found] = Some((page, being_written));
                            found += 1;
                            if !matches!(was, Found::Transition(_)) {
                                count_resident(next, false);
                            }
                            if matches!(was, Found::Present(_)) {
                                count_present(next, false);
                            }
                        }
                    }
                    next += 1;
                }
            });
            if found > 0 {
                shootdown::flush_run(address_of(from), next - from, at);
                pages.into_iter().flatten().for_each(|gone| free_page(gone, at));
            }
            made += found as u32;
        }
        physical::manager().unpromise(count - made, &mut at.raise::<PageCacheAccess>());
    }
}

/// Before the first allocation, once the kernel's tables are taken over. Makes the tables that all of the pool hangs on, so that
/// every address space made later has them.
pub(crate) fn start(at: &mut Irql<Passive>) -> Result<(), Exhausted> {
    let bitmap = physical::allocate_zeroed(at)?.into_number();
    let at = &mut at.raise::<Apc>();
    // SAFETY: a zeroed page of our own, for good.
    POOL.start(unsafe { core::slice::from_raw_parts_mut(physical::address(bitmap).cast(), WORDS) }, at);
    system_pte::with_tables(at, |tables, source| {
        tables.prepare(PAGED_POOL, &mut || source.page())?;
        tables.prepare(PAGED_POOL_ENTRIES, &mut || source.page())
    })
    .unwrap_or(Err(Exhausted))
}

/// A fault of a touch that may be resolved: makes the page, or has it back.
pub(super) fn resolve(address: u64, at: &mut Irql<Apc>) -> Resolution {
    #[cfg(feature = "verifier")]
    return trimming::resolving(at, |at| bring(address, at));
    #[cfg(not(feature = "verifier"))]
    bring(address, at)
}

/// What is brought in by `work` stays there until its end, as far as the checked build's trims go.
pub(super) fn untrimmed<R>(at: &mut Irql<Apc>, work: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
    #[cfg(feature = "verifier")]
    return trimming::resolving(at, work);
    #[cfg(not(feature = "verifier"))]
    work(at)
}

/// What a touch needs next.
enum Step {
    Done(Resolution),
    /// Somebody reads the page in.
    Wait,
    /// It is in this slot.
    Read(u32),
}

fn bring(address: u64, at: &mut Irql<Apc>) -> Resolution {
    match reveal_or_make(address, at) {
        Step::Done(resolution) => resolution,
        step => bring_in(address, step, at, |at| {
            pager::wait_for_room(at);
            Ok(())
        }),
    }
}

/// As [`resolve`], to lock the page. That doesn't wait for others to give something back, who may be about to lock, too:
/// STATUS_INSUFFICIENT_RESOURCES.
pub(super) fn resolve_to_lock(address: u64, at: &mut Irql<Apc>) -> Resolution {
    // Before, not behind: to make room, this page would go again.
    if pager::spare_the_reserve(at).is_err() {
        return Resolution::Refused(NtStatus::INSUFFICIENT_RESOURCES);
    }
    match reveal_or_make(address, at) {
        Step::Done(resolution) => resolution,
        step => bring_in(address, step, at, pager::spare_the_reserve),
    }
}

/// `lack`: there is no memory to read into now; what is to be done then.
#[cold]
#[inline(never)]
fn bring_in(
    address: u64,
    mut step: Step,
    at: &mut Irql<Apc>,
    lack: impl Fn(&mut Irql<Apc>) -> Result<(), Exhausted>,
) -> Resolution {
    let page = address / PAGE * PAGE;
    loop {
        match step {
            Step::Done(resolution) => return resolution,
            Step::Wait => moves::wait(page, at),
            Step::Read(slot) => match moves::read(page, slot, at) {
                Ok(()) => {}
                Err(Missing::Memory) => {
                    if lack(at).is_err() {
                        return Resolution::Refused(NtStatus::INSUFFICIENT_RESOURCES);
                    }
                }
                Err(Missing::Content(status)) => {
                    bugcheck(StopCode::KernelDataInpageError, [slot.into(), status.0.into(), 0, address])
                }
            },
        }
        step = reveal_or_make(address, at);
    }
}

fn reveal_or_make(address: u64, at: &mut Irql<Apc>) -> Step {
    let page = address / PAGE * PAGE;
    let step = system_pte::with_tables(at, |tables, source| {
        // Asked under the lock (I1).
        if !POOL.is_allocated(address as usize) {
            return Step::Done(Resolution::Fatal);
        }
        match tables.reveal(page) {
            Found::Nothing => {}
            found => return revealed(page, found, tables, source.at),
        }
        let made = physical::manager().keep_promise(&mut source.at.raise::<PageCacheAccess>()).into_number();
        // SAFETY: an address of the pool, whose block's owner touches it; the page is fresh.
        let mapped = unsafe { tables.map(page, made.physical(), LEAF, &mut || Err(Exhausted)) };
        // No table is missing (I3).
        if mapped.is_err() {
            return Step::Done(Resolution::Fatal);
        }
        count_resident(page_of(page), true);
        count_present(page_of(page), true);
        Step::Done(Resolution::Resolved)
    });
    step.unwrap_or(Step::Done(Resolution::Fatal))
}

/// What is to be done where the touched address had something.
#[cold]
#[inline(never)]
fn revealed(page: u64, found: Found, tables: &mut Tables, at: &mut Irql<SpaceLock>) -> Step {
    let found = match found {
        Found::Transition(_) => moves::take_back(page, tables, at),
        found => found,
    };
    match found {
        Found::Hidden(_) => {
            count_present(page_of(page), true);
            Step::Done(Resolution::Resolved)
        }
        // Another processor made it meanwhile; or it was in transition.
        Found::Present(_) | Found::Transition(_) => Step::Done(Resolution::Resolved),
        Found::Arriving(_) => Step::Wait,
        Found::Out(slot) => Step::Read(slot),
        // Nothing of it is left: to be made after all.
        Found::Nothing => Step::Wait,
    }
}

/// Hides every page that is present: the next touch faults, which below DISPATCH costs no more than time.
pub fn trim<L: MayBlock + AtOrBelow<Apc>>(at: &mut Irql<L>) {
    let at = &mut at.raise::<Apc>();
    #[cfg(feature = "verifier")]
    trimming::trimming(at, hide_all);
    #[cfg(not(feature = "verifier"))]
    hide_all(at);
}

fn hide_all(at: &mut Irql<Apc>) {
    for (chunk, _) in (0..).zip(&PRESENT).filter(|(_, present)| present.load(Ordering::Relaxed) != 0) {
        system_pte::with_tables(at, |tables, _| {
            for page in chunk * CHUNK..(chunk + 1) * CHUNK {
                if tables.hide(address_of(page)) {
                    count_present(page, false);
                }
            }
        });
    }
    shootdown::flush_entire(at);
}

/// `size` bytes of paged pool for `tag`, aligned as nonpaged pool's; content unknown. They are touched at or below APC.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; nothing was taken then.
#[doc(alias = "ExAllocatePoolWithTag")]
#[track_caller]
pub fn allocate<L: MayBlock + AtOrBelow<Apc>>(
    tag: Tag,
    size: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<[u8]>, Exhausted> {
    POOL.allocate(tag, size, Location::caller(), &mut at.raise::<Apc>())
}

/// The same, cleared.
#[doc(alias = "ExAllocatePool2")]
#[track_caller]
pub fn allocate_zeroed<L: MayBlock + AtOrBelow<Apc>>(
    tag: Tag,
    size: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<[u8]>, Exhausted> {
    let block = allocate(tag, size, at)?;
    // What is more than a page's block is zero, and has no pages yet.
    if !block.cast::<u8>().addr().get().is_multiple_of(PAGE_SIZE) {
        // SAFETY: just allocated, `size` bytes; at or below APC.
        unsafe { block.cast::<u8>().write_bytes(0, size) };
    }
    Ok(block)
}

/// Takes a block back.
///
/// # Bugchecks
/// As for nonpaged pool.
///
/// # Safety
/// A block of paged pool, and nobody uses it any more.
#[doc(alias = "ExFreePoolWithTag")]
#[track_caller]
pub unsafe fn free<L: MayBlock + AtOrBelow<Apc>>(block: NonNull<u8>, tag: Tag, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    unsafe { POOL.free(block, tag, Location::caller(), &mut at.raise::<Apc>()) };
}

/// How much there is of the pool; stale at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Pages of addresses that are handed out.
    pub addresses: u32,
    /// Pages of memory behind them, but for those that are on their way to the backing store.
    pub resident: u32,
    /// Chunks of 2 MiB that it has grown to. Entries and tables of these stay.
    pub chunks: u32,
}

/// See [`Usage`].
pub fn usage<L: MayBlock + AtOrBelow<Apc>>(at: &mut Irql<L>) -> Usage {
    let addresses = POOL.pages_in_use(&mut at.raise::<Apc>());
    Usage { addresses, resident: ALL_RESIDENT.load(Ordering::Relaxed), chunks: POOL.chunks() }
}

/// What `tag` has; stale at once.
pub fn statistics<L: MayBlock + AtOrBelow<Apc>>(tag: Tag, at: &mut Irql<L>) -> Statistics {
    POOL.statistics(tag, &mut at.raise::<Apc>())
}

/// Checked build: gives what is kept from reuse back.
pub fn drain<L: MayBlock + AtOrBelow<Apc>>(at: &mut Irql<L>) {
    POOL.drain(&mut at.raise::<Apc>());
}

/// Checked build: remembers what is in use; [`leaks`] tells what came since.
pub fn mark<L: MayBlock + AtOrBelow<Apc>>(at: &mut Irql<L>) {
    POOL.mark(&mut at.raise::<Apc>());
}

/// Checked build: every tag and place in the code that has more blocks than at the last [`mark`].
pub fn leaks<L: MayBlock + AtOrBelow<Apc>>(at: &mut Irql<L>, tell: impl FnMut(&Live)) {
    POOL.leaks(&mut at.raise::<Apc>(), tell);
}

/// Checks the addresses' bookkeeping, and of each chunk the counts of pages: for self-tests.
pub fn verify<L: MayBlock + AtOrBelow<Apc>>(at: &mut Irql<L>) -> Result<(), (&'static str, u32)> {
    let at = &mut at.raise::<Apc>();
    POOL.verify(at)?;
    (0..POOL.chunks()).try_for_each(|chunk| {
        let counted = system_pte::with_tables(at, |tables, _| {
            let (mut present, mut hidden) = (0, 0);
            for page in chunk * CHUNK..(chunk + 1) * CHUNK {
                match tables.state(address_of(page)) {
                    Found::Present(_) => present += 1,
                    Found::Hidden(_) => hidden += 1,
                    _ => {}
                }
            }
            let noted = [&PRESENT, &RESIDENT].map(|all| all[chunk as usize].load(Ordering::Relaxed));
            noted == [present, present + hidden]
        });
        if counted == Some(false) { Err(("pages miscounted in chunk", chunk)) } else { Ok(()) }
    })
}

/// A `T` in paged pool, which is reached as [`Paged`] says. It is dropped at or below APC, else BAD_POOL_CALLER.
pub struct PagedOwned<T> {
    value: NonNull<Paged<T>>,
    tag: Tag,
}

// SAFETY: it owns the T, like a box.
unsafe impl<T: Send> Send for PagedOwned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for PagedOwned<T> {}

impl<T> PagedOwned<T> {
    const BYTES: usize = {
        assert!(align_of::<T>() <= 16, "paged pool aligns to 16 bytes");
        size_of::<T>()
    };

    /// Moves `value` there, or gives it back.
    #[track_caller]
    pub fn try_new<L: MayBlock + AtOrBelow<Apc>>(
        tag: Tag,
        value: T,
        at: &mut Irql<L>,
    ) -> Result<Self, (Exhausted, T)> {
        let Ok(block) = allocate(tag, Self::BYTES, at) else { return Err((Exhausted, value)) };
        let block = block.cast::<Paged<T>>();
        // SAFETY: a fresh block, large enough and aligned; at or below APC.
        unsafe { block.write(Paged::new(value)) };
        Ok(Self { value: block, tag })
    }
}

impl<T> Deref for PagedOwned<T> {
    type Target = Paged<T>;

    fn deref(&self) -> &Paged<T> {
        // SAFETY: its own value, alive until the drop; a reference alone touches nothing.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for PagedOwned<T> {
    fn deref_mut(&mut self) -> &mut Paged<T> {
        // SAFETY: as above, and borrowed uniquely.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for PagedOwned<T> {
    fn drop(&mut self) {
        let block = self.value.cast::<u8>();
        let level = arch::irql::current();
        // Its own destructor would touch it, too.
        if level > arch::level::APC {
            bugcheck(StopCode::BadPoolCaller, [9, level.into(), 1, block.addr().get() as u64]);
        }
        // SAFETY: its own value, not used afterwards; at or below APC.
        unsafe { self.value.drop_in_place() };
        at_apc(|at| {
            // SAFETY: the block that `try_new` was given, with its tag.
            unsafe { free(block, self.tag, at) };
        });
    }
}

/// Runs `f` at APC, where the caller has no token to pass, but is known to be at or below it.
fn at_apc<R>(f: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
    // SAFETY: 1. the level was just read, and what interrupts this code restores it. 2. the caller uses no token until it returns.
    unsafe {
        match arch::irql::current() {
            arch::level::PASSIVE => Irql::<Passive>::with(|at| f(&mut at.raise::<Apc>())),
            _ => Irql::<Apc>::with(f),
        }
    }
}

/// Checked build: paged pool is trimmed at each raise to DISPATCH, so that a touch there is found though the page was present.
///
/// Invariant: behind the hook, no processor reaches a page that was present before it, unless somebody resolves a fault just then.
#[cfg(feature = "verifier")]
pub mod trimming {
    use core::sync::atomic::{AtomicU32, Ordering};

    use sync::irql::{Apc, Irql};

    use super::{ALL_PRESENT, at_apc, shootdown, trim};
    use crate::ke::thread;

    /// Resolutions under way, on any processor: no trim begins then. One that took away what was just made would let an
    /// instruction that touches two pages fault for ever.
    static RESOLVING: AtomicU32 = AtomicU32::new(0);
    /// Trims under way: pages may be hidden that some processor still reaches.
    static TRIMMING: AtomicU32 = AtomicU32::new(0);

    /// Does one of either. What its thread raises meanwhile trims nothing: a trim would never end.
    fn busy<R>(what: &AtomicU32, at: &mut Irql<Apc>, work: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
        what.fetch_add(1, Ordering::AcqRel);
        let before = thread::current(at).trims_nothing.replace(true);
        let result = work(at);
        thread::current(at).trims_nothing.set(before);
        what.fetch_sub(1, Ordering::AcqRel);
        result
    }

    pub(super) fn trimming<R>(at: &mut Irql<Apc>, work: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
        busy(&TRIMMING, at, work)
    }

    pub(super) fn resolving<R>(at: &mut Irql<Apc>, work: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
        busy(&RESOLVING, at, work)
    }

    /// From now on.
    pub fn begin() {
        sync::irql::set_raise_hook(before_raise);
    }

    fn before_raise() {
        at_apc(|at| {
            if thread::current(at).trims_nothing.get() || RESOLVING.load(Ordering::Acquire) != 0 {
                return;
            }
            if ALL_PRESENT.load(Ordering::Acquire) != 0 {
                trim(at);
            } else if TRIMMING.load(Ordering::Acquire) != 0 {
                // What another trim has hidden, but not made all processors forget.
                trimming(at, shootdown::flush_entire);
            }
        });
    }
}
