//! Which processors are idle, and the look by which none stays idle while a thread that it may run is ready.
//!
//! ```text
//!  processor that goes idle                  processor that queues a thread somewhere
//!  its bit set                               thread queued, its queue's summary stored
//!  fence (SeqCst) ───────── partners ─────── fence (SeqCst)
//!  looks at all queues' summaries            looks at the set
//!  => finds the thread                  or   => finds the idle processor, clears its bit, and interrupts it
//!  with IF=0: its bit still set? halts
//! ```
//!
//! The bit says that a look is behind the processor and nothing has come since. Whoever finds it set and clears it owes the processor an
//! interrupt; that finds it halted, or on its way, where it sees the bit clear and looks again. So a processor is
//! told of one thread at a time, and the next thread is told to the next processor.
//!
//! A processor that is told may have found another thread in the look that was under way, or be given one that may run nowhere else.
//! So the word that it was told stays with it until a look begins, or it passes it on: to all that are idle then, since it doesn't know who
//! may run what it was told of. `claim` is an Acquire of `enter`, so that the word is not taken back by what came before that.
//!
//! Owns:       [`IdleSet`]: one word for all processors, written only where one begins or ends to be idle.
//! IRQL:       DISPATCH, or with IF=0.
//! Invariants: I1 a processor's bit is set before its last look at the queues; cleared by itself when it runs something, or by who
//!                gives it a thread, or tells it of one, and then interrupts it.
//! Tests:      tests/models/tests/idle_set.rs (no thread is left queued with nobody to look).

use crate::prim::{AtomicU64, Ordering, const_unless_loom, fence};

/// See the module.
pub struct IdleSet(AtomicU64);

impl IdleSet {
    const_unless_loom! {
        /// Nobody is idle.
        pub const fn new() -> Self {
            Self(AtomicU64::new(0))
        }
    }

    /// Processor `number` is idle. What it looks at next is not older than this.
    #[inline]
    pub fn enter(&self, number: u32) {
        self.0.fetch_or(1 << number, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// It is not, or was given a thread.
    #[inline]
    pub fn leave(&self, number: u32) {
        self.0.fetch_and(!(1 << number), Ordering::Relaxed);
    }

    /// Those that are idle: where a thread may go. A hint, as nothing is ordered.
    #[inline(always)]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Those that are idle, looked at after a thread was queued: one that it may run on has to be told.
    #[inline(always)]
    pub fn after_queueing(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }

    /// Behind `after_queueing`: one of those in `allowed` that is idle, and is not for others any more. The caller must interrupt it.
    #[must_use = "it halts, and knows of nothing"]
    pub fn claim(&self, allowed: u64) -> Option<u32> {
        loop {
            let found = self.0.load(Ordering::Relaxed) & allowed;
            if found == 0 {
                return None;
            }
            let number = found.trailing_zeros();
            if self.0.fetch_and(!(1 << number), Ordering::Acquire) >> number & 1 != 0 {
                return Some(number);
            }
        }
    }
}

impl Default for IdleSet {
    fn default() -> Self {
        Self::new()
    }
}
