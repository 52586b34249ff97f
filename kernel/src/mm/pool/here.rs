//! This machine's pool.

use core::panic::Location;
use core::ptr::NonNull;

use sync::irql::{Below, Irql, PageCacheAccess, PoolAccess};

use super::sites::Live;
use super::{At, Pool, Statistics, Tag, special};
use crate::ke::prcb::{self, Prcb};
use crate::mm::local::Local;
use crate::mm::pfn::PAGE_SIZE;
use crate::mm::{Exhausted, is_refused, physical};

/// Places in the code that the checked build's account tells apart; none in a release build.
const SITES: usize = if CHECKED { 512 } else { 0 };

const CHECKED: bool = cfg!(feature = "verifier");

static POOL: Pool<SITES> = Pool::new(physical::manager());

/// Runs `f` with the right to this processor's lists.
#[inline(always)]
fn here<L: Below<PoolAccess>, R>(at: &mut Irql<L>, f: impl FnOnce(&Local, &mut At) -> R) -> R {
    let mut raised = at.raise::<PoolAccess>();
    let (here, at) = Prcb::here(&mut raised);
    f(&here.memory, at)
}

/// `size` bytes for `tag`, aligned to 16, to a page if `size` is at least a page; content unknown. They are written and read,
/// never executed. At or below DISPATCH; locks of a rank below `PoolAccess` may be held.
///
/// # Errors
/// STATUS_INSUFFICIENT_RESOURCES; nothing was taken then.
#[doc(alias = "ExAllocatePoolWithTag")]
#[doc(alias = "ExAllocatePool2")]
#[inline]
#[track_caller]
pub fn allocate<L: Below<PoolAccess>>(
    tag: Tag,
    size: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<[u8]>, Exhausted> {
    let site = Location::caller();
    if is_refused() {
        return Err(Exhausted);
    }
    here(at, |local, at| {
        if CHECKED && special::wants(tag, size) {
            return allocate_special(tag, size, site, local, at);
        }
        POOL.allocate(tag, size, site, local, at)
    })
}

#[cold]
fn allocate_special(
    tag: Tag,
    size: usize,
    site: &'static Location<'static>,
    local: &Local,
    at: &mut At,
) -> Result<NonNull<[u8]>, Exhausted> {
    let number = POOL.account(tag, site, (size, PAGE_SIZE), local, at);
    match special::allocate(tag, size, number, at) {
        Ok(block) => Ok(NonNull::slice_from_raw_parts(block, size)),
        Err(Exhausted) => {
            POOL.unaccount(tag, number, (size, PAGE_SIZE), local, at);
            Err(Exhausted)
        }
    }
}

/// The same, cleared: what `ExAllocatePool2` does unless told otherwise.
#[doc(alias = "ExAllocatePoolZero")]
#[inline]
#[track_caller]
pub fn allocate_zeroed<L: Below<PoolAccess>>(
    tag: Tag,
    size: usize,
    at: &mut Irql<L>,
) -> Result<NonNull<[u8]>, Exhausted> {
    let block = allocate(tag, size, at)?;
    // SAFETY: just allocated, `size` bytes.
    unsafe { block.cast::<u8>().write_bytes(0, size) };
    Ok(block)
}

/// Takes a block back. At or below DISPATCH, on any processor.
///
/// # Bugchecks
/// As [`Pool::free`].
///
/// # Safety
/// As [`Pool::free`]: a block of this pool, and nobody uses it any more.
#[doc(alias = "ExFreePoolWithTag")]
#[inline]
#[track_caller]
pub unsafe fn free<L: Below<PoolAccess>>(block: NonNull<u8>, tag: Tag, at: &mut Irql<L>) {
    let site = Location::caller();
    here(at, |local, at| {
        if CHECKED && special::is_special(block.addr().get()) {
            let (number, size) = special::free(block, tag, at);
            return POOL.unaccount(tag, number, (size, PAGE_SIZE), local, at);
        }
        // SAFETY: the caller's.
        unsafe { POOL.free(block, tag, site, local, at) }
    });
}

/// What `tag` has; stale at once.
pub fn statistics(tag: Tag) -> Statistics {
    POOL.statistics(tag, prcb::all().map(|processor| &processor.prcb().memory))
}

/// Gives what this processor keeps back to the pool, and empty pages to the page manager.
pub fn drain<L: Below<PoolAccess>>(at: &mut Irql<L>) {
    here(at, |local, at| {
        POOL.drain(local, at);
        special::drain(at);
    });
}

/// [`drain`], and this processor's cached pages as well.
pub fn drain_everything<L: Below<PoolAccess> + Below<PageCacheAccess>>(at: &mut Irql<L>) {
    drain(at);
    physical::drain(at);
}

/// Checked build: remembers what is in use; [`leaks`] tells what came since.
pub fn mark<L: Below<PoolAccess>>(at: &mut Irql<L>) {
    here(at, |_, at| POOL.mark(at));
}

/// Checked build: every tag and place in the code that has more blocks than at the last [`mark`].
pub fn leaks<L: Below<PoolAccess>>(at: &mut Irql<L>, tell: impl FnMut(&Live)) {
    here(at, |_, at| POOL.leaks(at, tell));
}
