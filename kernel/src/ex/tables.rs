//! Memory for a resource's owners: nonpaged pool.

use core::ptr::NonNull;

use sync::event::{MaySignal, MayWait};
use sync::irql::{Dispatch, Irql};
use sync::resource::{OwnerEntry, Tables};

use crate::ke::timer::Due;
use crate::ke::wait;
use crate::mm::pool::{self, Tag};

const TAG: Tag = Tag::new(b"ReTa");
/// How long a thread that found no memory waits before it tries again, in units of 100 ns: ten milliseconds.
const PAUSE: u64 = 100_000;

/// See the module.
pub struct PoolTables;

// SAFETY: a block of its own each time, of that many entries.
unsafe impl Tables for PoolTables {
    fn allocate<L: MaySignal>(len: u32, at: &mut Irql<L>) -> Option<NonNull<[OwnerEntry]>> {
        let bytes = (len as usize).checked_mul(size_of::<OwnerEntry>())?;
        let block = pool::allocate(TAG, bytes, &mut at.raise::<Dispatch>()).ok()?;
        Some(NonNull::slice_from_raw_parts(block.cast(), len as usize))
    }

    unsafe fn free<L: MaySignal>(table: NonNull<[OwnerEntry]>, at: &mut Irql<L>) {
        // SAFETY: from `allocate`, and nobody's any more.
        unsafe { pool::free(table.cast(), TAG, &mut at.raise::<Dispatch>()) };
    }

    fn pause<L: MayWait>(at: &mut Irql<L>) {
        let _ = wait::delay(Due::In(PAUSE), at);
    }
}
