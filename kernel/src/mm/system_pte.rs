//! System PTEs: mappings that come and go in the kernel half, and the end of a translation on all processors.
//!
//! ```text
//!  unmapping processor                       another one
//!  entry = 0           (SpaceLock)           may still use its cached translation
//!  mm::shootdown ──────────────────────────► forgets it, at once, or first of all when it wakes
//!  all have answered, or sleep ◄───────────── done
//!  address free again  (SpaceLock)
//!  returns: the page may have a new owner
//! ```
//!
//! IRQL:       at or below DISPATCH, no lock from `SpaceLock` on. The caller waits at its own level for the others to answer, and
//!             serves their calls meanwhile (`shootdown`).
//! Invariants: I1 an address is taken from before its first entry is written until every processor has dropped its translation.
//!             I2 none of these addresses lets the image's code or constants be written: they are mapped to be read, whatever is asked.
//! Not as NT:  each unmap is flushed at once; NT lets freed system PTEs collect until it has to flush. One call serves all
//!             pages of an unmap.
//! Tests:      tests/props/tests/mm_space.rs (the parts); selftest `memory_space::*`.

use core::ptr::NonNull;

use arch::paging::PAGE;
use sync::SpinLock;
use sync::irql::{Below, Ipi, Irql, SpaceLock};

use super::layout::{SYSTEM_PTES, Segment};
use super::pfn::PageNumber;
use super::slots::Slots;
use super::space::KernelSpace;
use super::tables::{Access, Caching, Leaf, Tables};
use super::{Exhausted, is_refused, physical, shootdown};
use crate::boot::facts;
use crate::boot::limine::EntryType;
use crate::ke::bugcheck::{StopCode, bugcheck};

/// 1 GiB of addresses.
const WORDS: usize = 4096;
/// Bytes of the part.
pub(super) const BYTES: u64 = WORDS as u64 * 64 * PAGE;

struct System {
    tables: Option<Tables>,
    slots: Slots<WORDS>,
    /// Pages that became tables, for good.
    table_pages: u32,
}

static SYSTEM: SpinLock<System, SpaceLock> =
    SpinLock::new(System { tables: None, slots: Slots::new(), table_pages: 0 });

/// Takes the kernel's tables over from bring-up, and completes their root: address spaces share its upper half.
pub(crate) fn start<L: Below<SpaceLock>>(space: KernelSpace, at: &mut Irql<L>) -> Result<(), Exhausted> {
    let memory = physical::manager().memory();
    let mut guard = SYSTEM.lock(at);
    let (system, at) = guard.parts();
    // SAFETY: the tables in force, handed over; bring-up maps nothing any more.
    let mut tables = unsafe { Tables::new(memory, space.root()) };
    let mut table = || Ok(physical::allocate_zeroed(at)?.into_number().physical());
    system.table_pages += tables.complete_root(&mut table)?;
    system.tables = Some(tables);
    Ok(())
}

/// Makes the upper half of a new root the kernel's.
pub(super) fn enter_kernel_half<L: Below<SpaceLock>>(root: PageNumber, at: &mut Irql<L>) {
    if let Some(tables) = &SYSTEM.lock(at).tables {
        tables.copy_upper_half(root);
    }
}

/// Pages for new tables, which stay.
pub(super) struct TableSource<'a> {
    count: &'a mut u32,
    /// The right to more.
    pub(super) at: &'a mut Irql<SpaceLock>,
}

impl TableSource<'_> {
    /// A zeroed page's physical address.
    pub(super) fn page(&mut self) -> Result<u64, Exhausted> {
        let page = physical::allocate_zeroed(self.at)?.into_number();
        *self.count += 1;
        Ok(page.physical())
    }
}

/// Runs `f` with the kernel's tables, for parts of the kernel half other than this file's; `None` before there are any.
pub(super) fn with_tables<L: Below<SpaceLock>, R>(
    at: &mut Irql<L>,
    f: impl FnOnce(&mut Tables, &mut TableSource<'_>) -> R,
) -> Option<R> {
    let mut system = SYSTEM.lock(at);
    let (System { tables, table_pages, .. }, at) = system.parts();
    Some(f(tables.as_mut()?, &mut TableSource { count: table_pages, at }))
}

/// Why nothing was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No addresses or no page for a table: STATUS_INSUFFICIENT_RESOURCES.
    Exhausted,
    /// Memory, which the kernel has mapped as such, asked for with another caching: two kinds of caching for one page are
    /// undefined. STATUS_INVALID_PARAMETER.
    Memory,
    /// No bytes, or beyond the physical addresses that a page table can hold: STATUS_INVALID_PARAMETER.
    Range,
}

impl From<Exhausted> for MapError {
    fn from(_: Exhausted) -> Self {
        Self::Exhausted
    }
}

/// Pages mapped in a row. Dropping it leaves them mapped, since the end of a mapping needs a level: [`unmap`].
#[derive(Debug)]
#[must_use = "a dropped mapping stays for good"]
pub struct Mapping {
    slot: u32,
    pages: u32,
    offset: u32,
    bytes: u64,
}

impl Mapping {
    fn start(&self) -> u64 {
        SYSTEM_PTES + u64::from(self.slot) * PAGE
    }

    /// Where it begins.
    pub fn address(&self) -> NonNull<u8> {
        let address = (self.start() + u64::from(self.offset)) as *mut u8;
        // SAFETY: in the upper half, so not null.
        unsafe { NonNull::new_unchecked(address) }
    }

    /// The mapping that [`address`](Self::address) and [`len`](Self::len) were of, for whoever kept nothing else.
    ///
    /// # Safety
    /// They were, and that value is gone.
    pub unsafe fn from_address(address: NonNull<u8>, bytes: u64) -> Self {
        let address = address.addr().get() as u64 - SYSTEM_PTES;
        let offset = address % PAGE;
        let pages = (offset + bytes).div_ceil(PAGE) as u32;
        Self { slot: (address / PAGE) as u32, pages, offset: offset as u32, bytes }
    }

    /// How many bytes were asked for.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// None? Never: an empty range is not mapped.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// Maps these pages of memory in a row.
///
/// # Safety
/// The caller may use the pages in this way for as long as they are mapped, by these addresses and by the HHDM's.
pub unsafe fn map<L: Below<SpaceLock> + Below<Ipi>>(
    pages: &[PageNumber],
    access: Access,
    at: &mut Irql<L>,
) -> Result<Mapping, MapError> {
    let leaf = Leaf { access, caching: Caching::WriteBack };
    let count = u32::try_from(pages.len()).map_err(|_| MapError::Exhausted)?;
    // SAFETY: the caller's.
    unsafe { map_run(count, 0, u64::from(count) * PAGE, leaf, |at| pages[at as usize].physical(), at) }
}

/// Maps the pages of these numbers in a row, of which `bytes` from `offset` on are used.
///
/// # Safety
/// As [`map`], and their caching contradicts no other mapping's.
pub(super) unsafe fn map_numbers<L: Below<SpaceLock> + Below<Ipi>>(
    numbers: &[u64],
    offset: u32,
    bytes: u32,
    leaf: Leaf,
    at: &mut Irql<L>,
) -> Result<Mapping, MapError> {
    if bytes == 0 {
        return Err(MapError::Range);
    }
    // SAFETY: the caller's.
    unsafe { map_run(numbers.len() as u32, offset, bytes.into(), leaf, |at| numbers[at as usize] * PAGE, at) }
}

/// Maps `bytes` of physical addresses from `physical` on, writable (but for I2) and never executable: registers and the memory of devices.
///
/// # Safety
/// What lies there may be reached in this way, by whoever is given the address.
#[doc(alias = "MmMapIoSpaceEx")]
pub unsafe fn map_io<L: Below<SpaceLock> + Below<Ipi>>(
    physical: u64,
    bytes: u64,
    caching: Caching,
    at: &mut Irql<L>,
) -> Result<Mapping, MapError> {
    const MOST: u64 = 1 << 52;
    let end = physical.checked_add(bytes).filter(|&end| bytes > 0 && end <= MOST).ok_or(MapError::Range)?;
    let first = physical / PAGE * PAGE;
    if caching != Caching::WriteBack && is_memory(first, end) {
        return Err(MapError::Memory);
    }
    let count = u32::try_from((end - first).div_ceil(PAGE)).map_err(|_| MapError::Exhausted)?;
    let leaf = Leaf { access: Access::Write, caching };
    let offset = (physical - first) as u32;
    // SAFETY: the caller's.
    unsafe { map_run(count, offset, bytes, leaf, |at| first + u64::from(at) * PAGE, at) }
}

/// Is any of it mapped as memory?
pub(super) fn is_memory(start: u64, end: u64) -> bool {
    let kinds = [EntryType::USABLE, EntryType::BOOTLOADER_RECLAIMABLE, EntryType::EXECUTABLE_AND_MODULES];
    facts().info.memory_map.iter().any(|entry| {
        kinds.contains(&entry.entry_type) && entry.base < end && start < entry.base + entry.length
    })
}

/// What may be done with a page that is mapped for `access`: the image's code and constants are not written by any address (W^X).
fn allowed(access: Access, physical: u64) -> Access {
    let (start, linked) = facts().info.image;
    let is_kept = [Segment::Text, Segment::Rodata].into_iter().any(|segment| {
        let range = segment.range();
        (start + (range.start - linked)..start + (range.end - linked)).contains(&physical)
    });
    if is_kept { Access::Read } else { access }
}

/// # Safety
/// As [`map`], for each page that `physical_of` gives.
unsafe fn map_run<L: Below<SpaceLock> + Below<Ipi>>(
    count: u32,
    offset: u32,
    bytes: u64,
    leaf: Leaf,
    physical_of: impl Fn(u32) -> u64,
    at: &mut Irql<L>,
) -> Result<Mapping, MapError> {
    if is_refused() {
        return Err(MapError::Exhausted);
    }
    let mut system = SYSTEM.lock(at);
    let (System { tables, slots, table_pages }, inner) = system.parts();
    let tables = tables.as_mut().ok_or(Exhausted)?;
    let slot = slots.take(count as usize).ok_or(Exhausted)?;
    let mapping = Mapping { slot: slot as u32, pages: count, offset, bytes };
    let address_of = |page: u32| mapping.start() + u64::from(page) * PAGE;
    for page in 0..count {
        let mut source = TableSource { count: table_pages, at: inner };
        let mut table = || source.page();
        let physical = physical_of(page);
        let leaf = Leaf { access: allowed(leaf.access, physical), ..leaf };
        // SAFETY: the caller's; the address is this run's (I1).
        let mapped = unsafe { tables.map(address_of(page), physical, leaf, &mut table) };
        if mapped.is_err() {
            for page in 0..page {
                tables.unmap(address_of(page));
            }
            drop(system);
            // Nobody was told these addresses, but a processor may have read ahead.
            shootdown::flush_run(mapping.start(), count, at);
            release(&mapping, at);
            return Err(MapError::Exhausted);
        }
    }
    Ok(mapping)
}

/// Ends the mapping. On return no processor reaches the pages by these addresses, and the pages may be given to somebody else.
#[doc(alias = "MmUnmapIoSpace")]
pub fn unmap<L: Below<SpaceLock> + Below<Ipi>>(mapping: Mapping, at: &mut Irql<L>) {
    end(&mapping, at);
    release(&mapping, at);
}

/// The first half of [`unmap`]: the addresses stay taken, so that whoever still has one faults.
pub(super) fn end<L: Below<SpaceLock> + Below<Ipi>>(mapping: &Mapping, at: &mut Irql<L>) {
    {
        let mut system = SYSTEM.lock(at);
        let Some(tables) = &mut system.tables else { lost(mapping) };
        for page in 0..mapping.pages {
            tables.unmap(mapping.start() + u64::from(page) * PAGE);
        }
    }
    shootdown::flush_run(mapping.start(), mapping.pages, at);
}

/// The second half: the addresses may be handed out again (I1).
pub(super) fn release<L: Below<SpaceLock>>(mapping: &Mapping, at: &mut Irql<L>) {
    if !SYSTEM.lock(at).slots.give(mapping.slot as usize, mapping.pages as usize) {
        lost(mapping);
    }
}

/// The mapping of one page that `address` lies in, and the page: for whoever keeps nothing but the address.
pub(super) fn find<L: Below<SpaceLock>>(address: u64, at: &mut Irql<L>) -> Option<(Mapping, PageNumber)> {
    let system = SYSTEM.lock(at);
    let (physical, _) = system.tables.as_ref()?.look(address)?;
    let slot = ((address - SYSTEM_PTES) / PAGE) as u32;
    // SAFETY: system PTEs map pages that have an entry, or a device's, which nobody gives to the pool.
    let page = unsafe { PageNumber::new((physical / PAGE) as u32) };
    Some((Mapping { slot, pages: 1, offset: 0, bytes: PAGE }, page))
}

#[cold]
fn lost(mapping: &Mapping) -> ! {
    bugcheck(StopCode::MemoryManagement, [0x404, mapping.start(), mapping.pages.into(), 0])
}

/// System PTEs that are free; stale at once.
pub fn free<L: Below<SpaceLock>>(at: &mut Irql<L>) -> usize {
    SYSTEM.lock(at).slots.free()
}

/// Pages that became tables since bring-up: they stay.
pub fn table_pages<L: Below<SpaceLock>>(at: &mut Irql<L>) -> u32 {
    SYSTEM.lock(at).table_pages
}
