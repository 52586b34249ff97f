//! Who holds a mutant, and what a thread holds: the hand-over of a mutant to the thread whose wait it ends.
//!
//! A thread's list is written by the thread while it runs, and by whoever ends its wait by a mutant, on any processor. There is no
//! lock of it: the protocol is in who may, and who sees what.
//!
//! ```text
//!  the waiter W                                the releaser R, holding the lock of the mutant
//!  its list changed, as long as it runs
//!  m's lock: its block registered ───────────► m's lock: the block found, W's wait won
//!                                              release(m, R's list); acquire(m, W, W's list)
//!  resumed by the hand-off (Acquire), or ◄──── W made ready, or: the lock released
//!  m's lock taken to take the block out
//!  W's list is its own again
//! ```
//!
//! Owns:       [`Ownership`], a mutant's part; [`Held`], a thread's.
//! Called by:  kernel/ke/mutant.
//! IRQL:       DISPATCH, with the mutant's lock held.
//! Invariants: I1 a mutant is in the list of `owner`, and no other, exactly while it is held. Both change under the mutant's lock. While it
//!                is free, `owner` is whoever held it last.
//!             I2 a list is its thread's while that doesn't wait, and from the end of its wait until that has returned whoever ended it by a
//!                mutant's, of whom there is one (`wait_word`, I1).
//! Ordering:   Relaxed: the lock and the hand-off order it. Atomics only for who asks whether a list is empty.
//! Tests:      tests/models/tests/mutant.rs (I1, I2).

use core::hint::cold_path;
use core::ptr;

use crate::prim::{AtomicPtr, Ordering, UnsafeCell, const_unless_loom};

/// A mutant: what has an [`Ownership`].
pub trait Ownable: Sized {
    /// A thread.
    type Owner;

    /// Its own, always the same.
    fn ownership(&self) -> &Ownership<Self>;
}

/// A mutant's part. Where NT's KMUTANT has its list entry and its owner.
#[repr(C)]
pub struct Ownership<M: Ownable> {
    /// What its owner held before.
    next: AtomicPtr<M>,
    _back: usize,
    owner: AtomicPtr<M::Owner>,
}

/// The mutants that a thread holds, the last acquired first.
pub struct Held<M> {
    first: AtomicPtr<M>,
    /// I2, for a model to check: whoever changes the list has it alone. Nothing elsewhere.
    list: UnsafeCell<()>,
}

// SAFETY: the cell has no content.
unsafe impl<M> Sync for Held<M> {}
// SAFETY: as above.
unsafe impl<M> Send for Held<M> {}

impl<M: Ownable> Ownership<M> {
    const_unless_loom! {
        /// Nobody's.
        pub const fn new() -> Self {
            Self { next: AtomicPtr::new(ptr::null_mut()), _back: 0, owner: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Is it `thread` that holds it, if somebody does? Exact for the running thread, and under the lock.
    #[inline(always)]
    pub fn is_by(&self, thread: &M::Owner) -> bool {
        ptr::eq(self.owner.load(Ordering::Relaxed), thread)
    }

    /// Who holds it, or did last. Stale at once.
    pub fn last(&self) -> *const M::Owner {
        self.owner.load(Ordering::Relaxed)
    }
}

impl<M: Ownable> Default for Ownership<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Ownable> Held<M> {
    const_unless_loom! {
        /// None.
        pub const fn new() -> Self {
            Self { first: AtomicPtr::new(ptr::null_mut()), list: UnsafeCell::new(()) }
        }
    }

    /// Does it hold none? Stale at once for whoever's the list is not.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// The last that was acquired.
    ///
    /// # Safety
    /// The list is the caller's (I2); mutants stay while they are held.
    #[inline(always)]
    pub unsafe fn first(&self) -> Option<&M> {
        self.list.with(|_| ());
        // SAFETY: the caller's.
        unsafe { self.first.load(Ordering::Relaxed).as_ref() }
    }

    /// `mutant` is held by `owner` from now on, whose list this is.
    ///
    /// # Safety
    /// The mutant's lock is held, and nobody holds it; the list is the caller's (I2).
    #[inline(always)]
    pub unsafe fn acquire(&self, mutant: &M, owner: &M::Owner) {
        self.list.with_mut(|_| ());
        let it = mutant.ownership();
        it.owner.store(ptr::from_ref(owner).cast_mut(), Ordering::Relaxed);
        it.next.store(self.first.load(Ordering::Relaxed), Ordering::Relaxed);
        self.first.store(ptr::from_ref(mutant).cast_mut(), Ordering::Relaxed);
    }

    /// `mutant` is held by nobody from now on.
    ///
    /// # Safety
    /// The mutant's lock is held, and so is it, by the thread whose list this is; the list is the caller's (I2).
    #[inline(always)]
    pub unsafe fn release(&self, mutant: &M) {
        self.list.with_mut(|_| ());
        if !ptr::eq(self.first.load(Ordering::Relaxed), mutant) {
            cold_path();
            // SAFETY: the caller's; it is not the first.
            return unsafe { self.release_inner(mutant) };
        }
        self.first.store(mutant.ownership().next.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Mutants are mostly released in the reverse order; this one is not the last that was acquired.
    ///
    /// # Safety
    /// It is in the list (I1), which is the caller's.
    #[cold]
    #[inline(never)]
    unsafe fn release_inner(&self, mutant: &M) {
        let mut at = &self.first;
        // SAFETY: the caller's; the list ends with this one at the latest.
        unsafe {
            while !ptr::eq(at.load(Ordering::Relaxed), mutant) {
                at = &(*at.load(Ordering::Relaxed)).ownership().next;
            }
        }
        at.store(mutant.ownership().next.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl<M: Ownable> Default for Held<M> {
    fn default() -> Self {
        Self::new()
    }
}
