//! Sleeping until another thread signals: what the protocols of this crate ask of the scheduler, of which it knows nothing.
//!
//! Owns:       [`Event`], the kernel's synchronization event as a protocol sees it; [`Behind`], what a wait tells of its reason. On the
//!             host `hosted::ThreadEvent` is an event.
//! Called by:  [`rundown`](crate::rundown), [`push_lock`](crate::push_lock), [`fast_mutex`](crate::fast_mutex),
//!             [`resource`](crate::resource), [`in_flight`](crate::in_flight).
//! IRQL:       wait at APC, so that no APC has the waiter look elsewhere, ends it, or sends it to the end of the waiters; who waits
//!             raises for that. Set up to DISPATCH.
//! Why so:     a waiter of a push lock or of a rundown brings an event on its own stack, a mutex has one for all its waiters.
//!             One kind with the rules below serves both. A protocol generic over it is modelled as it ships: only the
//!             sleeping is the model checker's.
//! Tests:      the protocols' own; the unit tests of `hosted`.

#[cfg(not(feature = "verifier"))]
use core::marker::PhantomData;

use crate::irql::{Apc, AtOrBelow, Below, Dispatch, Irql, MayBlock, ObjectLock};
use crate::prim::AtomicUsize;
#[cfg(feature = "verifier")]
use crate::prim::Ordering;

#[cfg(not(target_os = "none"))]
pub mod hosted;

/// Up to DISPATCH and under no lock: who may signal.
pub trait MaySignal: Below<ObjectLock> + AtOrBelow<Dispatch> {}

impl<L: Below<ObjectLock> + AtOrBelow<Dispatch>> MaySignal for L {}

/// PASSIVE and APC, with what the code of a wait needs to know of them.
#[diagnostic::on_unimplemented(
    message = "code at `{Self}` must not wait, so it can't take a lock whose waiters sleep",
    label = "needs PASSIVE or APC, this is `{Self}`",
    note = "if a guard or `Raised` gave you `Irql<{Self}>`: take this lock before that one, or drop that one first",
    note = "a DPC leaves such work to a work item, or shares the data under a spin lock"
)]
pub trait MayWait: MayBlock + MaySignal + AtOrBelow<Apc> {}

impl<L: MayBlock + MaySignal + AtOrBelow<Apc>> MayWait for L {}

/// The lock that a thread sleeps behind: for the checked build's reports of who waits for whom. Otherwise nothing.
#[derive(Clone, Copy)]
pub struct Behind<'a> {
    #[cfg(feature = "verifier")]
    what: &'static str,
    #[cfg(feature = "verifier")]
    address: usize,
    #[cfg(feature = "verifier")]
    holder: Option<&'a AtomicUsize>,
    #[cfg(not(feature = "verifier"))]
    lock: PhantomData<&'a AtomicUsize>,
}

#[cfg(feature = "verifier")]
impl<'a> Behind<'a> {
    /// `lock`, which is a `what`. In `holder` it keeps the thread that has it, as `Event::current_thread` numbers it: 0 where it is
    /// nobody's or several threads'. Without one the lock doesn't know.
    #[inline(always)]
    pub(crate) fn lock<K>(what: &'static str, lock: &'a K, holder: Option<&'a AtomicUsize>) -> Self {
        Self { what, address: core::ptr::from_ref(lock).addr(), holder }
    }

    /// What kind of lock it is, and where.
    pub fn what(&self) -> (&'static str, usize) {
        (self.what, self.address)
    }

    /// The thread that holds it; 0: nobody, several, or unknown. Stale at once, unless that thread waits.
    pub fn holder(&self) -> usize {
        self.holder.map_or(0, |holder| holder.load(Ordering::Relaxed))
    }
}

#[cfg(not(feature = "verifier"))]
impl<'a> Behind<'a> {
    #[inline(always)]
    pub(crate) fn lock<K>(_: &'static str, _: &'a K, _: Option<&'a AtomicUsize>) -> Self {
        Self { lock: PhantomData }
    }
}

/// A synchronization event: set, it lets one waiter go on, or the next one that comes.
///
/// # Safety
/// Who implements it promises, and the protocols' safety arguments cite:
/// - E1 a `wait` returns after it took a `set`, and each `set` is taken by one `wait` at most. Nothing else ends a wait: it has
///   no timeout, is not alertable, and its thread is not ended at APC.
/// - E2 a set that finds no waiter is kept until one comes. Two that are kept are one.
/// - E3 `set` touches the event no more once the wait that takes it may have returned: the event may be on that waiter's stack.
/// - E4 what came before a set has happened when the wait that takes it returns.
/// - E5 waiters are served in the order in which they came.
pub unsafe trait Event: Sync {
    /// One that is not signalled.
    fn new() -> Self;

    /// Waits until the event is set, and takes that; for a lock: `behind` that.
    fn wait(&self, behind: Option<Behind<'_>>, at: &mut Irql<Apc>);

    /// Lets one waiter go on.
    ///
    /// # Safety
    /// `event` is valid until `set` returns or a wait takes this set, whichever is first.
    unsafe fn set<L: MaySignal>(event: *const Self, at: &mut Irql<L>);

    /// The thread that asks, as a number that no other thread has while this one lives. Never 0.
    fn current_thread() -> usize;
}
