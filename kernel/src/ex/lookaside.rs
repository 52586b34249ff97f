//! Lookaside lists: blocks of one size and tag that are kept at hand, a list for each processor, over nonpaged pool.
//!
//! The pool has lists of its own for each processor, by size class. This one spares its lock-out, its header and its account; and
//! what it hands out was used for the same before.
//!
//! Owns:       [`Lookaside`].
//! IRQL:       up to DISPATCH. A thread below DISPATCH may move between the choice of a list and its use; any list will do.
//! Invariants: I1 what is in a list is a block of the pool, with this tag and at least this size, and nobody's.
//!             I2 its memory stays mapped, as `slist` asks for: the pool's blocks are in the direct map, which is never unmapped. What
//!                special pool gave is not; it goes straight back.
//! Not as NT:  the depth is fixed, where NT adapts it to the rate; no allocate and free routines of the user.
//! Tests:      selftest `ex::lookaside_*`.
//! Sources:    WDK, "Using Lookaside Lists".

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sync::irql::{Below, Irql, PoolAccess};
use sync::slist::{Entry, Header};

use crate::ke::prcb::MAX_PROCESSORS;
use crate::mm::Exhausted;
use crate::mm::pool::{self, Tag};

/// Blocks that a processor's list keeps.
const DEPTH: u16 = 32;

/// One processor's list: a cache line.
#[repr(align(64))]
struct Own {
    blocks: Header,
    /// Allocations that found a block here.
    hits: AtomicU64,
}

/// See the module.
#[doc(alias = "LOOKASIDE_LIST_EX")]
#[doc(alias = "NPAGED_LOOKASIDE_LIST")]
pub struct Lookaside {
    tag: Tag,
    size: usize,
    own: [Own; MAX_PROCESSORS],
}

impl Lookaside {
    /// An empty one, for blocks of `size` bytes.
    #[doc(alias = "ExInitializeLookasideListEx")]
    #[doc(alias = "ExInitializeNPagedLookasideList")]
    pub const fn new(tag: Tag, size: usize) -> Self {
        let size = if size < size_of::<Entry>() { size_of::<Entry>() } else { size };
        Self {
            tag,
            size,
            own: [const { Own { blocks: Header::new(), hits: AtomicU64::new(0) } }; MAX_PROCESSORS],
        }
    }

    #[inline(always)]
    fn here(&self) -> &Own {
        &self.own[arch::cpu::number() as usize % MAX_PROCESSORS]
    }

    /// A block, aligned to 16; content unknown.
    ///
    /// # Errors
    /// STATUS_INSUFFICIENT_RESOURCES.
    #[doc(alias = "ExAllocateFromLookasideListEx")]
    #[doc(alias = "ExAllocateFromNPagedLookasideList")]
    #[inline]
    pub fn allocate<L: Below<PoolAccess>>(&self, at: &mut Irql<L>) -> Result<NonNull<u8>, Exhausted> {
        let here = self.here();
        if let Some(entry) = here.blocks.pop() {
            here.hits.store(here.hits.load(Relaxed).wrapping_add(1), Relaxed);
            return Ok(entry.cast());
        }
        Ok(pool::allocate(self.tag, self.size, at)?.cast())
    }

    /// Takes a block back.
    ///
    /// # Safety
    /// It came from this one's [`allocate`](Self::allocate), and nobody uses it any more.
    #[doc(alias = "ExFreeToLookasideListEx")]
    #[doc(alias = "ExFreeToNPagedLookasideList")]
    #[inline]
    pub unsafe fn free<L: Below<PoolAccess>>(&self, block: NonNull<u8>, at: &mut Irql<L>) {
        let own = &self.here().blocks;
        if own.depth() < DEPTH && !pool::special::is_special(block.addr().get()) {
            // SAFETY: 1. the caller's, and 16 bytes at least. 2. I2.
            unsafe {
                let entry = block.cast::<Entry>();
                entry.write(Entry::new());
                own.push(entry);
            }
        } else {
            // SAFETY: the caller's; I1.
            unsafe { pool::free(block, self.tag, at) };
        }
    }

    /// Gives what is kept back to the pool. Blocks that are in use may still be freed, to the lists or the pool.
    #[doc(alias = "ExFlushLookasideListEx")]
    #[doc(alias = "ExDeleteLookasideListEx")]
    #[doc(alias = "ExDeleteNPagedLookasideList")]
    pub fn flush<L: Below<PoolAccess>>(&self, at: &mut Irql<L>) {
        for own in &self.own {
            let mut next = own.blocks.flush();
            while let Some(entry) = next {
                // SAFETY: flushed, so ours; the link is read before the block goes.
                unsafe {
                    next = entry.as_ref().next();
                    pool::free(entry.cast(), self.tag, at);
                }
            }
        }
    }

    /// How many blocks are kept, and how many allocations found one. Stale at once, and roughly counted.
    pub fn kept_and_hits(&self) -> (u64, u64) {
        self.own.iter().fold((0, 0), |(kept, hits), own| {
            (kept + u64::from(own.blocks.depth()), hits + own.hits.load(Relaxed))
        })
    }
}
