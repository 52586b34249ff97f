//! What a thread is to look at, one bit each, in one word: whoever switches to it, and the thread itself before it waits, test all of it
//! at once.
//!
//! ```text
//!  who queues an APC                          its thread
//!  queued, bit set                            wait committed (`sync::wait_word`)
//!  fence (SeqCst) ───────── partners ──────── fence (SeqCst)
//!  claims its wait                            looks at this word
//!  => finds the wait, and ends it       or => finds the bit, and ends the wait by itself
//!
//!  who queues an APC                          the processor that switches to the thread
//!  queued, bit set                            `PrcbLock` held: place = running here
//!  looks at the thread's place under          looks at this word
//!    that processor's `PrcbLock`              lets go of the lock
//!  => finds it running, and interrupts  or => finds the bit, and interrupts itself
//! ```
//!
//! Owns:       [`Attention`], one word of a thread. Not: what the bits stand for (kernel/ke/apc and others).
//! Called by:  kernel/ke/apc (sets), kernel/ke/wait and kernel/ke/sched (look).
//! IRQL:       any; as the pictures say.
//! Invariants: I1 something that a bit stands for was left for a thread => the thread ends its wait or doesn't begin one, or a processor
//!                that runs it, or is about to, is interrupted; so a look that comes later than the setting is ahead.
//! Tests:      tests/models/tests/attention.rs (I1: against a wait, against a switch, against a migration).

use crate::prim::{AtomicU32, Ordering, const_unless_loom, fence};

/// Of a thread; see the module.
pub struct Attention(AtomicU32);

/// Some of the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signs(u32);

impl Signs {
    /// None.
    pub const NONE: Self = Self(0);
    /// A special kernel APC is queued.
    pub const SPECIAL_APC: Self = Self(1 << 0);
    /// A normal kernel APC is queued.
    pub const NORMAL_APC: Self = Self(1 << 1);
    /// The thread is to end.
    pub const TERMINATE: Self = Self(1 << 2);
    /// A user APC is queued.
    pub const USER_APC: Self = Self(1 << 3);
    /// User APCs are to be delivered on the next way to user mode.
    pub const USER_APC_PENDING: Self = Self(1 << 4);
    /// Alerted in kernel mode.
    pub const ALERT_KERNEL: Self = Self(1 << 5);
    /// Alerted in user mode.
    pub const ALERT_USER: Self = Self(1 << 6);
    /// It takes its work from a queue object, which counts it while it doesn't wait.
    pub const IN_QUEUE: Self = Self(1 << 7);
    /// It has register state besides the general registers.
    pub const EXTENDED_STATE: Self = Self(1 << 8);

    /// It is attached to an address space.
    pub const ATTACHED: Self = Self(1 << 9);

    /// What delivery at APC level sees to.
    pub const KERNEL: Self = Self(Self::SPECIAL_APC.0 | Self::NORMAL_APC.0 | Self::TERMINATE.0);
    /// What a thread sees to before it switches away to wait.
    pub const BEFORE_A_WAIT: Self = Self(!(Self::EXTENDED_STATE.0 | Self::ATTACHED.0));

    /// These and those.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Is one of `others` among these?
    pub const fn any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl Attention {
    const_unless_loom! {
        /// Nothing to look at.
        pub const fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Sets `signs`; true if one of them was set before. What the caller looks at next, the thread's wait or its place, is not older than
    /// this.
    pub fn raise(&self, signs: Signs) -> bool {
        let before = self.0.fetch_or(signs.0, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        before & signs.0 != 0
    }

    /// Clears `signs`; true if one of them was set.
    pub fn clear(&self, signs: Signs) -> bool {
        self.0.fetch_and(!signs.0, Ordering::AcqRel) & signs.0 != 0
    }

    /// What is set. By the thread behind the fence of its commit, or by the processor that switches to it, under its lock.
    #[inline(always)]
    pub fn look(&self) -> Signs {
        Signs(self.0.load(Ordering::Relaxed))
    }

    /// Is any of `signs` set? As [`look`](Self::look).
    #[inline(always)]
    pub fn any(&self, signs: Signs) -> bool {
        self.look().any(signs)
    }

    /// Is anything set in either word? For a switch from one thread to another.
    #[inline(always)]
    pub fn either(&self, other: &Self) -> bool {
        (self.look().0 | other.look().0) != 0
    }
}

impl Default for Attention {
    fn default() -> Self {
        Self::new()
    }
}
