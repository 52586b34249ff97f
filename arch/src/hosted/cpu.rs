//! Which processor a thread is, and what a processor can do besides changing its level.
//!
//! A test that cares says so with [`enter`]. A thread that did not is given a number of its own at first use, from 63
//! downwards, so that it meets no number chosen by hand; the number is free again when the thread ends. In a model every
//! thread must enter: a number handed out by the order of arrival would differ between executions.

use core::cell::Cell;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicU64, Ordering};

use super::{inject, pcr, per_processor, trap};

/// Processors that one machine can have: the width of a processor mask.
pub const MAX: u32 = 64;

per_processor! {
    static ENTERED: Cell<Option<u32>> = Cell::new(None)
}

/// This processor's number.
///
/// # Panics
/// When more than [`MAX`] threads want a number at once; in a model, when the thread did not [`enter`].
pub fn number() -> u32 {
    inject::point();
    ENTERED.with(Cell::get).unwrap_or_else(unentered)
}

/// While it lives, this thread is the processor it was entered as.
#[must_use = "the thread is that processor only while this value lives"]
pub struct Entered {
    before: Option<u32>,
    _not_send: core::marker::PhantomData<*mut ()>,
}

/// Makes this thread processor `number`. Two threads of one test must not share a number.
pub fn enter(number: u32) -> Entered {
    assert!(number < MAX, "processor {number} of {MAX}");
    Entered { before: ENTERED.with(|e| e.replace(Some(number))), _not_send: core::marker::PhantomData }
}

impl Drop for Entered {
    fn drop(&mut self) {
        ENTERED.with(|e| e.set(self.before));
    }
}

/// As [`enter`], for a virtual processor (`pcr`), which comes and goes.
pub(super) fn become_number(number: Option<u32>) {
    ENTERED.with(|entered| entered.set(number));
}

/// IF; a thread that is no virtual processor has it set for good.
pub fn interrupts_enabled() -> bool {
    pcr::installed().is_none_or(pcr::Pcr::is_enabled)
}

/// Masks interrupts of a virtual processor.
///
/// # Safety
/// As on the machine.
pub unsafe fn cli() {
    if let Some(here) = pcr::installed() {
        here.enable(false);
    }
}

/// Lets them in, at once.
///
/// # Safety
/// As on the machine.
pub unsafe fn sti() {
    if let Some(here) = pcr::installed() {
        here.enable(true);
        inject::point();
    }
}

/// Lets them in and halts until one has come.
///
/// # Safety
/// As on the machine.
pub unsafe fn sti_hlt() {
    if let Some(here) = pcr::installed() {
        (trap::upcalls().halt)(here);
        here.enable(true);
        trap::take();
    }
}

/// Tells the processor that it is in a spin loop. The host has fewer cores than a test has processors, so it gives way.
pub fn spin_hint() {
    inject::point();
    #[cfg(not(loom))]
    inject::spun();
    #[cfg(loom)]
    explored::spin();
}

#[cfg(loom)]
pub use explored::explore_spins;

/// A spin loop's endless variants. Which thread goes on after a spin hint is no preemption to loom, so where three threads
/// wait it would explore executions that leave one of them out for ever.
#[cfg(loom)]
mod explored {
    use std::cell::Cell;

    std::thread_local! {
        /// Spin hints that this execution may still explore. loom runs all threads of a model on one of the host's.
        static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    }

    /// To be called first in each execution: after `count` spin hints, by whichever threads, the rest of it runs once, under
    /// loom's fair choice, instead of in every variant.
    pub fn explore_spins(count: u32) {
        LEFT.set(count);
    }

    pub(super) fn spin() {
        match LEFT.get().checked_sub(1) {
            Some(left) => LEFT.set(left),
            None => loom::skip_branch(),
        }
        loom::hint::spin_loop();
    }
}

/// A count that never runs backwards: nanoseconds since the first call.
pub fn timestamp() -> u64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    inject::point();
    let start = START.get_or_init(std::time::Instant::now);
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(loom)]
fn unentered() -> u32 {
    panic!("a thread of a model must say which processor it is: arch::cpu::enter(n)")
}

/// Bit n is set while processor n is some unentered thread.
#[cfg(not(loom))]
static TAKEN: AtomicU64 = AtomicU64::new(0);

#[cfg(not(loom))]
struct Automatic(u32);

#[cfg(not(loom))]
impl Drop for Automatic {
    fn drop(&mut self) {
        TAKEN.fetch_and(!(1 << self.0), Ordering::Release);
    }
}

#[cfg(not(loom))]
fn unentered() -> u32 {
    std::thread_local! { static AUTOMATIC: Automatic = take_highest_free() }
    // A thread that is being torn down has given its number back; any will do for its last destructors.
    AUTOMATIC.try_with(|a| a.0).unwrap_or(0)
}

#[cfg(not(loom))]
fn take_highest_free() -> Automatic {
    let taken = TAKEN
        .fetch_update(Ordering::Acquire, Ordering::Relaxed, |taken| {
            let free = !taken;
            (free != 0).then(|| taken | 1 << free.ilog2())
        })
        .expect("more than 64 threads want to be processors at once");
    Automatic((!taken).ilog2())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn unentered_threads_have_different_numbers() {
        let mine = number();
        let theirs = std::thread::spawn(number).join().unwrap();
        assert_ne!(mine, theirs);
        assert_eq!(mine, number());
    }

    #[test]
    fn entering_nests() {
        let outer = enter(3);
        {
            let _inner = enter(5);
            assert_eq!(number(), 5);
        }
        assert_eq!(number(), 3);
        drop(outer);
        assert_ne!(number(), 3);
    }
}
