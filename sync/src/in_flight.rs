//! Work that one thread does for all who need it: whoever comes meanwhile waits for its end, and then looks again.
//!
//! ```text
//! who does the work                        who needs it
//! node into the list        (lock)         sees a sign of the work, which is set and cleared within it
//!   sign set ... the work ... cleared      node of that work?  (lock)  ─ none: it has ended; look again
//! node out, with its waiters (lock)          own node to that work's
//! each waiter: read, then its event        sleep  ->  look again; the node is gone
//! ```
//!
//! Owns:       [`InFlight`]. Not: the sign (page faults have it in the page's leaf), nor what the work is.
//! IRQL:       APC: no APC of the waiter or of the worker can need the same work.
//! Locks:      its own, of rank `R`. Nothing is signalled under it.
//! Invariants: I1 the lists are accessed under the lock.
//!             I2 a worker's node is in the list from before the work begins until after it has ended.
//!             I3 a waiter's node is in place from when it is put to a worker's, under the lock, until its event is set; who does that
//!                took it off with the worker's node, and reads it no more afterwards.
//! No lost wakeup: a waiter that sees the sign comes after the worker's node was put in. If it finds it, the worker takes the waiter
//!             along when it takes its node out; if not, the work has ended, and the sign is gone.
//! Two for one: two may begin work for the same key at once, of whom one finds the other's sign and does nothing. Who waits for that
//!             one looks again early.
//! Tests:      tests/models/tests/in_flight.rs.

use core::pin::pin;
use core::ptr;

use crate::event::{Event, MaySignal};
use crate::irql::{Apc, Below, Irql, Rank};
use crate::prim::{UnsafeCell, const_unless_loom};
use crate::spin::SpinLock;

/// See the module.
pub struct InFlight<E: Event, R: Rank> {
    workers: SpinLock<First<E>, R>,
}

/// A worker, on its own stack.
struct Worker<E> {
    key: u64,
    next: UnsafeCell<*const Worker<E>>,
    waiters: UnsafeCell<*const Waiter<E>>,
}

/// A waiter, on its own stack.
struct Waiter<E> {
    next: UnsafeCell<*const Waiter<E>>,
    event: E,
}

/// In a model, the end of a node is an access to all of it, which must come after every other.
#[cfg(loom)]
impl<E> Drop for Waiter<E> {
    fn drop(&mut self) {
        self.next.with_mut(|_| ());
    }
}

#[cfg(loom)]
impl<E> Drop for Worker<E> {
    fn drop(&mut self) {
        self.next.with_mut(|_| ());
        self.waiters.with_mut(|_| ());
    }
}

/// The worker that began last, or null.
struct First<E>(*const Worker<E>);

// SAFETY: it leads to nodes that any thread may reach under the lock (I1).
unsafe impl<E> Send for First<E> {}

impl<E> First<E> {
    /// # Safety
    /// I1; `worker` is in no list, and I2 holds for it from here on.
    unsafe fn push(&mut self, worker: &Worker<E>) {
        worker.next.with_mut(|next| {
            // SAFETY: the lock is held, or nobody else knows of it (I1).
            unsafe { *next = self.0 };
        });
        self.0 = worker;
    }

    /// Takes out `worker`, and its waiters with it.
    ///
    /// # Safety
    /// I1; it is in the list.
    unsafe fn remove(&mut self, worker: &Worker<E>) -> *const Waiter<E> {
        // SAFETY: what the list leads to is in place (I2), and the lock is held.
        unsafe {
            let after = worker.next.with(|next| *next);
            if ptr::eq(self.0, worker) {
                self.0 = after;
            } else {
                let mut at = self.0;
                while !ptr::eq((*at).next.with(|next| *next), worker) {
                    at = (*at).next.with(|next| *next);
                }
                (*at).next.with_mut(|next| *next = after);
            }
            worker.waiters.with(|waiters| *waiters)
        }
    }

    /// The worker for `key` that began last.
    ///
    /// # Safety
    /// I1.
    unsafe fn find(&self, key: u64) -> Option<&Worker<E>> {
        // SAFETY: as above; and none is taken out while the lock is held.
        unsafe {
            let mut worker = self.0.as_ref();
            while let Some(other) = worker.filter(|worker| worker.key != key) {
                worker = other.next.with(|next| (*next).as_ref());
            }
            worker
        }
    }
}

/// Work that unwinds would leave its node in the list.
struct Unwound;

impl Drop for Unwound {
    fn drop(&mut self) {
        arch::fatal(0xE2, [0; 4]);
    }
}

impl<E: Event, R: Rank> InFlight<E, R>
where
    Apc: Below<R> + MaySignal,
{
    const_unless_loom! {
        /// No work is under way.
        pub const fn new() -> Self {
            Self { workers: SpinLock::new(First(ptr::null())) }
        }
    }

    /// Does `work`, of which others know by `key` while it shows its sign.
    pub fn during<T>(&self, key: u64, at: &mut Irql<Apc>, work: impl FnOnce(&mut Irql<Apc>) -> T) -> T {
        let own =
            pin!(Worker { key, next: UnsafeCell::new(ptr::null()), waiters: UnsafeCell::new(ptr::null()) });
        let own = own.into_ref().get_ref();
        // SAFETY: the lock is held; it stays in place until it is taken out below, as an unwinding `work` ends everything (I2).
        unsafe { self.workers.lock(at).push(own) };
        let unwound = Unwound;
        let result = work(at);
        core::mem::forget(unwound);
        // SAFETY: the lock is held; put in above.
        let mut waiter = unsafe { self.workers.lock(at).remove(own) };
        while !waiter.is_null() {
            // SAFETY: I3: it was taken off with our node. It is read before its event is set; E3.
            waiter = unsafe {
                let next = (*waiter).next.with(|next| *next);
                E::set(&raw const (*waiter).event, at);
                next
            };
        }
        result
    }

    /// Waits for the end of the work that is under way for `key`; false, at once, if there is none.
    pub fn wait(&self, key: u64, at: &mut Irql<Apc>) -> bool {
        let own = pin!(Waiter { next: UnsafeCell::new(ptr::null()), event: E::new() });
        let own = own.into_ref().get_ref();
        {
            let workers = self.workers.lock(at);
            // SAFETY: the lock is held.
            let Some(worker) = (unsafe { workers.find(key) }) else { return false };
            worker.waiters.with_mut(|waiters| {
                // SAFETY: the lock is held (I1); our node stays in place until its event is set (I3).
                unsafe {
                    own.next.with_mut(|next| *next = *waiters);
                    *waiters = own;
                }
            });
        }
        own.event.wait(None, at);
        true
    }
}

impl<E: Event, R: Rank> Default for InFlight<E, R>
where
    Apc: Below<R> + MaySignal,
{
    fn default() -> Self {
        Self::new()
    }
}
