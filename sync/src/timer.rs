//! Timers: who may touch one when, between who sets and cancels it, on any processor, and the processor in whose table it is.
//!
//! ```text
//! set, cancel                                    expiry, on the table's processor
//! the timer's own lock                           the table's lock
//!   INSERTED: the lock of its table                off the wheel, as it is due; its own lock, tried:
//!     off the wheel                                  free: signalled, not INSERTED; own lock released,
//!   set: the new table's lock                          only then its DPC: the timer may be gone by now
//!     on to the wheel                                taken: refused, tried again with a later look
//!   INSERTED or not; own lock released           the table's lock released
//! ```
//!
//! A cancel that returns true took the timer off under both locks, so no expiry of that setting can follow. An expiry has
//! the table's lock first, so it only tries the timer's: the holder of that may be waiting for the table.
//!
//! Owns:       [`Table`], set, cancel and expiry. Not: how timers are linked ([`Wheel`]), what one does when it expires.
//! Called by:  kernel/ke/timer/set.rs; the tables are fields of the PRCB.
//! IRQL:       set and cancel at or below DISPATCH, expiry at DISPATCH on the table's processor.
//! Locks:      the timer's own (`ObjectLock`, in its header), then a table's (`TimerTableLock`).
//! Invariants: I1 for who holds its own lock: INSERTED is set exactly while the timer is in the table that `Timed::table` names.
//!             I2 what a setting consists of is written under the timer's own lock and the lock of the table that it goes to, in
//!                no table yet; so either lock is enough to read it while the timer is in that one.
//!             I3 expiry touches a timer no more once it has released the timer's own lock, or has refused it.
//! Ordering:   the two locks'.
//! Tests:      tests/models/tests/timer.rs (each setting ends once; freed after a cancel and by its own DPC).
//! Sources:    WDK, `KeSetTimerEx`, `KeCancelTimer`, "Timer Objects and DPCs".

use core::hint::cold_path;
use core::ptr::NonNull;

use crate::bit_lock::{HeldBit, LockWord};
use crate::deadline::Earliest;
use crate::irql::{Below, Irql, ObjectLock, TimerTableLock};
use crate::prim::const_unless_loom;
use crate::spin::SpinLock;

/// In a timer's lock word: it is in a table (I1).
pub const INSERTED: u32 = 1 << 30;

/// A timer, as far as its protocol goes.
///
/// # Safety
/// `table` is the one that the last set was given.
pub unsafe trait Timed: Sized {
    /// What it is linked in.
    type Wheel: Wheel<Timer = Self>;

    /// Its own lock, and INSERTED.
    fn word(&self) -> &LockWord<ObjectLock>;

    /// The table that it is in.
    ///
    /// # Safety
    /// The caller holds its own lock and has seen INSERTED.
    unsafe fn table(&self) -> &Table<Self::Wheel>;
}

/// What a table's timers are linked in.
///
/// # Safety
/// A timer is linked from its arming to when `next_due` gives it out or `remove` takes it off; until then `next_due` may give it out.
/// A refused one counts as linked.
pub unsafe trait Wheel: Sized {
    /// What is linked.
    type Timer: Timed<Wheel = Self>;

    /// Takes off the first timer that is due at `now`. Nothing: this look is over.
    fn next_due(&mut self, now: u64) -> Option<NonNull<Self::Timer>>;

    /// When something wants to be looked at next; `u64::MAX`: there is nothing.
    fn earliest(&self) -> u64;

    /// Takes `timer` off.
    ///
    /// # Safety
    /// It is linked here.
    unsafe fn remove(&mut self, timer: NonNull<Self::Timer>);

    /// `timer` is given out again by a look after this one.
    ///
    /// # Safety
    /// `next_due(now)` gave it out just now.
    unsafe fn refuse(&mut self, timer: NonNull<Self::Timer>, now: u64);
}

/// How a timer is set. A trait and no closure, so that its steps can be inlined whatever the compiler thinks.
///
/// # Safety
/// 1. `arm` links the timer in the wheel that it is given, `table`'s, and has it name that table.
/// 2. `FLAGS` and `flags` have no bit in common with the lock and INSERTED.
pub unsafe trait Setting<T: Timed> {
    /// The bits of the word that tell how it is set.
    const FLAGS: u32;

    /// Where it goes.
    fn table(&self) -> &Table<T::Wheel>;

    /// Which of [`FLAGS`](Self::FLAGS).
    fn flags(&self) -> u32;

    /// Writes the setting and links the timer. Both locks are held, and it is in no table. When it is to expire; nothing:
    /// something in the same place of the wheel is to expire sooner.
    ///
    /// # Safety
    /// That.
    unsafe fn arm(&self, timer: NonNull<T>, wheel: &mut T::Wheel) -> Option<u64>;
}

/// One processor's timers.
pub struct Table<W> {
    wheel: SpinLock<W, TimerTableLock>,
    /// At most what the wheel says. Written under the lock.
    earliest: Earliest,
}

/// What a set came to.
#[derive(Clone, Copy, Debug)]
#[must_use = "the clock may have to be armed anew"]
pub struct Set {
    /// The timer was in a table.
    pub was_set: bool,
    /// It is now the first of its table: the caller sees to it that the table's clock is armed for it (deadline.rs).
    pub sooner: bool,
}

/// What an expiry makes of its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// In no table any more.
    Out,
    /// Linked in the wheel again.
    Again,
}

impl<W> Table<W> {
    const_unless_loom! {
        /// `wheel` is empty.
        pub const fn new(wheel: W) -> Self {
            Self { wheel: SpinLock::new(wheel), earliest: Earliest::new() }
        }
    }

    /// When the processor's clock must interrupt for it.
    #[inline(always)]
    pub fn earliest(&self) -> &Earliest {
        &self.earliest
    }
}

impl<W: Wheel> Table<W> {
    /// Expires what is due at `now`, timer by timer, until one has left something to do with neither lock held.
    ///
    /// `expired` has the timer to itself, taken off the wheel, under both locks. With what it returns `then` goes on, under the
    /// table's lock alone: the timer may be set again or gone by then (I3).
    ///
    /// # Safety
    /// 1. On the table's processor.
    /// 2. `expired` links the timer in the wheel again, and says so, or does neither.
    #[inline(always)]
    pub unsafe fn expire<L: Below<TimerTableLock>, D, R>(
        &self,
        now: u64,
        at: &mut Irql<L>,
        mut expired: impl FnMut(&W::Timer, &mut W, &mut HeldBit<'_, ObjectLock>) -> (After, D),
        mut then: impl FnMut(D, &mut Irql<TimerTableLock>) -> Option<R>,
    ) -> Option<R> {
        let mut guard = self.wheel.lock(at);
        let (wheel, at) = guard.parts();
        while let Some(timer) = wheel.next_due(now) {
            // SAFETY: it was in the table, and so is valid until INSERTED is taken back under its own lock.
            let it = unsafe { timer.as_ref() };
            let Some(mut held) = it.word().try_lock_out_of_order(at) else {
                // SAFETY: given out just now.
                unsafe { wheel.refuse(timer, now) };
                continue;
            };
            let (after, done) = expired(it, wheel, &mut held);
            // The last access (I3).
            held.release_with(if after == After::Out { INSERTED } else { 0 }, 0);
            if let Some(result) = then(done, at) {
                return Some(result);
            }
        }
        self.earliest.set(wheel.earliest());
        None
    }

    /// Changes what is linked.
    ///
    /// # Safety
    /// `change` links what was linked, and nothing else.
    pub unsafe fn change<L: Below<TimerTableLock>>(&self, at: &mut Irql<L>, change: impl FnOnce(&mut W)) {
        let mut wheel = self.wheel.lock(at);
        change(&mut wheel);
        self.earliest.set(wheel.earliest());
    }
}

/// Sets `timer` as `setting` says, having taken it out of the table that it is in. With `NEW`, nothing is done and returned
/// where it is in one.
///
/// # Safety
/// `timer` is valid until it is in no table any more.
#[inline(always)]
pub unsafe fn set<T: Timed, L: Below<ObjectLock>, S: Setting<T>, const NEW: bool>(
    timer: NonNull<T>,
    setting: S,
    at: &mut Irql<L>,
) -> Option<Set> {
    // SAFETY: the caller's.
    let it = unsafe { timer.as_ref() };
    let mut guard = it.word().lock(at);
    let (held, at) = guard.parts();
    let was_set = held.bits() & INSERTED != 0;
    if was_set {
        cold_path();
        if NEW {
            return None;
        }
        // SAFETY: its lock is held, INSERTED is set.
        unsafe { take_out(timer, at) };
    }
    let sooner = {
        let table = setting.table();
        let mut wheel = table.wheel.lock(at);
        // SAFETY: the two locks; in no table (I1).
        match unsafe { setting.arm(timer, &mut wheel) } {
            Some(start) if start < table.earliest.get() => {
                cold_path();
                table.earliest.set(start);
                true
            }
            _ => false,
        }
    };
    guard.release_with(INSERTED | S::FLAGS, INSERTED | setting.flags());
    Some(Set { was_set, sooner })
}

/// Takes `timer` out of its table. True: it was in one, and that setting will not expire (any more, if it was linked again).
///
/// # Safety
/// `timer` is valid until this returns.
#[inline(always)]
pub unsafe fn cancel<T: Timed, L: Below<ObjectLock>>(timer: NonNull<T>, at: &mut Irql<L>) -> bool {
    // SAFETY: the caller's.
    let it = unsafe { timer.as_ref() };
    let mut guard = it.word().lock(at);
    let (held, at) = guard.parts();
    if held.bits() & INSERTED == 0 {
        return false;
    }
    // SAFETY: its lock is held, INSERTED is set.
    unsafe { take_out(timer, at) };
    guard.release_with(INSERTED, 0);
    true
}

/// # Safety
/// The caller holds `timer`'s own lock and has seen INSERTED.
#[inline(always)]
unsafe fn take_out<T: Timed>(timer: NonNull<T>, at: &mut Irql<ObjectLock>) {
    // SAFETY: 1. the caller's. 2. It is linked in that table's wheel (I1), whose lock we hold.
    unsafe { timer.as_ref().table().wheel.lock(at).remove(timer) };
}
