//! `MmMapIoSpace` as drivers know it: physical addresses mapped with a kind of caching, by address and length. What maps is
//! `system_pte`; here are NT's kinds of caching and an unmap that has nothing but the address.
//!
//! IRQL:   at or below DISPATCH, no lock from `SpaceLock` on.
//! Not as NT: memory is mapped write-back or not at all, the image's code and constants to be read; nothing compares two mappings of one
//!         device's page.
//! Tests:  selftest `memory_io::*`.
//! Sources: WDK, `MmMapIoSpace`, `MmUnmapIoSpace`, MEMORY_CACHING_TYPE; SDM vol. 3, "Page Attribute Table".

use core::ptr::NonNull;

use sync::irql::{Below, Ipi, Irql, SpaceLock};

use super::layout;
use super::system_pte::{self, MapError, Mapping};
use super::tables::Caching;
use crate::ke::bugcheck::{StopCode, bugcheck};

/// NT's kinds of caching, by their numbers.
#[doc(alias = "MEMORY_CACHING_TYPE")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CachingType {
    /// Registers.
    NonCached = 0,
    /// As memory.
    Cached = 1,
    /// Writes are gathered: frame buffers.
    WriteCombined = 2,
    /// As memory, on x64.
    HardwareCoherentCached = 3,
    /// Uncached, on x64.
    NonCachedUnordered = 4,
    /// As write-combined, on x64.
    UswcCached = 5,
}

impl CachingType {
    /// The kind of this number; `None`: STATUS_INVALID_PARAMETER.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::NonCached,
            1 => Self::Cached,
            2 => Self::WriteCombined,
            3 => Self::HardwareCoherentCached,
            4 => Self::NonCachedUnordered,
            5 => Self::UswcCached,
            _ => return None,
        })
    }

    /// What the processor is told.
    pub const fn caching(self) -> Caching {
        match self {
            Self::Cached | Self::HardwareCoherentCached => Caching::WriteBack,
            Self::NonCached | Self::NonCachedUnordered => Caching::Uncached,
            Self::WriteCombined | Self::UswcCached => Caching::WriteCombining,
        }
    }
}

/// Maps `bytes` from physical address `physical` on, writable and never executable.
///
/// # Errors
/// As [`system_pte::map_io`]: null for a driver.
///
/// # Safety
/// As [`system_pte::map_io`].
#[doc(alias = "MmMapIoSpace")]
pub unsafe fn map<L: Below<SpaceLock> + Below<Ipi>>(
    physical: u64,
    bytes: u64,
    caching: CachingType,
    at: &mut Irql<L>,
) -> Result<NonNull<u8>, MapError> {
    // SAFETY: the caller's.
    unsafe { system_pte::map_io(physical, bytes, caching.caching(), at) }.map(|mapping| mapping.address())
}

/// Ends it. On return no processor reaches it by this address.
///
/// # Bugchecks
/// MEMORY_MANAGEMENT (0x40C, address, bytes) for an address that is none of a mapping; (0x403) and (0x404) for pages that aren't
/// mapped, or other than were mapped together.
///
/// # Safety
/// Both are what [`map`] was asked for and gave, and nobody uses the address any more.
#[doc(alias = "MmUnmapIoSpace")]
pub unsafe fn unmap<L: Below<SpaceLock> + Below<Ipi>>(address: NonNull<u8>, bytes: u64, at: &mut Irql<L>) {
    let start = address.addr().get() as u64;
    if bytes == 0 || layout::part(start) != Some(layout::SYSTEM_PTES) {
        bugcheck(StopCode::MemoryManagement, [0x40C, start, bytes, 0]);
    }
    // SAFETY: the caller's.
    system_pte::unmap(unsafe { Mapping::from_address(address, bytes) }, at);
}
