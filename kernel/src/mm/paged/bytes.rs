//! Bytes in paged pool.

use core::ptr::NonNull;

use sync::irql::{Apc, AtOrBelow, Irql, MayBlock};

use super::{allocate, at_apc, free};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::mm::Exhausted;
use crate::mm::pool::Tag;

/// Bytes that never change, in paged pool: read by who has a token at which a page fault can be resolved. Dropped at or below APC, else
/// BAD_POOL_CALLER.
pub struct PagedBytes {
    bytes: NonNull<[u8]>,
    tag: Tag,
}

// SAFETY: it owns its bytes, like a boxed slice.
unsafe impl Send for PagedBytes {}
// SAFETY: as above; they are only read.
unsafe impl Sync for PagedBytes {}

impl PagedBytes {
    /// A copy.
    ///
    /// # Errors
    /// There is no memory.
    #[track_caller]
    pub fn copy_of<L: MayBlock + AtOrBelow<Apc>>(
        tag: Tag,
        bytes: &[u8],
        at: &mut Irql<L>,
    ) -> Result<Self, Exhausted> {
        let block = allocate(tag, bytes.len(), at)?;
        // SAFETY: a fresh block of that many bytes, at or below APC.
        unsafe { block.cast::<u8>().copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Ok(Self { bytes: block, tag })
    }

    /// How many; touches none.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, for as long as the level stays at or below APC.
    #[inline]
    pub fn get<'a, L: MayBlock>(&'a self, at: &'a Irql<L>) -> &'a [u8] {
        at.check();
        // SAFETY: its own, written when it was made, alive until the drop.
        unsafe { self.bytes.as_ref() }
    }
}

impl Drop for PagedBytes {
    fn drop(&mut self) {
        let (block, level) = (self.bytes.cast::<u8>(), arch::irql::current());
        if level > arch::level::APC {
            bugcheck(StopCode::BadPoolCaller, [9, level.into(), 1, block.addr().get() as u64]);
        }
        at_apc(|at| {
            // SAFETY: the block that `copy_of` was given, with its tag.
            unsafe { free(block, self.tag, at) };
        });
    }
}
