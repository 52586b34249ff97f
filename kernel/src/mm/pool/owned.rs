//! A box in the pool that says so when there is no memory.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use sync::irql::{Below, Irql, PoolAccess};

use super::heap::at_pool_level;
use super::{Tag, allocate, allocate_zeroed, free};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::mm::Exhausted;
use crate::mm::pfn::PAGE_SIZE;

/// A `T` in nonpaged pool. It is dropped at or below DISPATCH (else BAD_POOL_CALLER, as for the allocator), holding no lock from
/// `PoolAccess` on.
pub struct Owned<T> {
    value: NonNull<T>,
    tag: Tag,
}

// SAFETY: it owns the T, like a box.
unsafe impl<T: Send> Send for Owned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Owned<T> {}

impl<T> Owned<T> {
    const BYTES: usize = {
        assert!(align_of::<T>() <= PAGE_SIZE, "the pool aligns to a page at most");
        if align_of::<T>() > 16 && size_of::<T>() < PAGE_SIZE { PAGE_SIZE } else { size_of::<T>() }
    };

    /// Moves `value` there, or gives it back.
    #[track_caller]
    pub fn try_new<L: Below<PoolAccess>>(
        tag: Tag,
        value: T,
        at: &mut Irql<L>,
    ) -> Result<Self, (Exhausted, T)> {
        let Ok(block) = allocate(tag, Self::BYTES, at) else { return Err((Exhausted, value)) };
        let block = block.cast::<T>();
        // SAFETY: a fresh block, large enough and aligned.
        unsafe { block.write(value) };
        Ok(Self { value: block, tag })
    }

    /// The value stays for good, or until [`from_raw`](Self::from_raw).
    pub fn into_raw(self) -> NonNull<T> {
        let value = self.value;
        core::mem::forget(self);
        value
    }

    /// The value, out of the pool.
    pub fn into_inner<L: Below<PoolAccess>>(self, at: &mut Irql<L>) -> T {
        let (value, tag) = (self.value, self.tag);
        core::mem::forget(self);
        // SAFETY: its own value, moved out; then the block that `try_new` was given, with its tag.
        unsafe {
            let moved = value.read();
            free(value.cast(), tag, at);
            moved
        }
    }

    /// Owns it again.
    ///
    /// # Safety
    /// `value` came from [`into_raw`](Self::into_raw) of a box with this tag, once, and nobody else uses it.
    pub unsafe fn from_raw(value: NonNull<T>, tag: Tag) -> Self {
        Self { value, tag }
    }
}

impl<const N: usize> Owned<[u8; N]> {
    /// Zeroes, which were on nobody's stack: for arrays that would fill it.
    #[track_caller]
    pub fn try_zeroed<L: Below<PoolAccess>>(tag: Tag, at: &mut Irql<L>) -> Result<Self, Exhausted> {
        let block = allocate_zeroed(tag, Self::BYTES, at)?;
        Ok(Self { value: block.cast(), tag })
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: its own value, alive until the drop.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and borrowed uniquely.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: its own value, not used afterwards.
        unsafe { self.value.drop_in_place() };
        let (block, tag) = (self.value.cast::<u8>(), self.tag);
        // SAFETY: the block that `try_new` was given, with its tag.
        at_pool_level!(at => free(block, tag, at), 9, block.as_ptr());
    }
}
