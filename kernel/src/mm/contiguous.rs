//! Physically contiguous memory for drivers, by the address at which the kernel reaches it.
//!
//! IRQL:    at or below DISPATCH, no lock from `PageCacheAccess` on.
//! Invariants: I1 the first page's entry has use `Contiguous` and as owner how many there are, until they are freed.
//! Not as NT: memory is write-back whatever is asked for, since the HHDM maps it so; on x64 devices snoop the caches. A boundary is
//!          a power of two. The lowest address is kept to by whole free blocks: one that straddles it is passed over.
//! Tests:   selftest `memory_contiguous::*`; tests/props/tests/mm_pages.rs (`Op::Within`).
//! Sources: WDK, `MmAllocateContiguousMemorySpecifyCache`, `MmFreeContiguousMemory`, "Bug Check 0xC2".

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use arch::paging::PAGE;
use sync::irql::{Below, Irql, PageCacheAccess};

use super::pages::Page;
use super::pfn::{PageNumber, Use};
use super::ranges::PageRange;
use super::{Exhausted, physical};
use crate::ke::bugcheck::{StopCode, bugcheck};

/// Where the memory is to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// No byte below this.
    pub lowest: u64,
    /// No byte above this.
    pub highest: u64,
    /// No multiple of this is crossed; zero, or a power of two.
    pub boundary: u64,
}

impl Place {
    /// Anywhere.
    pub const ANYWHERE: Self = Self { lowest: 0, highest: u64::MAX, boundary: 0 };

    /// Where addresses of `bits` bits reach.
    pub const fn below_bits(bits: u32) -> Self {
        Self { highest: (1 << bits) - 1, ..Self::ANYWHERE }
    }

    /// The pages of the range, and the power of two, in pages, that `count` pages in a row have to be aligned to. `None`: there is no
    /// such place.
    fn pages(self, count: u32) -> Option<(PageRange, u8)> {
        let page = |address: u64| u32::try_from(address / PAGE).unwrap_or(u32::MAX);
        let end = self.highest.checked_add(1).map_or(u32::MAX, page);
        let within = PageRange { start: page(self.lowest.checked_next_multiple_of(PAGE)?), end };
        if self.boundary == 0 {
            return Some((within, 0));
        }
        if !self.boundary.is_power_of_two() || u64::from(count) * PAGE > self.boundary {
            return None;
        }
        // Aligned to their number rounded up, they cross no multiple of anything larger.
        Some((within, u8::try_from(count.checked_next_power_of_two()?.trailing_zeros()).ok()?))
    }
}

/// `bytes` bytes in a row, content unknown, at the address where they are read and written; page-aligned.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES: null for a driver.
#[doc(alias = "MmAllocateContiguousMemory")]
#[doc(alias = "MmAllocateContiguousMemorySpecifyCache")]
pub fn allocate<L: Below<PageCacheAccess>>(
    bytes: u64,
    place: Place,
    at: &mut Irql<L>,
) -> Result<NonNull<u8>, Exhausted> {
    let count = u32::try_from(bytes.div_ceil(PAGE)).ok().filter(|&count| count > 0).ok_or(Exhausted)?;
    let (within, align) = place.pages(count).ok_or(Exhausted)?;
    let first = physical::allocate_contiguous_within(count, align, within, at)?.into_number();
    let memory = physical::manager().memory();
    let entry = memory.entry(first);
    entry.set_use(Use::Contiguous);
    entry.owner.store(count.into(), Ordering::Relaxed);
    // SAFETY: a mapped page is not at address zero.
    Ok(unsafe { NonNull::new_unchecked(physical::address(first)) })
}

/// Takes it back.
///
/// # Bugchecks
/// BAD_POOL_CALLER (0x60, address) for what was not allocated here, or is free already.
///
/// # Safety
/// It came from [`allocate`], and nobody uses it any more.
#[doc(alias = "MmFreeContiguousMemory")]
#[doc(alias = "MmFreeContiguousMemorySpecifyCache")]
pub unsafe fn free<L: Below<PageCacheAccess>>(start: NonNull<u8>, at: &mut Irql<L>) {
    let memory = physical::manager().memory();
    let address = start.addr().get();
    // SAFETY: the address of a page, by the caller's word.
    let first = unsafe { PageNumber::new(memory.number_of(address)) };
    let entry = memory.entry(first);
    if !entry.is_used_as(Use::Contiguous) || !(address as u64).is_multiple_of(PAGE) {
        bugcheck(StopCode::BadPoolCaller, [0x60, address as u64, 0, 0]);
    }
    let count = entry.owner.load(Ordering::Relaxed) as u32;
    entry.set_use(Use::Page);
    // SAFETY: taken by `allocate`, that many (I1).
    unsafe { physical::free_contiguous(Page::from_number(first), count, at) };
}

/// The physical address of memory that has an address in the kernel's half; `None`: nothing is there.
#[doc(alias = "MmGetPhysicalAddress")]
pub fn physical_address(address: NonNull<u8>) -> Option<u64> {
    arch::paging::translate(address.addr().get() as u64).map(|(physical, _)| physical)
}
