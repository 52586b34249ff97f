//! Executable pool, for drivers that run code which they wrote into NonPagedPool: never writable and executable at once.
//!
//! ```text
//!  written to  ─► writable, not executable ──┐  a fetch faults: neither; all processors forget; executable, not writable
//!                 ▲                          ▼
//!  a store faults: neither; all              run
//!  forget; writable  ◄───────────────────────┘
//! ```
//!
//! NT gives such memory all rights. Here W^X holds without exception, for a fault and a shootdown at each change from writing to running;
//! who asks for this pool writes once and runs often. A page can be read all the while. Who finds it between two rights waits for the
//! flush of whoever changes it, which nothing holds up (`sync::toggle`): so the fault is resolved at any level below IPI, whatever locks
//! the interrupted code holds.
//!
//! IRQL:       at or below DISPATCH; the memory is used below IPI with interrupts on.
//! Invariants: I1 a leaf with the toggle bit has the right to write, that to execute, or neither, and its page is of this pool.
//!             I2 no processor has a right by the block's address, cached or not, while another has the other one. By others, the HHDM's
//!                or a list's, the page stays writable; by none of those does it run.
//! Not as NT:  code that writes into its own page is refused (0xBE), since it would fault for ever; so is what begins less than 15 bytes
//!             before a page and writes there, since it may go on in it. At IPI and above, or with interrupts off, a change is refused
//!             as well. A block has pages of its own, at most [`MOST_PAGES`].
//! Tests:      tests/models/tests/toggle.rs (I2); selftest `memory_executable::*`; crash `executable_*`; unit tests of `fault`.
//! Sources:    WDK, `POOL_TYPE`, "No-Execute (NX) Nonpaged Pool".

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use arch::paging::{self, PAGE};
use sync::irql::{AtOrBelow, Below, Clock, Ipi, Irql, PageCacheAccess, SpaceLock};
use sync::toggle::{self, Rights};

use super::fault::Kind;
use super::pages::Page;
use super::pfn::{PAGE_SIZE, PageNumber, Use};
use super::pool::{Tag, block};
use super::resolve::Resolution;
use super::system_pte::{self, Mapping};
use super::tables::{Access, Toggle};
use super::{Exhausted, physical, shootdown};

/// The most pages of a block.
pub const MOST_PAGES: usize = 64;

/// `size` bytes, page-aligned, zero.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES, also for more than [`MOST_PAGES`]; nothing was taken then.
pub fn allocate<L: Below<SpaceLock> + Below<Ipi> + Below<PageCacheAccess>>(
    tag: Tag,
    size: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<[u8]>, Exhausted> {
    let count = size.div_ceil(PAGE_SIZE).max(1);
    if count > MOST_PAGES {
        return Err(Exhausted);
    }
    let mut pages = [None; MOST_PAGES];
    let mut taken = Ok(());
    for slot in &mut pages[..count] {
        match physical::allocate_zeroed(at) {
            Ok(page) => *slot = Some(page.into_number()),
            Err(Exhausted) => taken = Err(Exhausted),
        }
    }
    let mapping = match (taken, pages[0]) {
        (Ok(()), Some(first)) => {
            let numbers = pages.map(|page| page.unwrap_or(first));
            // SAFETY: pages of our own.
            unsafe { system_pte::map(&numbers[..count], Access::Toggled, at) }.map_err(|_| Exhausted)
        }
        _ => Err(Exhausted),
    };
    let (Ok(mapping), Some(first)) = (mapping, pages[0]) else {
        pages.into_iter().flatten().for_each(|page| free_page(page, at));
        return Err(Exhausted);
    };
    let memory = physical::manager().memory();
    let entry = memory.entry(first);
    entry.set_use(Use::PoolExecutable);
    entry.tag.store(tag.value(), Ordering::Relaxed);
    entry.owner.store(size as u64, Ordering::Relaxed);
    // The mapping is found again by its address.
    Ok(NonNull::slice_from_raw_parts(mapping.address(), size))
}

/// Takes a block back.
///
/// # Bugchecks
/// As for nonpaged pool: no block (0x42), another tag's (0xA).
///
/// # Safety
/// It came from [`allocate`], and nobody uses it or runs in it any more.
pub unsafe fn free<L: Below<SpaceLock> + Below<Ipi> + Below<PageCacheAccess>>(
    start: NonNull<u8>,
    tag: Tag,
    at: &mut Irql<L>,
) {
    let address = start.addr().get();
    let Some((_, first)) = system_pte::find(address as u64, at) else {
        block::not_large(address, true, tag.value())
    };
    let memory = physical::manager().memory();
    let entry = memory.entry(first);
    if !entry.is_used_as(Use::PoolExecutable) || !address.is_multiple_of(PAGE_SIZE) {
        block::not_large(address, false, tag.value());
    }
    let owner = entry.tag.load(Ordering::Relaxed);
    if owner != tag.value() {
        block::wrong_tag(address, owner, tag);
    }
    let count = (entry.owner.load(Ordering::Relaxed) as usize).div_ceil(PAGE_SIZE).max(1);
    entry.set_use(Use::Page);
    let mut pages = [None; MOST_PAGES];
    for (number, slot) in pages[..count].iter_mut().enumerate() {
        let page = address as u64 + number as u64 * PAGE;
        *slot = system_pte::find(page, at).map(|(_, page)| page);
    }
    // SAFETY: the mapping that `allocate` made.
    system_pte::unmap(unsafe { Mapping::from_address(start, count as u64 * PAGE) }, at);
    pages.into_iter().flatten().for_each(|page| free_page(page, at));
}

fn free_page<L: Below<PageCacheAccess>>(page: PageNumber, at: &mut Irql<L>) {
    // SAFETY: taken by `allocate`, mapped nowhere any more.
    physical::free(unsafe { Page::from_number(page) }, at);
}

/// Is this an address of such a block, as far as a mapping tells? For those who free by address alone.
pub(super) fn is_executable<L: Below<SpaceLock>>(address: u64, at: &mut Irql<L>) -> bool {
    let memory = physical::manager().memory();
    system_pte::find(address, at).is_some_and(|(_, page)| memory.entry(page).is_used_as(Use::PoolExecutable))
}

/// A fault that may be a change from writing to running, or back: at any level below IPI, interrupts on, whatever the interrupted code holds.
pub(crate) fn toggle<L: AtOrBelow<Clock> + Below<Ipi>>(
    address: u64,
    kind: Kind,
    at: &mut Irql<L>,
) -> Resolution {
    let Some(leaf) = paging::leaf(address) else { return Resolution::Fatal };
    let wanted = if kind == Kind::Execute { Rights::Run } else { Rights::Write };
    let wait = |_: &mut Irql<L>| arch::cpu::spin_hint();
    let flush = |at: &mut Irql<Clock>| shootdown::flush_single(address / PAGE * PAGE, at);
    if toggle::change(&Toggle(leaf), wanted, wait, flush, at) {
        Resolution::Resolved
    } else {
        Resolution::Fatal
    }
}
