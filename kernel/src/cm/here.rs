//! What the registry needs of this machine: locks, paged memory, the time.

use core::ptr::NonNull;

use sync::irql::{Apc, Irql, Passive};

use crate::mm::paged::{self, PagedBytes};
use crate::mm::pool::Tag;
use crate::rtl::NtStatus;

pub(super) use crate::ex::PushLock;

/// A value's data.
pub(super) type Data = PagedBytes;

/// A copy of `bytes`.
#[track_caller]
pub(super) fn data(bytes: &[u8], at: &mut Irql<Apc>) -> Result<Data, NtStatus> {
    PagedBytes::copy_of(Tag::new(b"CmVa"), bytes, at).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)
}

/// A block of paged pool that a driver frees.
#[track_caller]
pub(super) fn string(bytes: usize, at: &mut Irql<Passive>) -> Result<NonNull<u8>, NtStatus> {
    let block = paged::allocate(Tag::new(b"CmSt"), bytes, at);
    block.map(NonNull::cast).map_err(|_| NtStatus::INSUFFICIENT_RESOURCES)
}

/// 100 ns since 1601, now.
pub(super) fn now() -> u64 {
    crate::ke::clock::system_time()
}
