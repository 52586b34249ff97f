//! What the scheduler knows of a thread: the part that its policy works on, with no machine in it.
//!
//! | field | written | read |
//! |---|---|---|
//! | `links`, `waits` | under the `PrcbLock` of the processor in whose queue it is | the same |
//! | `place` | that of the processor in it, before or after; `Waiting`: by who has the thread to itself | any |
//! | `priority`, `base` | under the thread's `ThreadLock`, and the `PrcbLock` of the processor in `place` if it has one; relief from starvation: under the latter, while it is ready | either lock |
//! | `affinity`, `ideal` | under the `ThreadLock` | that lock; while ready, the `PrcbLock` too |
//! | `quantum`, `starved` | by the processor that runs it | the same |
//!
//! Invariants: I1 `Ready(p)`: linked in the queue of `p` for its priority. `Standby(p)`: what `p` runs next. `Running(p)`: what
//!                it runs.
//!             I2 `base` <= `priority` where both are below 16; equal from 16 on. Neither crosses 16 by itself.
//!             I3 the processor in `place` is in `affinity` whenever `place` is `Ready`, `Standby` or `Running`, or
//!                `affinity` was changed and the processor has been told.

use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Priorities from here on are real-time: neither boosted nor decayed.
#[doc(alias = "LOW_REALTIME_PRIORITY")]
pub const REAL_TIME: u8 = 16;
/// How many there are.
#[doc(alias = "MAXIMUM_PRIORITY")]
pub const PRIORITIES: u8 = 32;

/// What a thread is doing, and where. NT's KTHREAD_STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Made, not started; it would rather start on that processor.
    Initialized(u32),
    /// In the ready queue of that processor.
    Ready(u32),
    /// Running on it.
    Running(u32),
    /// Next to run on it.
    Standby(u32),
    /// Over; it ran there last.
    Terminated(u32),
    /// Waits, or is about to be made ready; it ran there last.
    Waiting(u32),
}

impl Place {
    /// What the trace calls it.
    pub(in crate::ke) const fn number(self) -> u16 {
        self.pack() as u16 & 0xFF
    }

    const fn pack(self) -> u32 {
        match self {
            Self::Initialized(p) => p << 8,
            Self::Ready(p) => 1 | p << 8,
            Self::Running(p) => 2 | p << 8,
            Self::Standby(p) => 3 | p << 8,
            Self::Terminated(p) => 4 | p << 8,
            Self::Waiting(p) => 5 | p << 8,
        }
    }

    const fn unpack(word: u32) -> Self {
        let processor = word >> 8;
        match word & 0xFF {
            0 => Self::Initialized(processor),
            1 => Self::Ready(processor),
            2 => Self::Running(processor),
            3 => Self::Standby(processor),
            4 => Self::Terminated(processor),
            _ => Self::Waiting(processor),
        }
    }

    /// The processor, where it has something to do with it.
    pub const fn processor(self) -> Option<u32> {
        match self {
            Self::Ready(p) | Self::Running(p) | Self::Standby(p) => Some(p),
            _ => None,
        }
    }
}

/// A [`Place`] as it is stored, for who sets the same again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedPlace(u32);

impl PackedPlace {
    /// `place`, packed.
    pub const fn new(place: Place) -> Self {
        Self(place.pack())
    }
}

/// Neighbours in a ready queue.
pub(super) struct Links {
    pub(super) next: *const Schedulable,
    pub(super) previous: *const Schedulable,
}

/// See the module.
pub struct Schedulable {
    pub(super) links: UnsafeCell<Links>,
    place: AtomicU32,
    priority: AtomicU8,
    base: AtomicU8,
    /// Boosted because it had starved: falls back to its base at once when its quantum ends.
    starved: AtomicU8,
    waits: AtomicU8,
    ideal: AtomicU32,
    affinity: AtomicU64,
    /// TSC ticks left of the quantum; not above zero: it is over.
    quantum: AtomicI64,
    /// What it starts with.
    quantum_reset: AtomicI64,
}

// SAFETY: `links` is accessed under the lock of the queue that it is in (I1); the rest is atomics.
unsafe impl Sync for Schedulable {}
// SAFETY: as above.
unsafe impl Send for Schedulable {}

macro_rules! field {
    ($(#[$doc:meta])* $get:ident, $set:ident, $field:ident: $type:ty) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $get(&self) -> $type {
            self.$field.load(Ordering::Relaxed)
        }

        /// By whoever may write it, says the module.
        #[inline(always)]
        pub fn $set(&self, to: $type) {
            self.$field.store(to, Ordering::Relaxed);
        }
    };
}

impl Schedulable {
    /// A thread of priority `base` that may run on the processors in `affinity`, of which `ideal` is one.
    pub const fn new(base: u8, affinity: u64, ideal: u32, quantum: i64) -> Self {
        Self {
            links: UnsafeCell::new(Links { next: ptr::null(), previous: ptr::null() }),
            place: AtomicU32::new(Place::Initialized(ideal).pack()),
            priority: AtomicU8::new(base),
            base: AtomicU8::new(base),
            starved: AtomicU8::new(0),
            waits: AtomicU8::new(0),
            ideal: AtomicU32::new(ideal),
            affinity: AtomicU64::new(affinity),
            quantum: AtomicI64::new(quantum),
            quantum_reset: AtomicI64::new(quantum),
        }
    }

    field! {
        /// The priority that it competes with.
        priority, set_priority, priority: u8
    }
    field! {
        /// The priority that boosts decay to.
        base, set_base, base: u8
    }
    field! {
        /// The processors that it may run on.
        affinity, set_affinity, affinity: u64
    }
    field! {
        /// The processor that it prefers.
        ideal, set_ideal, ideal: u32
    }
    field! {
        /// What is left of its quantum, in TSC ticks.
        quantum, set_quantum, quantum: i64
    }
    field! {
        /// What its quantum starts with.
        quantum_reset, set_quantum_reset, quantum_reset: i64
    }
    field! {
        /// How often its processor has found it in the same queue, once a second. Under that processor's lock.
        waits, set_waits, waits: u8
    }

    /// What it does, and where.
    #[inline(always)]
    pub fn place(&self) -> Place {
        Place::unpack(self.place.load(Ordering::Relaxed))
    }

    /// The processor that it runs on, is queued on, or ran on last.
    #[inline(always)]
    pub fn last(&self) -> u32 {
        self.place.load(Ordering::Relaxed) >> 8
    }

    /// [`set_place`](Self::set_place), where it was packed before.
    #[inline(always)]
    pub fn set_packed_place(&self, place: PackedPlace) {
        self.place.store(place.0, Ordering::Relaxed);
    }

    /// The same as a number, for reports: 0 to 5 in the order of [`Place`], the processor above bit 8.
    #[cfg(feature = "verifier")]
    pub fn packed_place(&self) -> u32 {
        self.place().pack()
    }

    /// By whoever may write it, says the module.
    #[inline(always)]
    pub fn set_place(&self, place: Place) {
        self.place.store(place.pack(), Ordering::Relaxed);
    }

    /// May it run there?
    #[inline(always)]
    pub fn may_run_on(&self, processor: u32) -> bool {
        self.affinity() >> processor & 1 != 0
    }

    /// Does it compete with more than its base?
    #[inline(always)]
    pub fn is_boosted(&self) -> bool {
        self.priority() > self.base() && self.priority() < REAL_TIME
    }

    pub(super) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) != 0
    }

    pub(super) fn set_starved(&self, starved: bool) {
        self.starved.store(starved.into(), Ordering::Relaxed);
    }
}
