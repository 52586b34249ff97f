//! FIFO spin lock: waiters stand in a queue of nodes, each on its owner's stack, and each spins on its own node.
//!
//! `tail` is the last node of the queue; null is free. The holder's node is the first. A newcomer swaps itself in as the
//! tail, links itself behind the one it displaced, and spins on its own node until that one hands over.
//!
//! A node is pinned, because its neighbours hold its address. `mem::forget` of the guard is safe code, and would leave a
//! linked node behind; so the node, not the guard, is what must not get lost: a linked node's own drop releases the lock
//! (the level stays high, which the verifier finds), and queueing it a second time is a bugcheck.
//!
//! IRQL:       taken with a token strictly below R, held at R's CR8 value, yields `Irql<R>`.
//! Invariants: I1 a node is linked from the swap that made it the tail until its release has taken it off. From when it is the
//!                first until then, its `lock` says where; only its owner reads or writes that.
//!             I2 the value is accessed only by the owner of the first node.
//!             I3 a node that `tail` or another node's `next` points to is linked, hence alive and in place: unlinking
//!                either moves `tail` on or waits for the successor, whose `waiting` it clears as its last access.
//!             I4 a linked node's lock is alive: `Node<'l>` has a drop of its own, so `'l`, for which the lock is borrowed,
//!                is longer than the node's life.
//! Ordering:   hand-over: `waiting` := 0 (Release) → its owner's load (Acquire). Through a free lock: `tail` := null
//!             (Release) → the next swap (Acquire). The same swap publishes a node's initial fields to its successor.
//! Not as NT:  KLOCK_QUEUE_HANDLE holds the old level too; here the guard's `Raised` does.
//! Tests:      tests/models/tests/queued.rs (exclusion, FIFO, no lost hand-over); tests/props; tests/refuse; the unit tests below.

use core::cell::Cell;
use core::marker::{PhantomData, PhantomPinned};
use core::pin::Pin;
use core::ptr;

use arch::trace::Kind;

use crate::guard;
use crate::irql::{Below, Irql, Raised, Rank, stop};
use crate::prim::{AtomicPtr, AtomicU32, Backoff, MutPtr, Ordering, UnsafeCell, const_unless_loom};

/// A place in the queue of a lock that outlives it, on the stack of who waits: `let node = pin!(Node::new());`.
#[doc(alias = "KLOCK_QUEUE_HANDLE")]
pub struct Node<'l> {
    links: Links,
    /// The queue that we are linked in (I1).
    lock: Cell<Option<&'l Queue>>,
    _pinned: PhantomPinned,
}

/// What a node's neighbours see of it.
struct Links {
    /// The next in the queue. Written once by that one; read by our release.
    next: AtomicPtr<Links>,
    /// 1 while the predecessor has not handed over. Cleared by the predecessor.
    waiting: AtomicU32,
}

impl Links {
    fn as_ptr(&self) -> *mut Links {
        ptr::from_ref(self).cast_mut()
    }
}

impl<'l> Node<'l> {
    const_unless_loom! {
        /// An unlinked node.
        pub const fn new() -> Self {
            Self {
                links: Links { next: AtomicPtr::new(ptr::null_mut()), waiting: AtomicU32::new(0) },
                lock: Cell::new(None),
                _pinned: PhantomPinned,
            }
        }
    }

    /// Links the node into `lock` and waits until it is the first.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    fn acquire(&self, lock: &'l Queue) {
        if self.lock.get().is_some() {
            // Its guard was forgotten: it is still in a queue, and its links are in use.
            arch::fatal(stop::SPIN_LOCK_ALREADY_OWNED, [ptr::from_ref(self).addr() as u64, 0, 0, 1]);
        }
        // Nobody has our address yet; our swap publishes this.
        self.links.next.store(ptr::null_mut(), Ordering::Relaxed);
        #[cfg(feature = "verifier")]
        lock.owner.check_not_mine();
        lock.enqueue(&self.links);
        #[cfg(feature = "verifier")]
        lock.owner.set();
        self.lock.set(Some(lock));
    }

    /// Takes the node off its queue, handing the lock to the next. Nothing when it isn't linked.
    #[inline(always)]
    fn release(&self) {
        if let Some(lock) = self.lock.take() {
            #[cfg(feature = "verifier")]
            lock.owner.clear();
            lock.unlink(&self.links);
        }
    }
}

impl Default for Node<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        // Linked only when the guard was forgotten. The memory is about to be reused, so the queue must let go of it now.
        self.release();
    }
}

struct Queue {
    /// The last node, or null when the lock is free.
    tail: AtomicPtr<Links>,
    #[cfg(feature = "verifier")]
    owner: crate::owner::Owner,
}

impl Queue {
    /// Puts `node` at the end of the queue and waits until it is the first.
    #[inline(always)]
    fn enqueue(&self, node: &Links) {
        // AcqRel: our fields before our address; and what the last holder did before a free lock.
        let before = self.tail.swap(node.as_ptr(), Ordering::AcqRel);
        if !before.is_null() {
            Self::wait_behind(before, node);
        }
    }

    #[cold]
    #[inline(never)]
    fn wait_behind(before: *mut Links, node: &Links) {
        // Nobody writes `waiting` before the link below is seen, so it can be set now.
        node.waiting.store(1, Ordering::Relaxed);
        // SAFETY: I3: `tail` pointed to it, and it can't unlink before it has seen our link.
        unsafe { &*before }.next.store(node.as_ptr(), Ordering::Release);
        arch::trace::about(Kind::Contended, 0, before, 0);
        let backoff = Backoff::new();
        while node.waiting.load(Ordering::Acquire) != 0 {
            backoff.spin();
        }
        arch::trace::about(Kind::Acquired, 0, before, 0);
    }

    /// Takes the first node, which is `node`, off the queue.
    #[inline(always)]
    fn unlink(&self, node: &Links) {
        let mut next = node.next.load(Ordering::Acquire);
        if next.is_null() {
            let free = ptr::null_mut();
            let last = self.tail.compare_exchange(node.as_ptr(), free, Ordering::Release, Ordering::Relaxed);
            if last.is_ok() {
                return;
            }
            next = Self::wait_for_link(node);
        }
        // SAFETY: I3: it waits for this store, and may be gone right after it.
        unsafe { &*next }.waiting.store(0, Ordering::Release);
    }

    /// Somebody swapped itself in behind us but has not linked itself yet: a few instructions, by a raised processor.
    #[cold]
    #[inline(never)]
    fn wait_for_link(node: &Links) -> *mut Links {
        let backoff = Backoff::new();
        loop {
            let next = node.next.load(Ordering::Acquire);
            if !next.is_null() {
                return next;
            }
            backoff.spin();
        }
    }
}

/// A FIFO lock of rank `R` around a `T`.
#[doc(alias = "KeAcquireInStackQueuedSpinLock")]
pub struct QueuedLock<T, R: Rank> {
    queue: Queue,
    rank: PhantomData<fn() -> R>,
    value: UnsafeCell<T>,
}

// SAFETY: one processor at a time reaches `value`, and always by `&mut` (I2).
unsafe impl<T: Send, R: Rank> Sync for QueuedLock<T, R> {}
// SAFETY: owning the lock is owning the T; a linked node keeps the lock borrowed (I4), so a lock that moves has none but
// those whose owners will never run again, and a leaked node stays in place.
unsafe impl<T: Send, R: Rank> Send for QueuedLock<T, R> {}

impl<T, R: Rank> QueuedLock<T, R> {
    const_unless_loom! {
        /// A free lock.
        pub const fn new(value: T) -> Self {
            Self {
                queue: Queue {
                    tail: AtomicPtr::new(ptr::null_mut()),
                    #[cfg(feature = "verifier")]
                    owner: crate::owner::Owner::new(),
                },
                rank: PhantomData,
                value: UnsafeCell::new(value),
            }
        }
    }

    /// Raises to the rank's CR8 value and waits its turn.
    ///
    /// # Bugchecks
    /// SPIN_LOCK_ALREADY_OWNED when `node` is still linked; in the checked build, also when this processor holds the lock.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    pub fn lock<'a, 'l, L: Below<R>>(
        &'l self,
        node: Pin<&'a mut Node<'l>>,
        at: &'a mut Irql<L>,
    ) -> QueuedGuard<'a, 'l, T, R> {
        let raised = at.raise::<R>();
        let node: &'a Node<'l> = node.into_ref().get_ref();
        node.acquire(&self.queue);
        QueuedGuard { value: self.value.get_mut(), linked: Linked(node), raised }
    }

    /// Is it held by anybody? Stale at once.
    pub fn is_locked(&self) -> bool {
        !self.queue.tail.load(Ordering::Relaxed).is_null()
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// The lock is held; derefs to the data. [`parts`](Self::parts) gives the token as well.
///
/// The fields are dropped in the order they stand in, and that is relied on: the access to the data ends, the lock is handed
/// over, the level is lowered. Lowering first would let in an interrupt that makes the whole queue wait for its handler.
#[must_use = "dropping it at once releases the lock"]
pub struct QueuedGuard<'a, 'l, T, R: Rank> {
    value: MutPtr<T>,
    linked: Linked<'a, 'l>,
    raised: Raised<'a, R>,
}

/// A linked node; released when dropped.
struct Linked<'a, 'l>(&'a Node<'l>);

impl Drop for Linked<'_, '_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.0.release();
    }
}

guard::exclusive!([T, R: Rank] QueuedGuard<'_, '_, T, R>, T, R);

impl<T, R: Rank> QueuedGuard<'_, '_, T, R> {
    /// Does another processor stand behind us? For a long holder that can let go early.
    pub fn is_contended(&self) -> bool {
        !self.linked.0.links.next.load(Ordering::Relaxed).is_null()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
