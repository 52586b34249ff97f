//! Rust's global allocator: the pool with a tag of its own.
//!
//! It is there for `alloc`'s collections, through their fallible calls (`try_reserve` and then `push`). What aborts when memory
//! runs out is kept out of the kernel by clippy (kernel/clippy.toml); [`Owned`](super::Owned) is the box that does not.
//!
//! IRQL:       at or below DISPATCH, as the pool: above, BAD_POOL_CALLER (8 to allocate, 9 to free; then IRQL, 0, size or address).
//! Invariants: I1 code at a rank from `PoolAccess` on does not come here: nothing in `mm` uses a collection, and nothing above these
//!                ranks runs at DISPATCH.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

use super::{Tag, allocate, free};
use crate::ke::bugcheck::{StopCode, bugcheck};
use crate::mm::Exhausted;
use crate::mm::pfn::PAGE_SIZE;

const RUST: Tag = Tag::new(b"Rust");

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

/// Runs `$call`, which may be unsafe, with a token for the level that this processor is at; the caller has none to pass in.
macro_rules! at_pool_level {
    ($at:ident => $call:expr, $kind:literal, $what:expr) => {
        // SAFETY: the caller of an allocator uses no token until it returns; and a rank that it may hold is below the pool's (I1).
        unsafe {
            crate::ke::current_level::at_current_level!($at => $call, above => {
                bugcheck(StopCode::BadPoolCaller, [$kind, above.into(), 0, $what as u64])
            })
        }
    };
}
pub(super) use at_pool_level;

/// Alignment comes with the size: the pool aligns to 16 bytes, and to a page from a page on.
fn size_for(layout: Layout) -> Result<usize, Exhausted> {
    match layout.align() {
        0..=16 => Ok(layout.size()),
        17..=PAGE_SIZE => Ok(layout.size().max(PAGE_SIZE)),
        _ => Err(Exhausted),
    }
}

// SAFETY: blocks are the pool's: distinct, large enough, aligned by `size_for`, and valid until they are freed. Exhaustion is
// null; nothing unwinds.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Ok(size) = size_for(layout) else { return core::ptr::null_mut() };
        let block = at_pool_level!(at => allocate(RUST, size, at), 8, size);
        block.map_or(core::ptr::null_mut(), |block| block.cast().as_ptr())
    }

    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller passes what `alloc` gave, which is not null.
        let block = unsafe { NonNull::new_unchecked(block) };
        // SAFETY: as above: a block of the pool, given up.
        at_pool_level!(at => free(block, RUST, at), 9, block.as_ptr());
    }
}
