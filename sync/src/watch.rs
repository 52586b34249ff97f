//! An idle processor that still watches: for a moment before it halts it looks at a word of its own, and who has something for it changes
//! that word instead of interrupting it.
//!
//! | who | when | the word |
//! |---|---|---|
//! | its processor | idle, behind its last look for work | OFF becomes WATCHES |
//! | another one, that has left something to look for there | before it would interrupt it | WATCHES becomes ASKED, by a compare-exchange; if it is anything else: it interrupts |
//! | its processor | stops watching: to halt, to look, or to run something that an interrupt brought | any becomes OFF, by an exchange; it was ASKED: a look is due |
//!
//! Nothing can be lost: both sides change one word by exchanges alone, so the compare-exchange comes before the one that ends the watch, and
//! is seen by it, or fails. A look at an old value costs an interrupt that was not needed, or a compare-exchange that fails.
//!
//! Owns:       [`Watch`], one for each processor.
//! IRQL:       any for `ask`; the rest by the processor's idle thread, and by what it is left for, on that processor.
//! Invariants: I1 the word is not OFF => the processor's idle thread runs, or an interrupt of it that ends the watch before it has something
//!                else run.
//!             I2 `ask` was true => the `end` that follows is true, and what was stored before the one is visible behind the other.
//! Tests:      tests/models/tests/idle_set.rs; checked build, at each switch (I1).

use crate::prim::{AtomicU32, Ordering, const_unless_loom};

const OFF: u32 = 0;
const WATCHES: u32 = 1;
const ASKED: u32 = 2;

/// See the module.
pub struct Watch(AtomicU32);

impl Watch {
    const_unless_loom! {
        /// Nobody watches.
        pub const fn new() -> Self {
            Self(AtomicU32::new(OFF))
        }
    }

    /// From now on others ask. Its own processor, which looks at [`is_unasked`](Self::is_unasked) until it calls [`end`](Self::end).
    #[inline(always)]
    pub fn begin(&self) {
        // Of the values, only WATCHES is ever changed by others.
        self.0.store(WATCHES, Ordering::Relaxed);
    }

    /// Does the watch go on? No: somebody has asked, or an interrupt ended it. Its own processor.
    #[inline(always)]
    pub fn is_unasked(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WATCHES
    }

    /// Does its processor watch, or was it asked as it did? Its own processor.
    #[inline(always)]
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) != OFF
    }

    /// The processor watches no longer. True: it was asked, and must look (I2). Its own processor.
    #[must_use = "who asked has sent no interrupt"]
    #[inline(always)]
    pub fn end(&self) -> bool {
        self.0.swap(OFF, Ordering::Acquire) == ASKED
    }

    /// Something was left for the processor to look for: is it told by this? False: it must be interrupted.
    #[must_use = "the processor must be interrupted if it doesn't watch"]
    #[inline(always)]
    pub fn ask(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WATCHES
            && self.0.compare_exchange(WATCHES, ASKED, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}
