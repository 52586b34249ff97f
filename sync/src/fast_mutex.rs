//! Fast mutex and guarded mutex: one holder at a time, who may wait; the others sleep and are served in order.
//!
//! NT's FAST_MUTEX: a count, the owner, and one event for all waiters.
//!
//! | count | means |
//! |---|---|
//! | 1 | free |
//! | 0 | held |
//! | −n | held, and n wait, or are about to |
//!
//! ```text
//! acquire                            release
//! count -= 1; was 1: held            owner := none
//! wait for the event: held           count += 1; was 0: free
//!                                    set the event: the mutex is one waiter's; it was never free
//! ```
//!
//! Owns:       [`RawFastMutex`], the protocol and NT's bytes; [`FastMutex`], at APC, around data. A guarded mutex is the first, in
//!             a guarded region of the kernel's.
//! IRQL:       acquired at PASSIVE or APC. A fast mutex is held at APC, so that no APC of its holder's thread can want it.
//! Invariants: I1 count = 1 − holders − who counted itself and waits. So who counts down from 1 is the only holder.
//!             I2 the event is set once for each holder who finds somebody waiting, and the next holder is who takes that, before
//!                it can be set again: no two sets become one (E2).
//! Fairness:   as the event's (E5): in the order in which they began to wait; nobody steps in, by a try either.
//! Ordering:   count up is a Release that the next count down from 1 acquires; handed over, E4.
//! Checked:    acquired by its owner, MUTEX_ALREADY_OWNED; released by another thread, THREAD_NOT_MUTEX_OWNER.
//! Tests:      tests/models/tests/fast_mutex.rs (I1, I2, freed by its last holder); tests/refuse; the unit tests below.
//! Sources:    WDK, "Fast Mutexes and Guarded Mutexes"; FAST_MUTEX's layout as in ddk/wdm.h.

use crate::event::{Behind, Event, MaySignal, MayWait};
use crate::guard;
use crate::irql::{Apc, Irql, Raised};
use crate::prim::{AtomicU32, AtomicUsize, MutPtr, Ordering, UnsafeCell, const_unless_loom};

/// The mutex without data and level: FAST_MUTEX and KGUARDED_MUTEX, whose event or gate is an `E`.
#[repr(C)]
#[doc(alias = "FAST_MUTEX")]
#[doc(alias = "KGUARDED_MUTEX")]
pub struct RawFastMutex<E: Event> {
    /// Two's complement.
    count: AtomicU32,
    /// `Event::current_thread` of the holder, 0 without one. Written by the holder.
    owner: AtomicUsize,
    /// How often somebody had to wait, modulo 2³².
    contention: AtomicU32,
    event: E,
    /// The level to return to, of a holder that has no guard. Written by the holder.
    old_irql: AtomicU32,
}

crate::nt_layout! {
    [E: Event] RawFastMutex<E> = "FAST_MUTEX" {
        count => "Count", owner => "Owner", contention => "Contention", event => "Event", old_irql => "OldIrql",
    }
}

impl<E: Event> RawFastMutex<E> {
    const_unless_loom! {
        /// A free one; `event` is not signalled.
        #[doc(alias = "ExInitializeFastMutex")]
        #[doc(alias = "KeInitializeGuardedMutex")]
        pub const fn new(event: E) -> Self {
            Self {
                count: AtomicU32::new(1),
                owner: AtomicUsize::new(0),
                contention: AtomicU32::new(0),
                event,
                old_irql: AtomicU32::new(0),
            }
        }
    }

    /// Waits until it is the holder. The caller sees to it that no APC of this thread can want it meanwhile.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExAcquireFastMutexUnsafe")]
    #[doc(alias = "KeAcquireGuardedMutexUnsafe")]
    pub fn acquire<L: MayWait>(&self, at: &mut Irql<L>) {
        at.check();
        let me = E::current_thread();
        #[cfg(feature = "verifier")]
        if self.owner.load(Ordering::Relaxed) == me {
            self.violation(crate::irql::stop::MUTEX_ALREADY_OWNED);
        }
        if self.count.fetch_sub(1, Ordering::Acquire) != 1 {
            self.acquire_contended(at);
        }
        self.owner.store(me, Ordering::Relaxed);
    }

    #[cold]
    #[inline(never)]
    fn acquire_contended<L: MayWait>(&self, at: &mut Irql<L>) {
        self.contention.fetch_add(1, Ordering::Relaxed);
        let behind = Behind::lock("fast mutex", self, Some(&self.owner));
        self.event.wait(Some(behind), &mut at.raise::<Apc>());
    }

    /// Becomes the holder if it is free.
    #[inline(always)]
    #[must_use = "it is held if this says so"]
    #[doc(alias = "ExTryToAcquireFastMutex")]
    #[doc(alias = "KeTryToAcquireGuardedMutex")]
    pub fn try_acquire<L: MayWait>(&self, at: &mut Irql<L>) -> bool {
        at.check();
        let free = self.count.compare_exchange(1, 0, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if free {
            self.owner.store(E::current_thread(), Ordering::Relaxed);
        }
        free
    }

    /// Lets go.
    ///
    /// # Safety
    /// This thread holds it, and nothing that it protects is used any more.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExReleaseFastMutexUnsafe")]
    #[doc(alias = "KeReleaseGuardedMutexUnsafe")]
    pub unsafe fn release<L: MayWait>(&self, at: &mut Irql<L>) {
        at.check();
        #[cfg(feature = "verifier")]
        if self.owner.load(Ordering::Relaxed) != E::current_thread() {
            self.violation(crate::irql::stop::THREAD_NOT_MUTEX_OWNER);
        }
        self.owner.store(0, Ordering::Relaxed);
        // From 0 to 1: free, and perhaps gone. Else somebody waits, for whom it stays.
        if self.count.fetch_add(1, Ordering::Release) != 0 {
            self.hand_over(at);
        }
    }

    #[cold]
    #[inline(never)]
    fn hand_over<L: MaySignal>(&self, at: &mut Irql<L>) {
        // SAFETY: the mutex is here until its next holder is, which takes this set first; E3.
        unsafe { E::set(&raw const self.event, at) };
    }

    #[cfg(feature = "verifier")]
    #[track_caller]
    fn violation(&self, code: u32) -> ! {
        let mutex = core::ptr::from_ref(self).addr() as u64;
        let owner = self.owner.load(Ordering::Relaxed) as u64;
        let culprit = core::panic::Location::caller();
        arch::fatal_at(code, [mutex.into(), owner.into(), culprit.into(), 0_u64.into()]);
    }

    /// For a holder that has no guard: where its old level is kept. Means something while it holds the mutex.
    #[inline(always)]
    pub fn old_irql(&self) -> u8 {
        self.old_irql.load(Ordering::Relaxed) as u8
    }

    /// See [`old_irql`](Self::old_irql). The holder's to call.
    #[inline(always)]
    pub fn set_old_irql(&self, level: u8) {
        self.old_irql.store(u32::from(level), Ordering::Relaxed);
    }

    /// The holder, as `Event::current_thread` numbers it; 0: nobody. Exact if it is the caller, else stale at once.
    #[inline]
    pub fn owner(&self) -> usize {
        self.owner.load(Ordering::Relaxed)
    }

    /// How often somebody had to wait, modulo 2³².
    pub fn contention(&self) -> u32 {
        self.contention.load(Ordering::Relaxed)
    }

    /// Is it held? Stale at once.
    pub fn is_held(&self) -> bool {
        self.count.load(Ordering::Relaxed) != 1
    }
}

/// A fast mutex around a `T`.
pub struct FastMutex<T, E: Event> {
    raw: RawFastMutex<E>,
    value: UnsafeCell<T>,
}

// SAFETY: one thread at a time reaches `value` (I1), and by `&mut`.
unsafe impl<T: Send, E: Event> Sync for FastMutex<T, E> {}
// SAFETY: owning the mutex is owning the T; nobody waits for one that can be moved.
unsafe impl<T: Send, E: Event + Send> Send for FastMutex<T, E> {}

impl<T, E: Event> FastMutex<T, E> {
    const_unless_loom! {
        /// A free one; `event` is not signalled.
        pub const fn new(value: T, event: E) -> Self {
            Self { raw: RawFastMutex::new(event), value: UnsafeCell::new(value) }
        }
    }

    /// Raises to APC, and waits until it is the holder.
    ///
    /// # Bugchecks
    /// Checked build: MUTEX_ALREADY_OWNED when this thread holds it.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExAcquireFastMutex")]
    pub fn lock<'a, L: MayWait>(&'a self, at: &'a mut Irql<L>) -> FastGuard<'a, T, E> {
        let mut raised = at.raise::<Apc>();
        self.raw.acquire(&mut raised);
        FastGuard { value: self.value.get_mut(), held: Held { raw: &self.raw, raised } }
    }

    /// As [`lock`](Self::lock) if it is free; never waits.
    #[inline(always)]
    #[cfg_attr(feature = "verifier", track_caller)]
    #[doc(alias = "ExTryToAcquireFastMutex")]
    pub fn try_lock<'a, L: MayWait>(&'a self, at: &'a mut Irql<L>) -> Option<FastGuard<'a, T, E>> {
        let mut raised = at.raise::<Apc>();
        let got = self.raw.try_acquire(&mut raised);
        got.then(|| FastGuard { value: self.value.get_mut(), held: Held { raw: &self.raw, raised } })
    }

    /// Is it held? Stale at once.
    pub fn is_held(&self) -> bool {
        self.raw.is_held()
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

/// Held; released when dropped, then the level is lowered: in the order of declaration, which is relied on.
struct Held<'a, E: Event> {
    raw: &'a RawFastMutex<E>,
    raised: Raised<'a, Apc>,
}

impl<E: Event> Drop for Held<'_, E> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: made by an acquire of this thread, which it can't leave; the guard's access to the data ended before (field
        //         order).
        unsafe { self.raw.release(&mut self.raised) };
    }
}

/// The mutex is held; derefs to the data. Fields in the order of their drop, which is relied on: access, mutex, level.
#[must_use = "dropping it at once releases the mutex"]
pub struct FastGuard<'a, T, E: Event> {
    value: MutPtr<T>,
    held: Held<'a, E>,
}

guard::exclusive!(['a, T, E: Event] FastGuard<'a, T, E>, T, Apc, held.raised);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::event::hosted::ThreadEvent;
    use crate::testing::at_passive;
    use std::sync::Mutex;

    type Lock<T> = FastMutex<T, ThreadEvent>;

    fn new<T>(value: T) -> Lock<T> {
        Lock::new(value, ThreadEvent::new())
    }

    #[test]
    fn the_level_and_the_owner_follow() {
        let lock = new(1);
        at_passive(|at| {
            {
                let mut guard = lock.lock(at);
                let (value, at) = guard.parts();
                *value += 1;
                assert_eq!(at.level(), 1);
                assert_eq!(lock.raw.owner(), ThreadEvent::current_thread());
                std::thread::scope(|s| {
                    s.spawn(|| {
                        at_passive(|at| assert!(lock.try_lock(at).is_none()));
                        assert_eq!(arch::irql::current(), 0);
                    });
                });
                assert_eq!(lock.raw.owner(), ThreadEvent::current_thread(), "a failed try is no owner");
            }
            assert_eq!((arch::irql::current(), lock.raw.owner(), lock.is_held()), (0, 0, false));
            assert_eq!(*lock.try_lock(at).expect("it is free"), 2);
        });
    }

    #[test]
    fn threads_exclude_each_other() {
        const ROUNDS: usize = if cfg!(miri) { 20 } else { 3_000 };
        let lock = new((0, 0));
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    at_passive(|at| {
                        for _ in 0..ROUNDS {
                            let mut guard = lock.lock(at);
                            guard.0 += 1;
                            std::thread::yield_now();
                            guard.1 += 1;
                        }
                    });
                });
            }
        });
        assert!(!lock.is_held());
        assert_eq!(lock.into_inner(), (3 * ROUNDS, 3 * ROUNDS));
    }

    #[test]
    fn waiters_are_served_in_order_and_counted() {
        let lock = new(Vec::new());
        let started = Mutex::new(0);
        std::thread::scope(|s| {
            at_passive(|at| {
                let guard = lock.lock(at);
                for number in 0..3 {
                    let (lock, started) = (&lock, &started);
                    s.spawn(move || {
                        at_passive(|at| lock.lock(at).push(number));
                        *started.lock().unwrap() += 1;
                    });
                    while lock.raw.contention() <= number {
                        std::thread::yield_now();
                    }
                    // It has counted itself, and is about to sleep.
                    std::thread::sleep(core::time::Duration::from_millis(if cfg!(miri) { 200 } else { 20 }));
                }
                drop(guard);
            });
        });
        assert_eq!((lock.raw.contention(), lock.into_inner()), (3, vec![0, 1, 2]));
    }

    #[cfg(feature = "verifier")]
    #[test]
    fn recursion_and_a_foreign_release_are_bugchecks() {
        let lock = RawFastMutex::new(ThreadEvent::new());
        at_passive(|at| {
            lock.acquire(at);
            let again = arch::stop::catch(|| lock.acquire(at));
            assert_eq!(again.map(|stop| stop.code), Some(0xBF));
            std::thread::scope(|s| {
                s.spawn(|| {
                    at_passive(|at| {
                        // SAFETY: it protects nothing; the wrong release is what the check is for.
                        let foreign = arch::stop::catch(|| unsafe { lock.release(at) });
                        assert_eq!(foreign.map(|stop| stop.code), Some(0x11));
                    });
                });
            });
            // SAFETY: held.
            unsafe { lock.release(at) };
        });
    }
}
