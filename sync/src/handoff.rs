//! The hand-off of a thread that waits: it becomes runnable elsewhere only once its context is saved.
//!
//! A thread that waits can be satisfied, on another processor, from the moment that its wait is committed, while its own processor
//! still runs on its stack. Whoever makes it runnable asks here; if the context isn't saved yet, the processor that saves it is told
//! to make it runnable then. Nobody spins.
//!
//! ```text
//!  the processor that it waits on            whoever satisfied the wait
//!  registers saved (swap_context)
//!  saved():  ON cleared   (AcqRel) ────────► wake(): ON clear  => Now: the saved context is seen
//!            WOKEN found  => true  ◄──────── wake(): ON set    => Later: WOKEN is left behind
//! ```
//!
//! Owns:       [`Handoff`], one word of a thread.
//! Called by:  kernel/ke/sched: `saved` on the far side of a switch, `wake` by who readies, `run` by who switches to it.
//! IRQL:       DISPATCH.
//! Invariants: I1 ON is set exactly from `run` to `saved`: while some processor is on the thread's stack.
//!             I2 of a `wake` and the `saved` of the same stay, exactly one is told that the thread is its to make ready.
//! Ordering:   both are read-modify-writes with AcqRel of one word, so the later of the two sees all that came before the earlier.
//! Tests:      tests/models/tests/handoff.rs (I2; the saved context is seen).

use crate::prim::{AtomicU32, Ordering, const_unless_loom};

const ON: u32 = 1;
/// Added, not set: it happens once a stay, and what an addition found before is had in one instruction.
const WOKEN: u32 = 2;

/// See the module.
pub struct Handoff(AtomicU32);

/// Who makes the thread ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "`Now` is a duty: nobody else makes the thread ready"]
pub enum Wake {
    /// The caller: its context is saved.
    Now,
    /// The processor that is about to save it.
    Later,
}

impl Handoff {
    const_unless_loom! {
        /// Of a thread that runs nowhere: new, with a prepared context.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Of a thread that runs.
    pub fn running(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ON != 0
    }

    /// Its processor switches to it: by whoever took it off a ready queue, so nobody else is at this word.
    #[inline(always)]
    pub fn run(&self) {
        self.0.store(ON, Ordering::Relaxed);
    }

    /// Its wait is over. Once for each wait, by whoever won it.
    #[inline(always)]
    pub fn wake(&self) -> Wake {
        if self.0.fetch_add(WOKEN, Ordering::AcqRel) & ON == 0 { Wake::Now } else { Wake::Later }
    }

    /// Its context is saved. True: the wait was over already, and the thread is the caller's to make ready.
    #[inline(always)]
    pub fn saved(&self) -> bool {
        self.0.fetch_sub(ON, Ordering::AcqRel) & WOKEN != 0
    }
}

impl Default for Handoff {
    fn default() -> Self {
        Self::new()
    }
}
