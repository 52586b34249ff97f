//! Packets' memory: lookaside lists by the number of locations, the pool behind them and for larger ones.
//!
//! IRQL:       up to DISPATCH.
//! Tests:      selftest `io::*`; the runner's account of the pool.
//! Sources:    WDK, `IoAllocateIrp`, `IoFreeIrp`.

use core::ptr::NonNull;

use sync::irql::{Below, Irql, PoolAccess};

use super::MayDoIo;
use super::layout::{KIrp, allocation};
use super::packet::{self, MOST_LOCATIONS};
use crate::ex::lookaside::Lookaside;
use crate::mm::pool::{self, Tag};
use crate::rtl::NtStatus;

/// Of packets.
pub const TAG: Tag = Tag::new(b"Irp ");

/// Packets with at most so many locations come from lists.
const LISTED: usize = 4;

static LISTS: [Lookaside; LISTED] = [
    Lookaside::new(TAG, packet::size_for(1) as usize),
    Lookaside::new(TAG, packet::size_for(2) as usize),
    Lookaside::new(TAG, packet::size_for(3) as usize),
    Lookaside::new(TAG, packet::size_for(4) as usize),
];

/// A packet for a stack of so many devices, which is the caller's.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; STATUS_INVALID_PARAMETER: no such number.
#[doc(alias = "IoAllocateIrp")]
#[inline]
pub fn allocate<L: MayDoIo>(locations: i8, at: &mut Irql<L>) -> Result<NonNull<KIrp>, NtStatus> {
    if !(1..=MOST_LOCATIONS).contains(&locations) {
        return Err(NtStatus::INVALID_PARAMETER);
    }
    let (block, from) = match LISTS.get(locations as usize - 1) {
        Some(list) => (list.allocate(at).map(NonNull::cast), allocation::FROM_LISTS),
        None => {
            let bytes = packet::size_for(locations).into();
            (pool::allocate(TAG, bytes, at).map(NonNull::cast), allocation::FROM_POOL)
        }
    };
    let block = block.map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)?;
    // SAFETY: fresh, of that size, aligned to 16.
    unsafe { packet::initialize(block, locations, from) };
    Ok(block)
}

/// Gives a packet back.
///
/// # Safety
/// It came from [`allocate`], is the caller's, and no driver has it.
#[doc(alias = "IoFreeIrp")]
#[inline]
pub unsafe fn free<L: Below<PoolAccess>>(irp: NonNull<KIrp>, at: &mut Irql<L>) {
    // SAFETY: the caller's. No more a packet: a completion of what was freed is seen.
    unsafe {
        let locations = (*irp.as_ptr()).stack_count;
        (*irp.as_ptr()).kind = 0;
        match LISTS.get(locations as usize - 1) {
            Some(list) => list.free(irp.cast(), at),
            None => pool::free(irp.cast(), TAG, at),
        }
    }
}

/// Gives an ended packet back, if that isn't its maker's to do.
///
/// # Safety
/// As [`free`], but for where it came from.
#[inline]
pub(super) unsafe fn free_ended<L: Below<PoolAccess>>(irp: NonNull<KIrp>, at: &mut Irql<L>) {
    // SAFETY: the caller's.
    unsafe {
        if (*irp.as_ptr()).allocation_flags & allocation::KEPT == 0 {
            free(irp, at);
        }
    }
}

/// Gives what the lists keep back to the pool.
pub fn trim<L: Below<PoolAccess>>(at: &mut Irql<L>) {
    LISTS.iter().for_each(|list| list.flush(at));
}
