//! What is done to the pages of a memory descriptor list: found, locked (mdl_pages/lock.rs), mapped, and all of it undone.
//!
//! IRQL:       at or below DISPATCH, no lock from `PoolAccess` on (allocation), `SpaceLock` on (mapping); locking at or below APC, or
//!             what is not pageable at or below DISPATCH.
//! Invariants: I1 a list with `PAGES_LOCKED` holds one reference on each of its pages that the PFN database counts, from
//!                `probe_and_lock` to `unlock`. A page of the kernel's that is freed meanwhile is PFN_LIST_CORRUPT; one of a process
//!                is given back by the unlock.
//!             I2 a list with `MAPPED_TO_SYSTEM_VA` has a run of system PTEs of its own, which starts with `mapped_system_va`'s page.
//! Not as NT:  memory is always mapped write-back, as the kernel has it mapped so already; the caching asked for is for pages of
//!             devices. (NT takes the page's own attribute, too.) A mapped list is not advanced. Pages are mapped for the kernel only.
//! Tests:      selftest `memory_mdl::*`, `process_locked::*`.
//! Sources:    WDK, `MmProbeAndLockPages`, `MmBuildMdlForNonPagedPool`, `MmMapLockedPagesSpecifyCache`, `IoFreeMdl`.

use core::ptr::NonNull;

use arch::paging::{self, PAGE};
use sync::irql::{Below, Ipi, Irql, PageCacheAccess, PfnLock, PoolAccess, SpaceLock};

use super::mdl::{KMdl, Mdl, flags};
use super::pages::Page;
use super::pfn::PageNumber;
use super::pool::{self, Tag};
use super::ranges::PageRange;
use super::system_pte::{self, MapError, Mapping};
use super::tables::{Access, Caching, Leaf};
use super::{Exhausted, physical};
use crate::ke::bugcheck::{StopCode, bugcheck};

pub use lock::{LockError, Operation, advance, probe_and_lock, probe_and_lock_nonpaged, unlock};

mod lock;

const TAG: Tag = Tag::new(b"Mdl ");

/// What is asked of a list contradicts its flags.
#[cold]
fn misuse(what: u64, mdl: &Mdl) -> ! {
    let header = mdl.header();
    bugcheck(
        StopCode::MemoryManagement,
        [what, mdl.as_raw().addr().get() as u64, header.flags as u64, header.start_va.addr() as u64],
    )
}

/// A list for `bytes` bytes from `address` on, in pool. Dropping it leaks it: [`free`].
#[doc(alias = "IoAllocateMdl")]
#[expect(clippy::not_unsafe_ptr_arg_deref, reason = "the address is kept, nothing is read from it")]
pub fn allocate<L: Below<PoolAccess>>(
    address: *mut u8,
    bytes: u32,
    at: &mut Irql<L>,
) -> Result<Mdl, Exhausted> {
    let size = Mdl::size_for(address.addr(), bytes).ok_or(Exhausted)?;
    let place = pool::allocate(TAG, size, at)?.cast::<KMdl>();
    // SAFETY: just allocated, and pool is aligned to 16.
    unsafe { Mdl::initialize(place, address, bytes) }.ok_or(Exhausted)
}

/// Takes a list back. A mapping that a partial one has of its own ends.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x407, list, flags, start) if it holds pages, or is mapped and no partial one.
///
/// # Safety
/// It came from [`allocate`], and no part of it is in use.
#[doc(alias = "IoFreeMdl")]
pub unsafe fn free<L: Below<PoolAccess> + Below<SpaceLock> + Below<Ipi>>(mut mdl: Mdl, at: &mut Irql<L>) {
    prepare_for_reuse(&mut mdl, at);
    if mdl.header().flags & (flags::PAGES_LOCKED | flags::MAPPED_TO_SYSTEM_VA) != 0 {
        misuse(0x407, &mdl);
    }
    // SAFETY: the caller's.
    unsafe { pool::free(mdl.as_raw().cast(), TAG, at) };
}

/// Ends the mapping of its own that a partial list may have.
#[doc(alias = "MmPrepareMdlForReuse")]
pub fn prepare_for_reuse<L: Below<SpaceLock> + Below<Ipi>>(mdl: &mut Mdl, at: &mut Irql<L>) {
    if mdl.has(flags::PARTIAL_HAS_BEEN_MAPPED) {
        unmap(mdl, at);
    }
}

/// Fills in the pages of a buffer in nonpaged memory, which has an address already: nothing is locked, nothing to be undone.
///
/// # Bugchecks
/// PAGE_FAULT_IN_NONPAGED_AREA if it is not mapped; MEMORY_MANAGEMENT (0x408) if the list holds pages or has a mapping.
#[doc(alias = "MmBuildMdlForNonPagedPool")]
pub fn build_for_nonpaged(mdl: &mut Mdl) {
    if mdl.header().flags & (flags::PAGES_LOCKED | flags::MAPPED_TO_SYSTEM_VA) != 0 {
        misuse(0x408, mdl);
    }
    let start = mdl.header().start_va.addr() as u64;
    let number_of = |page: usize| {
        let address = start + page as u64 * PAGE;
        match paging::translate(address) {
            Some((physical, _)) => physical / PAGE,
            None => bugcheck(StopCode::PageFaultInNonpagedArea, [address, 0, 0, 0]),
        }
    };
    // SAFETY: checked above; and the buffer's own pages, which is nonpaged, so they are its owner's as long as it is.
    unsafe { mdl.set_pages(number_of) };
    let address = mdl.address();
    let header = mdl.header_mut();
    header.mapped_system_va = address;
    header.flags |= flags::SOURCE_IS_NONPAGED_POOL;
}

/// Maps the pages for the kernel, never executable, and says where the buffer begins there.
///
/// # Errors
/// Nothing is mapped then.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x40A) if the list does not hold its pages (by itself, or as a part), or has an address already.
///
/// # Safety
/// The pages may be used in this way by whoever is given the address.
#[doc(alias = "MmMapLockedPagesSpecifyCache")]
pub unsafe fn map<L: Below<SpaceLock> + Below<Ipi>>(
    mdl: &mut Mdl,
    access: Access,
    caching: Caching,
    at: &mut Irql<L>,
) -> Result<NonNull<u8>, MapError> {
    let held = flags::PAGES_LOCKED | flags::PARTIAL;
    let addressed = flags::MAPPED_TO_SYSTEM_VA | flags::SOURCE_IS_NONPAGED_POOL;
    if mdl.header().flags & held == 0 || mdl.header().flags & addressed != 0 {
        misuse(0x40A, mdl);
    }
    let caching = if mdl.has(flags::IO_SPACE) { caching } else { Caching::WriteBack };
    let (offset, bytes) = (mdl.header().byte_offset, mdl.bytes());
    // SAFETY: the caller's.
    let mapping =
        unsafe { system_pte::map_numbers(mdl.pages(), offset, bytes, Leaf { access, caching }, at) }?;
    let address = mapping.address();
    let header = mdl.header_mut();
    header.mapped_system_va = address.as_ptr();
    header.flags |= flags::MAPPED_TO_SYSTEM_VA;
    if header.flags & flags::PARTIAL != 0 {
        header.flags |= flags::PARTIAL_HAS_BEEN_MAPPED;
    }
    Ok(address)
}

/// Where the kernel reaches the buffer, mapping it if it has no address yet: writable, but for what is the image's code or constants, as
/// the list's pages are cached.
///
/// # Errors
/// As [`map`].
///
/// # Safety
/// As [`map`].
#[doc(alias = "MmGetSystemAddressForMdlSafe")]
pub unsafe fn system_address<L: Below<SpaceLock> + Below<Ipi>>(
    mdl: &mut Mdl,
    at: &mut Irql<L>,
) -> Result<NonNull<u8>, MapError> {
    let addressed = flags::MAPPED_TO_SYSTEM_VA | flags::SOURCE_IS_NONPAGED_POOL;
    if mdl.header().flags & addressed != 0
        && let Some(address) = NonNull::new(mdl.header().mapped_system_va)
    {
        return Ok(address);
    }
    // SAFETY: the caller's.
    unsafe { map(mdl, Access::Write, Caching::WriteBack, at) }
}

/// Ends the mapping. On return no processor reaches the pages by it.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x40B) if the list has none of its own.
#[doc(alias = "MmUnmapLockedPages")]
pub fn unmap<L: Below<SpaceLock> + Below<Ipi>>(mdl: &mut Mdl, at: &mut Irql<L>) {
    let address = NonNull::new(mdl.header().mapped_system_va);
    let Some(address) = address.filter(|_| mdl.has(flags::MAPPED_TO_SYSTEM_VA)) else { misuse(0x40B, mdl) };
    // SAFETY: I2.
    let mapping = unsafe { Mapping::from_address(address, mdl.bytes().into()) };
    let header = mdl.header_mut();
    header.flags &= !(flags::MAPPED_TO_SYSTEM_VA | flags::PARTIAL_HAS_BEEN_MAPPED);
    header.mapped_system_va = core::ptr::null_mut();
    system_pte::unmap(mapping, at);
}

/// How pages are chosen that nobody has yet.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// No byte below this.
    pub lowest: u64,
    /// No byte above this.
    pub highest: u64,
    /// How far both are moved up where the range has no more; zero: it is not left.
    pub skip: u64,
    /// Content unknown, instead of zero.
    pub leave_content: bool,
    /// All or nothing; else what there is.
    pub all: bool,
}

/// Takes pages for a list of their own, as many as `bytes` and up to what a list can hold, each wherever it is. They have no address until
/// they are mapped.
///
/// # Errors
/// Not one page, or not all where all were wanted.
#[doc(alias = "MmAllocatePagesForMdl")]
#[doc(alias = "MmAllocatePagesForMdlEx")]
pub fn allocate_pages<L: Below<PoolAccess> + Below<PfnLock> + Below<PageCacheAccess>>(
    bytes: u32,
    choice: &Choice,
    at: &mut Irql<L>,
) -> Result<Mdl, Exhausted> {
    let most = (Mdl::MOST_PAGES as u64 * PAGE) as u32;
    if choice.all && bytes > most {
        return Err(Exhausted);
    }
    let wanted = bytes.min(most).next_multiple_of(PAGE as u32);
    let mut mdl = allocate(core::ptr::null_mut(), wanted, at)?;
    let mut taken = 0;
    for slot in mdl.pages_mut() {
        let Ok(page) = take_page(choice, at) else { break };
        let page = page.into_number();
        if !choice.leave_content {
            // SAFETY: just taken.
            unsafe { physical::address(page).write_bytes(0, PAGE as usize) };
        }
        *slot = page.number().into();
        taken += 1;
    }
    mdl.header_mut().byte_count = taken * PAGE as u32;
    mdl.header_mut().flags |= flags::PAGES_LOCKED;
    if taken == 0 || (choice.all && taken * (PAGE as u32) < wanted) {
        // SAFETY: allocated above, with pages that were taken above, and are gone before the list is.
        unsafe {
            free_pages(&mut mdl, at);
            free_list(mdl, at);
        }
        return Err(Exhausted);
    }
    Ok(mdl)
}

/// A page of the range, or of the next one up to the end of memory.
fn take_page<L: Below<PageCacheAccess> + Below<PfnLock>>(
    choice: &Choice,
    at: &mut Irql<L>,
) -> Result<Page, Exhausted> {
    if choice.lowest == 0 && choice.highest >= u64::from(u32::MAX) * PAGE {
        return physical::allocate(at);
    }
    let number = |address: u64| u32::try_from(address / PAGE).unwrap_or(u32::MAX);
    let (mut lowest, mut highest) = (choice.lowest, choice.highest);
    loop {
        let within = PageRange {
            // In the last page there is none that begins above it.
            start: number(lowest.checked_next_multiple_of(PAGE).ok_or(Exhausted)?),
            end: number(highest.saturating_add(1)),
        };
        if let Ok(page) = physical::allocate_contiguous_within(1, 0, within, at) {
            return Ok(page);
        }
        if choice.skip == 0 || within.end >= physical::end_of_memory(at) {
            return Err(Exhausted);
        }
        lowest = lowest.saturating_add(choice.skip);
        highest = highest.saturating_add(choice.skip);
    }
}

/// Gives the pages of such a list back; the list itself stays, empty, for [`free`].
///
/// # Safety
/// The list came from [`allocate_pages`], and has the pages that it got there: it was not advanced, nor locked, nor its numbers changed.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x40D) if it has none, or is still mapped.
#[doc(alias = "MmFreePagesFromMdl")]
pub unsafe fn free_pages<L: Below<PageCacheAccess>>(mdl: &mut Mdl, at: &mut Irql<L>) {
    let wanted = mdl.header().flags & (flags::PAGES_LOCKED | flags::MAPPED_TO_SYSTEM_VA);
    if wanted != flags::PAGES_LOCKED {
        misuse(0x40D, mdl);
    }
    for &number in mdl.pages() {
        // SAFETY: taken by `allocate_pages` (the caller's), and not given back since: the flag says so.
        physical::free(unsafe { Page::from_number(PageNumber::new(number as u32)) }, at);
    }
    let header = mdl.header_mut();
    header.flags &= !flags::PAGES_LOCKED;
    header.byte_count = 0;
}

/// The memory of a list that has neither pages nor a mapping.
///
/// # Safety
/// It came from [`allocate`], and is not used any more.
unsafe fn free_list<L: Below<PoolAccess>>(mdl: Mdl, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    unsafe { pool::free(mdl.as_raw().cast(), TAG, at) };
}
