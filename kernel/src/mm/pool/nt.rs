//! Pool by NT's names, kinds and flags: what the export table binds for drivers, which have a level and no token.
//!
//! | asked for | is |
//! |---|---|
//! | NonPagedPoolNx, POOL_FLAG_NON_PAGED | nonpaged pool |
//! | NonPagedPool, POOL_FLAG_NON_PAGED_EXECUTE | executable pool: written or run, never both (`mm::executable`) |
//! | PagedPool, POOL_FLAG_PAGED | paged pool |
//!
//! `ExAllocatePool2` clears unless told otherwise, and returns null unless told to raise; `ExAllocatePoolWithTag` does neither. A block is
//! freed by its address alone, whatever it was allocated by.
//!
//! IRQL:  nonpaged at or below DISPATCH, paged at or below APC; else BAD_POOL_CALLER (8 to allocate, 9 to free; level, kind, size or
//!        address), in every build.
//! Not as NT: nothing can be raised yet, as drivers have no exceptions: where NT raises, it is bugcheck 0x1E at once, which is what an
//!        exception is that no driver handles. Quota is not charged. Session pool is paged pool.
//! Tests: selftest `memory_executable::nt_*`; crash `nt_pool_*`.
//! Sources: WDK, `ExAllocatePoolWithTag`, `ExAllocatePool2`, `POOL_TYPE`, `POOL_FLAGS`, `ExFreePoolWithTag`, "Bug Check 0xC2".

use core::ptr::{NonNull, null_mut};

use arch::level::{APC, PASSIVE};
use sync::irql::{Apc, Below, Ipi, Irql, PageCacheAccess, Passive, PoolAccess, SpaceLock};

use super::heap::at_pool_level;
use super::{Tag, special};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::mm::layout::{self, PAGED_POOL};
use crate::mm::pfn::PAGE_SIZE;
use crate::mm::{Exhausted, executable, paged};
use crate::rtl::NtStatus;

/// POOL_FLAGS.
pub mod flags {
    /// Quota is charged: accepted.
    pub const USE_QUOTA: u64 = 0x01;
    /// Content need not be zero.
    pub const UNINITIALIZED: u64 = 0x02;
    /// Aligned to a cache line, which costs a page here.
    pub const CACHE_ALIGNED: u64 = 0x08;
    /// An exception instead of null.
    pub const RAISE_ON_FAILURE: u64 = 0x20;
    /// Nonpaged, not executable.
    pub const NON_PAGED: u64 = 0x40;
    /// Nonpaged, executable.
    pub const NON_PAGED_EXECUTE: u64 = 0x80;
    /// Paged.
    pub const PAGED: u64 = 0x100;
    /// What may be ignored where it isn't known.
    pub const OPTIONAL: u64 = 0xFFFF_FFFF_0000_0000;
}

/// What kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    NonPaged,
    Executable,
    Paged,
}

impl Kind {
    /// By POOL_TYPE: its low bit says paged, NonPagedPoolNx is 512; bits for must-succeed, alignment and raising are others.
    const fn of_type(pool_type: u32) -> Self {
        if pool_type & 1 != 0 {
            Self::Paged
        } else if pool_type & 512 != 0 {
            Self::NonPaged
        } else {
            Self::Executable
        }
    }

    /// By POOL_FLAGS: exactly one of three.
    const fn of_flags(wanted: u64) -> Option<Self> {
        match wanted & (flags::NON_PAGED | flags::NON_PAGED_EXECUTE | flags::PAGED) {
            flags::NON_PAGED => Some(Self::NonPaged),
            flags::NON_PAGED_EXECUTE => Some(Self::Executable),
            flags::PAGED => Some(Self::Paged),
            _ => None,
        }
    }

    fn allocate(self, size: usize, tag: Tag, zero: bool) -> Result<NonNull<u8>, Exhausted> {
        let block = match self {
            // NT's number of the kind is 1.
            Self::Paged => at_apc_or_below(8, size as u64, |at| {
                if zero { paged::allocate_zeroed(tag, size, at) } else { paged::allocate(tag, size, at) }
            })?,
            Self::NonPaged => at_pool_level!(at => {
                if zero { super::allocate_zeroed(tag, size, at) } else { super::allocate(tag, size, at) }
            }, 8, size)?,
            Self::Executable => at_pool_level!(at => executable::allocate(tag, size, at), 8, size)?,
        };
        Ok(block.cast())
    }
}

/// Runs `f` at APC; the level is known from CR8 alone.
fn at_apc_or_below<R>(kind: u64, what: u64, f: impl FnOnce(&mut Irql<Apc>) -> R) -> R {
    // SAFETY: 1. the level was just read, and what interrupts this code restores it. 2. the caller uses no token until it returns.
    unsafe {
        match arch::irql::current() {
            PASSIVE => Irql::<Passive>::with(|at| f(&mut at.raise::<Apc>())),
            APC => Irql::<Apc>::with(f),
            level => bugcheck(StopCode::BadPoolCaller, [kind, level.into(), 1, what]),
        }
    }
}

/// By POOL_TYPE: null where there is none, unless its bit 4 asks to raise. Content unknown.
#[doc(alias = "ExAllocatePoolWithTag")]
pub fn allocate_with_tag(pool_type: u32, size: usize, tag: u32) -> *mut u8 {
    const RAISE: u32 = 16;
    match Kind::of_type(pool_type).allocate(size, Tag::from_value(tag), false) {
        Ok(block) => block.as_ptr(),
        Err(Exhausted) if pool_type & RAISE != 0 => raise(NtStatus::INSUFFICIENT_RESOURCES),
        Err(Exhausted) => null_mut(),
    }
}

/// By POOL_FLAGS: null, or an exception where that is asked for, where there is none or the flags contradict each other. Zero, unless
/// content is not asked for.
#[doc(alias = "ExAllocatePool2")]
pub fn allocate2(wanted: u64, size: usize, tag: u32) -> *mut u8 {
    let known = flags::USE_QUOTA
        | flags::UNINITIALIZED
        | flags::CACHE_ALIGNED
        | flags::RAISE_ON_FAILURE
        | flags::NON_PAGED
        | flags::NON_PAGED_EXECUTE
        | flags::PAGED
        | flags::OPTIONAL;
    let kind = Kind::of_flags(wanted).filter(|_| wanted & !known == 0 && size != 0 && tag != 0);
    let failed = match kind {
        None => NtStatus::INVALID_PARAMETER,
        Some(kind) => {
            let size = if wanted & flags::CACHE_ALIGNED != 0 { size.max(PAGE_SIZE) } else { size };
            match kind.allocate(size, Tag::from_value(tag), wanted & flags::UNINITIALIZED == 0) {
                Ok(block) => return block.as_ptr(),
                Err(Exhausted) => NtStatus::INSUFFICIENT_RESOURCES,
            }
        }
    };
    if wanted & flags::RAISE_ON_FAILURE != 0 { raise(failed) } else { null_mut() }
}

/// Where NT raises: nobody can handle it yet.
fn raise(status: NtStatus) -> ! {
    let status = i64::from(status.0 as i32) as u64;
    bugcheck(StopCode::KmodeExceptionNotHandled, [status, 0, 0, 0])
}

/// Takes a block of any kind back.
///
/// # Bugchecks
/// As [`super::free`].
///
/// # Safety
/// It came from one of the functions here, and nobody uses it any more.
#[doc(alias = "ExFreePoolWithTag")]
pub unsafe fn free_with_tag(start: NonNull<u8>, tag: u32) {
    let (address, tag) = (start.addr().get() as u64, Tag::from_value(tag));
    match layout::part(address) {
        Some(PAGED_POOL) => at_apc_or_below(9, address, |at| {
            // SAFETY: the caller's.
            unsafe { paged::free(start, tag, at) };
        }),
        // SAFETY (of the unsafe block that the macro makes): the caller's.
        Some(layout::SYSTEM_PTES) => at_pool_level!(at => free_mapped(start, tag, at), 9, address),
        // SAFETY: as above.
        _ => at_pool_level!(at => super::free(start, tag, at), 9, address),
    }
}

/// A block among the system PTEs: executable, or special pool's.
///
/// # Safety
/// As [`free_with_tag`].
unsafe fn free_mapped<L>(start: NonNull<u8>, tag: Tag, at: &mut Irql<L>)
where
    L: Below<PoolAccess> + Below<SpaceLock> + Below<PageCacheAccess> + Below<Ipi>,
{
    let is_executable = executable::is_executable(start.addr().get() as u64, at);
    // SAFETY: the caller's.
    unsafe {
        if is_executable || !special::is_in_use() {
            executable::free(start, tag, at);
        } else {
            super::free(start, tag, at);
        }
    }
}
