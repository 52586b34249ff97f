//! Cancellation of a request: between who cancels it, who queues it and who takes it to work on it, one has it in the end.
//!
//! ```text
//! queues it                              cancels it
//! routine: set (exchange)                cancelled: set
//! cancelled? no: it waits                routine: taken (exchange)
//!            yes: routine taken back ──►   there was one: it is called, once
//!                  got it: ends it itself   there was none: whoever works on it goes on
//!                  else: the canceller does
//! ```
//!
//! Both exchange the routine, so they are in one order: either the canceller finds the routine, or who set it sees `cancelled`.
//! Who takes the request to work on it takes the routine first; if it is gone, the request is the canceller's.
//!
//! Owns:       [`Cancelled`], [`RoutineSlot`], and what a cancel-safe queue does with them ([`Queue`]). Not: the queue itself.
//! Called by:  kernel/io/cancel.rs and csq.rs.
//! IRQL:       up to DISPATCH.
//! Invariants: I1 a routine that was set is taken once, by an exchange; who took it has the right to end the request.
//!             I2 of a cancel-safe queue: a request with a routine is in the queue; so is one whose routine a canceller took, until
//!                that one has removed it under the queue's lock.
//! Ordering:   the exchanges are AcqRel: who takes a routine sees what its setter did before, and a setter that comes after the taker
//!             of an empty slot sees `cancelled`.
//! Tests:      tests/models/tests/cancel.rs.
//! Sources:    WDK, `IoSetCancelRoutine`, `IoCancelIrp`, "Cancel-Safe IRP Queues".

use core::ptr::{self, NonNull};

use crate::prim::{AtomicPtr, AtomicU8, Ordering, const_unless_loom};

/// NT's BOOLEAN `Cancel` of an IRP: set once, for good.
#[repr(transparent)]
pub struct Cancelled(AtomicU8);

/// NT's `CancelRoutine` of an IRP; null: it can't be cancelled now. `F` is what the routine's address is the address of.
#[repr(transparent)]
pub struct RoutineSlot<F>(AtomicPtr<F>);

impl Cancelled {
    const_unless_loom! {
        /// Not.
        pub const fn new() -> Self {
            Self(AtomicU8::new(0))
        }
    }

    /// Has somebody asked for it? Once yes, always yes.
    #[inline(always)]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// For who has the request to itself.
    #[inline(always)]
    pub fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Default for Cancelled {
    fn default() -> Self {
        Self::new()
    }
}

impl<F> RoutineSlot<F> {
    const_unless_loom! {
        /// None is set.
        pub const fn new() -> Self {
            Self(AtomicPtr::new(ptr::null_mut()))
        }
    }

    /// Sets another routine, or null; returns the one that was set. Who gets one has taken it (I1).
    #[inline(always)]
    #[doc(alias = "IoSetCancelRoutine")]
    pub fn exchange(&self, routine: *mut F) -> *mut F {
        self.0.swap(routine, Ordering::AcqRel)
    }

    /// Is one set? Stale at once, but for who has the request to itself.
    #[inline(always)]
    pub fn is_set(&self) -> bool {
        !self.0.load(Ordering::Relaxed).is_null()
    }
}

impl<F> Default for RoutineSlot<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Asks for it, and takes the routine that is set; the caller calls it. Null: none.
#[inline]
pub fn request<F>(cancelled: &Cancelled, routine: &RoutineSlot<F>) -> *mut F {
    // Before the exchange: who sets a routine after it sees this.
    cancelled.0.store(1, Ordering::Relaxed);
    routine.exchange(ptr::null_mut())
}

/// A cancel-safe queue, as its protocol sees it: NT's IO_CSQ with its driver's routines.
///
/// # Safety
/// 1. Between `acquire` and `release` nobody else is between them.
/// 2. `peek` gives out what was inserted and not removed, in a fixed order.
/// 3. `cancelled` and `routine` are the same for a request for as long as it is in the queue.
pub unsafe trait Queue {
    /// A request.
    type Request;
    /// What a routine's address is the address of.
    type Routine;
    /// What `acquire` has to give to `release`.
    type Held;
    /// What an insert may be told.
    type Insert;
    /// What a peek may look for.
    type Wanted: Copy;

    /// The request's flag.
    ///
    /// # Safety
    /// The request is valid.
    unsafe fn cancelled<'r>(&self, request: NonNull<Self::Request>) -> &'r Cancelled;

    /// The request's slot.
    ///
    /// # Safety
    /// The request is valid.
    unsafe fn routine<'r>(&self, request: NonNull<Self::Request>) -> &'r RoutineSlot<Self::Routine>;

    /// Takes the queue's lock.
    fn acquire(&self) -> Self::Held;

    /// Releases it.
    fn release(&self, held: Self::Held);

    /// Puts it in, or refuses with what the caller gets back.
    ///
    /// # Safety
    /// The lock is held, the request valid and in no queue.
    unsafe fn insert(&self, request: NonNull<Self::Request>, how: Self::Insert) -> Result<(), u32>;

    /// Takes it out.
    ///
    /// # Safety
    /// The lock is held, and it is in this queue.
    unsafe fn remove(&self, request: NonNull<Self::Request>);

    /// The one behind `after`, or the first, that is wanted.
    ///
    /// # Safety
    /// The lock is held, and `after` is in this queue.
    unsafe fn peek(
        &self,
        after: Option<NonNull<Self::Request>>,
        wanted: Self::Wanted,
    ) -> Option<NonNull<Self::Request>>;

    /// Ends it as cancelled. The lock is not held.
    ///
    /// # Safety
    /// The caller took its routine (I1), and it is in no queue.
    unsafe fn complete_cancelled(&self, request: NonNull<Self::Request>);
}

/// Puts a request in: it is the queue's then, and may have ended when this returns. `Err`: the queue refused it, so it is the caller's
/// still, and has no routine.
///
/// # Safety
/// The request is valid, the caller's, in no queue and without a routine. `routine` ends in [`cancelled`] with it.
pub unsafe fn insert<Q: Queue>(
    queue: &Q,
    request: NonNull<Q::Request>,
    routine: *mut Q::Routine,
    how: Q::Insert,
) -> Result<(), u32> {
    let held = queue.acquire();
    // SAFETY: the caller's; the lock is held until `release`. A canceller that takes the routine waits for the lock, so the request
    // stays valid until it is released (I2); after that it is touched by who takes its routine alone.
    unsafe {
        if let Err(refused) = queue.insert(request, how) {
            queue.release(held);
            return Err(refused);
        }
        let slot = queue.routine(request);
        slot.exchange(routine);
        let ours = queue.cancelled(request).get() && !slot.exchange(ptr::null_mut()).is_null();
        if ours {
            queue.remove(request);
        }
        queue.release(held);
        if ours {
            queue.complete_cancelled(request);
        }
    }
    Ok(())
}

/// Takes out the first request that is wanted and that nobody cancels. It is the caller's.
pub fn take_next<Q: Queue>(queue: &Q, wanted: Q::Wanted) -> Option<NonNull<Q::Request>> {
    let held = queue.acquire();
    let mut found = None;
    // SAFETY: the lock is held; what peek gives out is in the queue, hence valid (I2).
    unsafe {
        let mut next = queue.peek(None, wanted);
        while let Some(request) = next {
            if !queue.routine(request).exchange(ptr::null_mut()).is_null() {
                queue.remove(request);
                found = Some(request);
                break;
            }
            // A canceller took its routine, and waits for the lock.
            next = queue.peek(Some(request), wanted);
        }
    }
    queue.release(held);
    found
}

/// What a request's routine does, when a canceller has taken it: takes it out and ends it.
///
/// # Safety
/// The caller took its routine, which [`insert`] of this queue had set.
pub unsafe fn cancelled<Q: Queue>(queue: &Q, request: NonNull<Q::Request>) {
    let held = queue.acquire();
    // SAFETY: the caller's: it is in the queue until now (I2), and nobody else's then (I1).
    unsafe {
        queue.remove(request);
        queue.release(held);
        queue.complete_cancelled(request);
    }
}
