//! What the registry needs of a machine, for host tests: the host's memory, and a time that a test reads.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use sync::irql::{Apc, Irql, MayBlock, Passive};

use crate::ob::hosted;
use crate::rtl::{NtStatus, vec};

/// Its waiters are threads of the host.
pub(super) type PushLock<T> = sync::PushLock<T, sync::event::hosted::ThreadEvent>;

/// A value's data.
pub(super) struct Data(Vec<u8>);

impl Data {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get<'a, L: MayBlock>(&'a self, at: &'a Irql<L>) -> &'a [u8] {
        at.check();
        &self.0
    }
}

/// A copy of `bytes`, unless this thread's allocations are refused.
pub(super) fn data(bytes: &[u8], at: &mut Irql<Apc>) -> Result<Data, NtStatus> {
    at.check();
    if hosted::is_refusing() {
        return Err(NtStatus::INSUFFICIENT_RESOURCES);
    }
    vec::copy(bytes).map(Data)
}

#[expect(clippy::disallowed_macros, reason = "of a host's tests, where memory doesn't run out")]
/// A block for a string, which [`free_string`] frees.
pub(super) fn string(bytes: usize, at: &mut Irql<Passive>) -> Result<NonNull<u8>, NtStatus> {
    at.check();
    let units = std::vec![0_u16; bytes.div_ceil(2)].into_boxed_slice();
    Ok(NonNull::from(std::boxed::Box::leak(units)).cast())
}

/// Frees the block that a query made for a string of `bytes`, the zero behind it included.
///
/// # Safety
/// It is such a block, and nobody uses it any more.
pub unsafe fn free_string(block: NonNull<u16>, bytes: usize) {
    let units = NonNull::slice_from_raw_parts(block, bytes.div_ceil(2));
    // SAFETY: the caller's: made by `string`.
    drop(unsafe { std::boxed::Box::from_raw(units.as_ptr()) });
}

static TIME: AtomicU64 = AtomicU64::new(1);

/// Later than ever before.
pub(super) fn now() -> u64 {
    TIME.fetch_add(1, Ordering::Relaxed)
}
