//! Rundown protection: many use something until its owner wants it gone, waits for the last of them, and lets no new one in.
//!
//! One word, NT's EX_RUNDOWN_REF, with these values:
//!
//! | bit 0, ACTIVE | the rest | means | legal moves |
//! |---|---|---|---|
//! | 0 | count · 2 | in use by that many | ± 2; 0 → complete; count > 0 → the first waiter |
//! | 1 | a pointer | the last of its waiters; who uses it still is counted in the first one | another waiter; complete |
//! | 1 | 0 | complete | 0, by `reinitialize` |
//!
//! ```text
//! use                                 wait
//! count += 1, or refused              block.count := count; word := block | ACTIVE   (AcqRel)
//! ... use it ...                      sleep
//! ACTIVE: block.count -= 1 (AcqRel)   .
//! the last: word := complete, then set each waiter's event  ->  return; the block is gone
//! ```
//!
//! Owns:       [`Rundown`]. Not: what it protects.
//! IRQL:       acquire at any level; release up to DISPATCH, since the last one signals; wait at PASSIVE or APC.
//! Invariants: I1 acquire succeeds => ACTIVE was clear, and the use is counted until its release: in the word, or in the first
//!                waiter's block once there is one.
//!             I2 a waiter's block is in place from the exchange that put it into the word until its event is set. Whoever
//!                reads a block is counted, or was the last one counted and has not set that block's event yet.
//!             I3 the word becomes complete once, by the release that counts to 0, or by a waiter that finds no use at all.
//! Ordering:   a release's count-down (Release) is in the release sequence that the last release, or the first waiter's exchange,
//!             acquires; the events do the rest (E4). `reinitialize` is a Release for the next acquire.
//! Not as NT:  several may wait at once; waiting leaves the word complete, so `ExRundownCompleted` has nothing to add.
//! Tests:      tests/models/tests/rundown.rs (I1 to I3); tests/props/tests/injection.rs; the unit tests below.
//! Sources:    WDK, "Run-Down Protection".

use core::marker::PhantomData;
use core::pin::pin;
use core::ptr;

use crate::event::{Behind, Event, MaySignal, MayWait};
use crate::irql::{Apc, Irql};
use crate::prim::{AtomicPtr, AtomicUsize, Ordering, UnsafeCell, const_unless_loom};

const ACTIVE: usize = 1;
const ONE: usize = 2;

/// See the module.
#[repr(transparent)]
#[doc(alias = "EX_RUNDOWN_REF")]
pub struct Rundown<E: Event> {
    word: AtomicPtr<Block<E>>,
    _event: PhantomData<fn() -> E>,
}

/// A waiter, on its own stack.
struct Block<E> {
    /// The waiter before, null in the first. Written before the word leads here.
    before: UnsafeCell<*mut Block<E>>,
    /// In the first: how many still use it.
    count: AtomicUsize,
    event: E,
}

/// In a model, the end of a block is an access to all of it, which must come after every other.
#[cfg(loom)]
impl<E> Drop for Block<E> {
    fn drop(&mut self) {
        self.before.with_mut(|_| ());
        self.count.with_mut(|_| ());
    }
}

fn complete<T>() -> *mut T {
    ptr::without_provenance_mut(ACTIVE)
}

/// The block that an ACTIVE word leads to; null when it is complete.
fn block_of<T>(word: *mut T) -> *mut T {
    word.map_addr(|address| address & !ACTIVE)
}

fn is_active<T>(word: *mut T) -> bool {
    word.addr() & ACTIVE != 0
}

impl<E: Event> Rundown<E> {
    const_unless_loom! {
        /// In use by nobody, and open to all.
        #[doc(alias = "ExInitializeRundownProtection")]
        pub const fn new() -> Self {
            Self { word: AtomicPtr::new(ptr::null_mut()), _event: PhantomData }
        }
    }

    /// Uses it until the returned value is dropped; nothing once somebody waits for its end, or has.
    #[inline]
    pub fn protect<'a, L: MaySignal>(&'a self, at: &'a mut Irql<L>) -> Option<Protected<'a, E, L>> {
        at.check();
        // Not `then_some`: its argument is made, and dropped, in the failing case too.
        self.acquire().then(|| Protected { rundown: self, at })
    }

    /// Counts one more use; false, and none, once somebody waits for its end, or has. Never waits.
    #[inline]
    #[must_use = "a use that was counted must be released"]
    #[doc(alias = "ExAcquireRundownProtection")]
    pub fn acquire(&self) -> bool {
        self.acquire_many(1)
    }

    /// The same for `count` uses at once: all or none.
    #[inline]
    #[must_use = "uses that were counted must be released"]
    #[doc(alias = "ExAcquireRundownProtectionEx")]
    pub fn acquire_many(&self, count: usize) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while !is_active(word) {
            let more = word.wrapping_byte_add(count * ONE);
            // Acquire: what the owner did before it opened it again.
            match self.word.compare_exchange(word, more, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Ends one use.
    ///
    /// # Safety
    /// As [`release_many`](Self::release_many), for one.
    #[inline]
    #[doc(alias = "ExReleaseRundownProtection")]
    pub unsafe fn release<L: MaySignal>(&self, at: &mut Irql<L>) {
        // SAFETY: the caller's.
        unsafe { self.release_many(1, at) };
    }

    /// Ends `count` uses.
    ///
    /// # Safety
    /// That many were acquired, and are released nowhere else.
    #[inline]
    #[doc(alias = "ExReleaseRundownProtectionEx")]
    pub unsafe fn release_many<L: MaySignal>(&self, count: usize, at: &mut Irql<L>) {
        at.check();
        // Acquire, here and in the failed exchange: a block before its address.
        let mut word = self.word.load(Ordering::Acquire);
        while !is_active(word) {
            debug_assert!(word.addr() >= count * ONE, "I1: released more often than acquired");
            let fewer = word.wrapping_byte_sub(count * ONE);
            match self.word.compare_exchange(word, fewer, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
        // SAFETY: the caller's, and the word is ACTIVE.
        unsafe { self.release_to_waiter(word, count, at) };
    }

    /// # Safety
    /// As [`release_many`](Self::release_many); `word` was read with Acquire, is ACTIVE, and the uses are still counted.
    #[cold]
    unsafe fn release_to_waiter<L: MaySignal>(&self, word: *mut Block<E>, count: usize, at: &mut Irql<L>) {
        let mut block = block_of(word);
        debug_assert!(!block.is_null(), "I1: released more often than acquired");
        let last = loop {
            // SAFETY: I2: we are counted, so no event has been set. `before` was written before the word led here.
            let this = unsafe { &*block };
            // SAFETY: as above.
            let before = this.before.with(|before| unsafe { *before });
            if before.is_null() {
                // AcqRel: our use before the last one's end; every other use before ours, if ours is the last.
                break this.count.fetch_sub(count, Ordering::AcqRel) == count;
            }
            block = before;
        };
        if !last {
            return;
        }
        // AcqRel: the blocks that came meanwhile; and who finds it complete finds all uses ended.
        let mut block = block_of(self.word.swap(complete(), Ordering::AcqRel));
        while !block.is_null() {
            // SAFETY: I2: ours was the last use, and this block's event is not set yet. The block is read first.
            block = unsafe {
                let before = (*block).before.with(|before| *before);
                E::set(&raw const (*block).event, at);
                before
            };
        }
    }

    /// Lets no new use begin and returns when none is left. Who uses it and waits here waits for ever.
    #[doc(alias = "ExWaitForRundownProtectionRelease")]
    pub fn wait<L: MayWait>(&self, at: &mut Irql<L>) {
        at.check();
        // Acquire: where it is complete, all uses.
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let now = if word.is_null() {
                // AcqRel: the uses that ended, for us and for who finds it complete.
                self.word.compare_exchange(word, complete(), Ordering::AcqRel, Ordering::Acquire)
            } else if word == complete() {
                return;
            } else {
                match self.wait_behind(word, at) {
                    Ok(()) => return,
                    Err(now) => Err(now),
                }
            };
            match now {
                Ok(_) => return,
                Err(now) => word = now,
            }
        }
    }

    /// Puts a block into the word, if that is still `word`, and sleeps until the last use has ended.
    fn wait_behind<L: MayWait>(&self, word: *mut Block<E>, at: &mut Irql<L>) -> Result<(), *mut Block<E>> {
        let (before, count) =
            if is_active(word) { (block_of(word), 0) } else { (ptr::null_mut(), word.addr() / ONE) };
        let block =
            pin!(Block { before: UnsafeCell::new(before), count: AtomicUsize::new(count), event: E::new() });
        let block = block.into_ref().get_ref();
        let mine = ptr::from_ref(block).cast_mut().map_addr(|address| address | ACTIVE);
        // From before others know of the block until they have forgotten it.
        let mut at = at.raise::<Apc>();
        // AcqRel: the block before its address; and the uses that ended while there was no block (I1).
        self.word.compare_exchange(word, mine, Ordering::AcqRel, Ordering::Acquire)?;
        block.event.wait(Some(Behind::lock("rundown", self, None)), &mut at);
        Ok(())
    }

    /// Opens it again after it was waited for; false, and nothing, if it isn't complete.
    #[must_use = "false: it is still in use or open"]
    #[doc(alias = "ExReInitializeRundownProtection")]
    pub fn reinitialize(&self) -> bool {
        self.word.compare_exchange(complete(), ptr::null_mut(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Has its end come? Stale at once if not; for good, until it is opened again, if so.
    #[doc(alias = "ExRundownCompleted")]
    pub fn is_complete(&self) -> bool {
        self.word.load(Ordering::Acquire) == complete()
    }
}

impl<E: Event> Default for Rundown<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// In use: whoever waits for the end waits for this to be dropped.
#[must_use = "dropping it at once ends the use"]
pub struct Protected<'a, E: Event, L: MaySignal> {
    rundown: &'a Rundown<E>,
    at: &'a mut Irql<L>,
}

impl<E: Event, L: MaySignal> Protected<'_, E, L> {
    /// The token that it was made with.
    #[inline(always)]
    pub fn token(&mut self) -> &mut Irql<L> {
        self.at
    }
}

impl<E: Event, L: MaySignal> Drop for Protected<'_, E, L> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: made by an acquire that succeeded, and not `Clone`.
        unsafe { self.rundown.release(self.at) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::event::hosted::ThreadEvent;
    use crate::irql::Dispatch;
    use crate::testing::at_passive;
    use core::sync::atomic::{AtomicBool, AtomicUsize};

    #[test]
    fn it_is_one_word_and_zero_is_open() {
        assert_eq!(size_of::<Rundown<ThreadEvent>>(), 8);
        assert!(Rundown::<ThreadEvent>::new().word.load(Ordering::Relaxed).is_null());
    }

    #[test]
    fn unused_it_is_complete_at_once_and_refuses_until_it_is_opened_again() {
        let rundown = Rundown::<ThreadEvent>::new();
        at_passive(|at| {
            assert!(!rundown.reinitialize(), "it is open");
            drop(rundown.protect(at).expect("it is open"));
            rundown.wait(at);
            rundown.wait(at);
            assert!(rundown.is_complete() && !rundown.acquire() && rundown.protect(at).is_none());
            assert!(rundown.reinitialize() && !rundown.is_complete());
            assert!(rundown.protect(at).is_some());
        });
    }

    #[test]
    fn uses_are_counted_in_lots_and_ended_at_dispatch() {
        let rundown = Rundown::<ThreadEvent>::new();
        at_passive(|at| {
            assert!(rundown.acquire_many(3));
            let mut at = at.raise::<Dispatch>();
            // SAFETY: three were acquired.
            unsafe {
                rundown.release_many(2, &mut at);
                assert_eq!(rundown.word.load(Ordering::Relaxed).addr(), ONE);
                rundown.release(&mut at);
            }
            assert!(rundown.word.load(Ordering::Relaxed).is_null());
        });
    }

    /// Two waiters, of whom the later one's block leads to the earlier one's.
    #[test]
    fn all_who_wait_go_on_after_the_last_use() {
        let rundown = Rundown::<ThreadEvent>::new();
        let (ended, gone) = (AtomicBool::new(false), AtomicUsize::new(0));
        assert!(rundown.acquire_many(2));
        std::thread::scope(|s| {
            for _ in 0..2 {
                let before = rundown.word.load(Ordering::Relaxed);
                s.spawn(|| {
                    at_passive(|at| rundown.wait(at));
                    assert!(ended.load(Ordering::SeqCst), "returned while it was in use");
                    gone.fetch_add(1, Ordering::SeqCst);
                });
                while rundown.word.load(Ordering::Relaxed) == before {
                    std::thread::yield_now();
                }
            }
            assert!(!rundown.acquire());
            at_passive(|at| {
                // SAFETY: two were acquired.
                unsafe { rundown.release(at) };
                assert_eq!(gone.load(Ordering::SeqCst), 0);
                ended.store(true, Ordering::SeqCst);
                // SAFETY: as above.
                unsafe { rundown.release(at) };
            });
        });
        assert_eq!(gone.load(Ordering::SeqCst), 2);
        assert!(rundown.is_complete());
    }

    #[test]
    fn what_is_protected_is_there_until_the_wait_returns() {
        const ROUNDS: usize = if cfg!(miri) { 3 } else { 500 };
        let (rundown, alive) = (Rundown::<ThreadEvent>::new(), AtomicBool::new(true));
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    at_passive(|at| {
                        let mut refused = 0;
                        while refused < ROUNDS {
                            match rundown.protect(at) {
                                Some(_used) => assert!(alive.load(Ordering::SeqCst)),
                                None => refused += 1,
                            }
                            std::thread::yield_now();
                        }
                    });
                });
            }
            s.spawn(|| {
                at_passive(|at| {
                    for _ in 0..3 * ROUNDS {
                        rundown.wait(at);
                        alive.store(false, Ordering::SeqCst);
                        std::thread::yield_now();
                        alive.store(true, Ordering::SeqCst);
                        assert!(rundown.reinitialize());
                    }
                    rundown.wait(at);
                });
            });
        });
    }
}
