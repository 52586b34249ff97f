//! Push lock: one word, shared or exclusive, whose waiters sleep in a list of nodes on their own stacks.
//!
//! The word is NT's EX_PUSH_LOCK in size; 0 is free. A pointer in it leads to the newest waiter, each waiter to the next older.
//!
//! | word | means | who moves it on |
//! |---|---|---|
//! | 0 | free | anybody: LOCKED, or LOCKED + one sharer |
//! | LOCKED | one holder, alone | it: 0, or one sharer; a newcomer: itself, WAITING |
//! | LOCKED + n · 4 | n sharers | n ± 1; the only one: LOCKED; a newcomer that wants it alone: itself, WAITING |
//! | node + WAITING + LOCKED | held, and somebody waits | a newcomer: itself; who hands over to all: a state above |
//!
//! While somebody waits the sharers are counted in the *oldest* waiter's node. Who held it alone, or is the last of the sharers,
//! hands it over: to the oldest waiter, if that wants it alone, else to all from the oldest up to the first that does. The lock
//! is not free in between, so nobody can step in.
//!
//! **What is guaranteed.** Waiters are served in the order in which they put themselves into the list, sharers that are
//! neighbours there together. Nobody gets the lock, by a try either, while an earlier one waits. So a waiter waits for those
//! that held it or stood in the list when it came, and for no other: none starves, reader or writer. The price is that a
//! lock that is handed over stands still until its new holder runs.
//!
//! Owns:       [`RawPushLock`], the protocol. `guard` puts data and levels around it.
//! IRQL:       taken at PASSIVE or APC, held at APC, so that no APC of the holder's thread can want it. A holder may wait.
//!             NT's callers enter a critical region; a CR8 write is no dearer, and the type says it.
//! Invariants: I1 word ≠ 0 <=> LOCKED is set <=> it is held, or is being handed over.
//!             I2 a node is in place from the exchange that put it into the word until its event is set. Whoever reads one holds
//!                the lock (or hands it over), and every node that the word leads to waits for that.
//!             I3 `newer`, `oldest`, and `older` of a node that the word leads to are written by who hands over, alone; others
//!                only read, and hold it after they were let in by that.
//!             I4 the oldest node's `sharers` is the number of sharers, if it is held shared.
//! Ordering:   free or shared, the word alone: every release is a Release that the next acquire's exchange reads through a chain
//!             of exchanges. Handed over: count-downs of `sharers` (AcqRel), then the event (E4).
//! Cost:       a hand-over walks the waiters that came since the last one, and the release of a sharer does, too; each waiter is
//!             linked back once.
//! Not as NT:  handed over in order, where NT wakes waiters to try again and lets others in before them. No spinning before the
//!             sleep. A sharer that wants the lock shared again while somebody waits deadlocks, as on NT.
//! Tests:      tests/models/tests/push_lock.rs (exclusion, no lost wakeup, order, node lifetime, convert); tests/refuse; the unit tests.
//! Sources:    WDK, "Push locks"; NT's name and size alone.

use core::marker::PhantomData;
use core::pin::pin;
use core::ptr;

use crate::event::{Behind, Event};
use crate::irql::{Apc, Irql};
use crate::prim::{AtomicPtr, AtomicUsize, Ordering, UnsafeCell, const_unless_loom};

mod guard;

pub use guard::{ExclusiveGuard, PushLock, SharedGuard};

const LOCKED: usize = 1;
const WAITING: usize = 2;
const SHARER: usize = 4;
const FLAGS: usize = SHARER - 1;

/// The lock without data.
#[repr(transparent)]
#[doc(alias = "EX_PUSH_LOCK")]
pub struct RawPushLock<E: Event> {
    word: AtomicPtr<Waiter<E>>,
    _event: PhantomData<fn() -> E>,
}

/// A waiter, on its own stack.
struct Waiter<E> {
    /// The next older one, null in the oldest.
    older: UnsafeCell<*mut Waiter<E>>,
    /// The next newer one, once a hand-over has come by; null in what was then the newest.
    newer: UnsafeCell<*mut Waiter<E>>,
    /// Was this the newest one at the last hand-over: the oldest one. Else null, or out of date and behind one that is not.
    oldest: UnsafeCell<*mut Waiter<E>>,
    /// I4.
    sharers: AtomicUsize,
    wants_shared: bool,
    event: E,
}

const _: () = assert!(align_of::<Waiter<()>>() >= SHARER, "the flags are in a pointer's low bits");

/// In a model, the end of a node is an access to all of it, which must come after every other.
#[cfg(loom)]
impl<E> Drop for Waiter<E> {
    fn drop(&mut self) {
        self.older.with_mut(|_| ());
        self.newer.with_mut(|_| ());
        self.oldest.with_mut(|_| ());
        self.sharers.with_mut(|_| ());
    }
}

impl<E> Waiter<E> {
    /// # Safety
    /// I2 for this one: it is in place. I3: nobody writes `older` meanwhile.
    unsafe fn older(this: *mut Self) -> *mut Self {
        // SAFETY: the caller's.
        unsafe { (*this).older.with(|older| *older) }
    }

    /// # Safety
    /// As [`older`](Self::older).
    unsafe fn newer(this: *mut Self) -> *mut Self {
        // SAFETY: the caller's.
        unsafe { (*this).newer.with(|newer| *newer) }
    }

    /// # Safety
    /// As [`older`](Self::older).
    unsafe fn oldest(this: *mut Self) -> *mut Self {
        // SAFETY: the caller's.
        unsafe { (*this).oldest.with(|oldest| *oldest) }
    }
}

/// A word without a pointer.
fn plain<T>(bits: usize) -> *mut T {
    ptr::without_provenance_mut(bits)
}

fn has<T>(word: *mut T, bits: usize) -> bool {
    word.addr() & bits != 0
}

/// The newest waiter, of a word that has one.
fn newest<T>(word: *mut T) -> *mut T {
    word.map_addr(|address| address & !FLAGS)
}

/// Held shared, and nobody waits?
fn is_shared_only<T>(word: *mut T) -> bool {
    word.addr() >= SHARER && !has(word, WAITING)
}

impl<E: Event> RawPushLock<E> {
    const_unless_loom! {
        /// A free lock.
        #[doc(alias = "ExInitializePushLock")]
        pub const fn new() -> Self {
            Self { word: AtomicPtr::new(ptr::null_mut()), _event: PhantomData }
        }
    }

    /// From `from` to `to` if the word is that, Acquire.
    #[inline(always)]
    fn take(&self, from: *mut Waiter<E>, to: *mut Waiter<E>) -> bool {
        self.word.compare_exchange(from, to, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Waits until it is the only holder.
    #[inline(always)]
    pub fn acquire_exclusive(&self, at: &mut Irql<Apc>) {
        at.check();
        if !self.try_acquire_exclusive() {
            self.acquire_contended(false, at);
        }
    }

    /// Becomes the only holder if it is free.
    #[inline(always)]
    #[must_use = "it is held if this says so"]
    pub fn try_acquire_exclusive(&self) -> bool {
        self.take(plain(0), plain(LOCKED))
    }

    /// Waits until it is one of the sharers.
    #[inline(always)]
    pub fn acquire_shared(&self, at: &mut Irql<Apc>) {
        at.check();
        if !self.take(plain(0), plain(LOCKED | SHARER)) {
            self.acquire_contended(true, at);
        }
    }

    /// Becomes a sharer unless somebody holds it alone or waits.
    #[inline]
    #[must_use = "it is held if this says so"]
    pub fn try_acquire_shared(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word.is_null() || is_shared_only(word) {
            // From 0 as from n: LOCKED is set already, or is what 0 lacks.
            let more = plain((word.addr() + SHARER) | LOCKED);
            match self.word.compare_exchange(word, more, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    #[cold]
    #[inline(never)]
    fn acquire_contended(&self, wants_shared: bool, at: &mut Irql<Apc>) {
        loop {
            let word = self.word.load(Ordering::Relaxed);
            if word.is_null() || wants_shared && is_shared_only(word) {
                let got = if wants_shared { self.try_acquire_shared() } else { self.try_acquire_exclusive() };
                if got {
                    return;
                }
            } else if self.wait_behind(word, wants_shared, at) {
                return;
            }
        }
    }

    /// Puts a node into the word, if that is still `word`, and sleeps until the lock is handed over.
    fn wait_behind(&self, word: *mut Waiter<E>, wants_shared: bool, at: &mut Irql<Apc>) -> bool {
        let (older, sharers) =
            if has(word, WAITING) { (newest(word), 0) } else { (ptr::null_mut(), word.addr() / SHARER) };
        let node = pin!(Waiter {
            older: UnsafeCell::new(older),
            newer: UnsafeCell::new(ptr::null_mut()),
            oldest: UnsafeCell::new(ptr::null_mut()),
            sharers: AtomicUsize::new(sharers),
            wants_shared,
            event: E::new(),
        });
        let node = node.into_ref().get_ref();
        let mine = ptr::from_ref(node).cast_mut().map_addr(|address| address | WAITING | LOCKED);
        // Release: the node before its address. The sharers that left before this are in the chain that their last reads.
        if self.word.compare_exchange(word, mine, Ordering::Release, Ordering::Relaxed).is_err() {
            return false;
        }
        node.event.wait(Some(Behind::lock("push lock", self, None)), at);
        true
    }

    /// Lets go.
    ///
    /// # Safety
    /// The caller holds it alone, and nothing that it protects is used any more.
    #[inline(always)]
    pub unsafe fn release_exclusive(&self, at: &mut Irql<Apc>) {
        at.check();
        if self.word.compare_exchange(plain(LOCKED), plain(0), Ordering::Release, Ordering::Relaxed).is_err()
        {
            // SAFETY: held alone, and the word is no longer LOCKED only, so somebody waits (table).
            unsafe { self.hand_over(0, at) };
        }
    }

    /// Lets go.
    ///
    /// # Safety
    /// The caller is a sharer, and nothing that it protects is used any more.
    #[inline(always)]
    pub unsafe fn release_shared(&self, at: &mut Irql<Apc>) {
        at.check();
        let (only, free) = (plain(LOCKED | SHARER), plain(0));
        if self.word.compare_exchange(only, free, Ordering::Release, Ordering::Relaxed).is_err() {
            // SAFETY: the caller's.
            unsafe { self.release_shared_contended(at) };
        }
    }

    /// # Safety
    /// As [`release_shared`](Self::release_shared).
    #[cold]
    #[inline(never)]
    unsafe fn release_shared_contended(&self, at: &mut Irql<Apc>) {
        // Acquire, here and in the failed exchange: the nodes before the address.
        let mut word = self.word.load(Ordering::Acquire);
        while !has(word, WAITING) {
            debug_assert!(word.addr() > LOCKED, "I1: released more often than acquired");
            let fewer = match word.addr() - SHARER {
                LOCKED => 0,
                more => more,
            };
            match self.word.compare_exchange(word, plain(fewer), Ordering::Release, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        let mut node = newest(word);
        let oldest = loop {
            // SAFETY: I2: we hold it shared, so no node goes away, and I3 nobody writes.
            let (known, older) = unsafe { (Waiter::oldest(node), Waiter::older(node)) };
            if !known.is_null() {
                break known;
            }
            if older.is_null() {
                break node;
            }
            node = older;
        };
        // AcqRel: our section before the hand-over; every sharer's before it, if it is ours.
        // SAFETY: as above, until this count-down.
        if unsafe { (*oldest).sharers.fetch_sub(1, Ordering::AcqRel) } == 1 {
            // SAFETY: nobody else holds it any more (I4), so it is ours to hand over.
            unsafe { self.hand_over(0, at) };
        }
    }

    /// Who holds it alone becomes a sharer; the sharers that wait first in the list join.
    ///
    /// # Safety
    /// The caller holds it alone.
    #[inline]
    pub unsafe fn convert_to_shared(&self, at: &mut Irql<Apc>) {
        at.check();
        let (alone, shared) = (plain(LOCKED), plain(LOCKED | SHARER));
        if self.word.compare_exchange(alone, shared, Ordering::Release, Ordering::Relaxed).is_err() {
            // SAFETY: as in `release_exclusive`.
            unsafe { self.hand_over(1, at) };
        }
    }

    /// A sharer becomes the only holder, unless there is another one or somebody waits.
    ///
    /// # Safety
    /// The caller is a sharer.
    #[inline]
    #[must_use = "it is held alone if this says so"]
    pub unsafe fn try_convert_to_exclusive(&self) -> bool {
        self.take(plain(LOCKED | SHARER), plain(LOCKED))
    }

    /// Hands the lock over to the first waiters, `staying` sharers (the caller, or nobody) keeping it.
    ///
    /// # Safety
    /// Nobody but the caller holds it, and somebody waits.
    #[cold]
    #[inline(never)]
    unsafe fn hand_over(&self, staying: usize, at: &mut Irql<Apc>) {
        // Acquire, here and in the failed exchange: the nodes before the address; the sharers that left by way of the word.
        let mut word = self.word.load(Ordering::Acquire);
        let (first, last) = loop {
            let newest = newest(word);
            // SAFETY: I2, I3: it is ours to hand over, until an event is set.
            let (first, last, sharers) = unsafe { Self::choose(Self::link(newest), staying) };
            // SAFETY: as above. Null if nobody was chosen: then the oldest stays.
            let rest = if last.is_null() { first } else { unsafe { Waiter::newer(last) } };
            if !rest.is_null() {
                // SAFETY: as above; `rest` is the oldest from here on.
                unsafe {
                    (*rest).older.with_mut(|older| *older = ptr::null_mut());
                    // Nobody counts it down before the events below.
                    (*rest).sharers.store(sharers, Ordering::Relaxed);
                    (*newest).oldest.with_mut(|oldest| *oldest = rest);
                }
                break (first, last);
            }
            let held = plain((sharers * SHARER) | LOCKED);
            // AcqRel: all before us for the sharers that come by way of the word.
            match self.word.compare_exchange(word, held, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break (first, last),
                // A newcomer: it stays, so now there is a rest.
                Err(now) => word = now,
            }
        };
        let mut node = first;
        let mut done = last.is_null();
        while !done {
            done = node == last;
            // SAFETY: I2: its event is not set yet. The node is read first; E3.
            node = unsafe {
                let newer = Waiter::newer(node);
                E::set(&raw const (*node).event, at);
                newer
            };
        }
    }

    /// Links those that came since the last hand-over to the next newer one; returns the oldest.
    ///
    /// # Safety
    /// As [`hand_over`](Self::hand_over).
    unsafe fn link(newest: *mut Waiter<E>) -> *mut Waiter<E> {
        let mut node = newest;
        loop {
            // SAFETY: I2, I3: it is ours to hand over.
            unsafe {
                let known = Waiter::oldest(node);
                if !known.is_null() {
                    return known;
                }
                let older = Waiter::older(node);
                if older.is_null() {
                    return node;
                }
                (*older).newer.with_mut(|newer| *newer = node);
                node = older;
            }
        }
    }

    /// Who gets it: the first, the last (null: nobody), and how many sharers there are then.
    ///
    /// # Safety
    /// As [`hand_over`](Self::hand_over), and all are linked.
    unsafe fn choose(oldest: *mut Waiter<E>, staying: usize) -> (*mut Waiter<E>, *mut Waiter<E>, usize) {
        // SAFETY: I2, I3: it is ours to hand over.
        unsafe {
            if staying == 0 && !(*oldest).wants_shared {
                return (oldest, oldest, 0);
            }
            let (mut node, mut last, mut sharers) = (oldest, ptr::null_mut(), staying);
            while !node.is_null() && (*node).wants_shared {
                (last, sharers) = (node, sharers + 1);
                node = Waiter::newer(node);
            }
            (oldest, last, sharers)
        }
    }

    /// Is it held by anybody? Stale at once.
    pub fn is_held(&self) -> bool {
        !self.word.load(Ordering::Relaxed).is_null()
    }

    /// Does somebody wait for it? Stale at once.
    pub fn is_contended(&self) -> bool {
        has(self.word.load(Ordering::Relaxed), WAITING)
    }
}

impl<E: Event> Default for RawPushLock<E> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
