//! Which processor keeps the shared time up to date: one of those that are busy, nobody while all are idle.
//!
//! | who | does | then |
//! |---|---|---|
//! | leaves idle | sets its `busy` bit, fence, looks at `owner` | claims it if it is nobody's, updates the time, and says so; waits for whoever has claimed and not said so |
//! | goes idle as the owner | clears its `busy` bit, `owner` := nobody, fence, looks at `busy` | nudges one that is busy |
//! | is nudged | looks at `owner` | claims it if it is nobody's and it is busy; else passes the nudge on |
//!
//! Invariants: I1 at most one processor owns the clock: `owner` leaves `NOBODY` by one exchange, and returns to it by its owner.
//!             I2 some processor is busy => there is an owner, or a processor between two of the steps above, or a nudge on its
//!                way that will look.
//!             I3 `leave_idle` returns => the time was updated since somebody became busy, or the caller is to do it now: CLAIMING is
//!                set from the claim until that update, a few instructions with nothing in between that waits.
//! Ordering:   `updated` is a Release, the wait for it an Acquire. The fences stand in a store-buffering pair: of one that becomes busy
//!             and one that gives the clock up, at least one sees the other.
//! IRQL:       DISPATCH or above, or IF=0: a processor's own steps don't interleave.
//! Tests:      tests/models/tests/clock_owner.rs (I1, I2).

use crate::prim::{AtomicU32, AtomicU64, Backoff, Ordering, const_unless_loom, fence};

const NOBODY: u32 = u32::MAX;
/// The owner has not updated the time yet (I3).
const CLAIMING: u32 = 1 << 16;

/// See the module.
pub struct ClockOwner {
    owner: AtomicU32,
    /// Bit n: processor n is not idle. Written by n.
    busy: AtomicU64,
}

impl ClockOwner {
    const_unless_loom! {
        /// All idle.
        pub const fn new() -> Self {
            Self { owner: AtomicU32::new(NOBODY), busy: AtomicU64::new(0) }
        }
    }

    /// Processor `me` is idle no more. True: it owns the clock from now on, and updates the time before anything else, then
    /// calls [`updated`](Self::updated). With interrupts off: others wait for it.
    #[must_use]
    pub fn leave_idle(&self, me: u32) -> bool {
        self.busy.fetch_or(1 << me, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.claim(me) {
            return true;
        }
        let backoff = Backoff::new();
        loop {
            let owner = self.owner.load(Ordering::Acquire);
            if owner == NOBODY || owner & CLAIMING == 0 {
                return false;
            }
            backoff.spin();
        }
    }

    /// The new owner, processor `me`, has updated the time.
    pub fn updated(&self, me: u32) {
        self.owner.store(me, Ordering::Release);
    }

    /// Processor `me` has nothing to do. The processor to nudge, if the clock needs another owner.
    #[must_use]
    pub fn go_idle(&self, me: u32) -> Option<u32> {
        self.busy.fetch_and(!(1 << me), Ordering::Relaxed);
        if self.owner.load(Ordering::Relaxed) != me {
            return None;
        }
        // Release: the time that this owner wrote, before the next one's.
        self.owner.store(NOBODY, Ordering::Release);
        fence(Ordering::SeqCst);
        self.any_busy()
    }

    /// Processor `me` was nudged, or looks by itself. What is to be done.
    #[must_use]
    pub fn nudged(&self, me: u32) -> Nudge {
        if self.owner.load(Ordering::Relaxed) != NOBODY {
            return Nudge::Nothing;
        }
        fence(Ordering::SeqCst);
        if self.busy.load(Ordering::Relaxed) & 1 << me != 0 {
            return if self.claim(me) { Nudge::Owned } else { Nudge::Nothing };
        }
        self.any_busy().map_or(Nudge::Nothing, Nudge::Pass)
    }

    /// Does processor `me` own the clock? Exact for the owner itself.
    #[inline(always)]
    pub fn is(&self, me: u32) -> bool {
        self.owner.load(Ordering::Relaxed) == me
    }

    /// Has nobody the clock? Then whoever looks asks [`nudged`](Self::nudged). Stale at once.
    #[inline(always)]
    pub fn is_unowned(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == NOBODY
    }

    /// The processors that are not idle. Stale at once.
    pub fn busy(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Is processor `number` idle? Stale at once.
    #[inline(always)]
    pub fn is_idle(&self, number: u32) -> bool {
        self.busy() & 1 << number == 0
    }

    fn claim(&self, me: u32) -> bool {
        self.owner.load(Ordering::Relaxed) == NOBODY
            && self
                .owner
                .compare_exchange(NOBODY, me | CLAIMING, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    fn any_busy(&self) -> Option<u32> {
        let busy = self.busy();
        (busy != 0).then(|| busy.trailing_zeros())
    }
}

impl Default for ClockOwner {
    fn default() -> Self {
        Self::new()
    }
}

/// What a nudge leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nudge {
    /// There is an owner, or nobody is busy.
    Nothing,
    /// This processor owns the clock now: it updates the time and calls [`ClockOwner::updated`].
    Owned,
    /// This one is idle; nudge that one.
    Pass(u32),
}
